// Search that also works from disk, where a page may not fetch files: the index comes as a script, when it is first asked for.
(() => {
  const root = document.querySelector('meta[name="smalldocs:offset"]')?.content ?? './', fetched = window.fetch;
  let index = null;
  window.fetch = (url, ...more) => {
    if (!String(url).endsWith('search.json')) return fetched(url, ...more);
    index ??= new Promise((done, failed) => {
      const s = document.createElement('script');
      s.src = root + 'search.js'; s.onload = () => done(window.siteSearch); s.onerror = failed;
      document.head.append(s);
    });
    return index.then(o => ({ json: () => o }));
  };
  // The map of the code: what a module leans on, and what leans on it
  const modules = [...document.querySelectorAll('.codemap a')];
  const show = a => modules.forEach(o => {
    o.classList.toggle('here', o === a);
    o.classList.toggle('below', !!a && a.dataset.leans.split(' ').includes(o.dataset.module));
    o.classList.toggle('above', !!a && o.dataset.leans.split(' ').includes(a.dataset.module));
  });
  modules.forEach(a => {
    for (const e of ['mouseenter', 'focus']) a.addEventListener(e, () => show(a));
    for (const e of ['mouseleave', 'blur']) a.addEventListener(e, () => show(null));
  });
})();
