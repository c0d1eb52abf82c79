"use strict";
(() => {
  const list = document.getElementById("list");
  if (!list) return;
  const all = [...list.children], by = id => document.getElementById(id);
  const buttons = [...document.querySelectorAll("button[data-filter]")];
  let filter = "all";
  const fits = {
    all: () => true,
    wrong: d => d.verdict === "wrong",
    right: d => d.verdict === "right",
    uncertain: d => d.uncertain === "True",
  };
  const number = (d, k, missing) => d[k] === "" ? missing : Number(d[k]);
  const orders = {
    given: () => 0,
    unsure: (a, b) => number(b, "uncertainty", -1) - number(a, "uncertainty", -1),
    sure: (a, b) => number(a, "uncertainty", 9e9) - number(b, "uncertainty", 9e9),
    off: (a, b) => number(b, "off", -1) - number(a, "off", -1),
    id: (a, b) => a.id.localeCompare(b.id, undefined, {numeric: true}),
  };
  function show() {
    const group = by("group")?.value, true_ = by("true-group")?.value, text = by("search").value.trim().toLowerCase(), order = orders[by("sort").value];
    let n = 0;
    for (const li of all) {
      const d = li.dataset;
      li.hidden = !(fits[filter](d) && (!group || d.group === group) && (!true_ || d.true === true_) && (!text || d.id.toLowerCase().includes(text)));
      n += !li.hidden;
    }
    list.append(...[...all].sort((a, b) => order(a.dataset, b.dataset)));
    by("count").textContent = `${n} of ${all.length} shown`;
    for (const b of buttons) b.setAttribute("aria-pressed", String(b.dataset.filter === filter));
  }
  for (const b of buttons) b.addEventListener("click", () => { filter = b.dataset.filter; show(); });
  for (const id of ["group", "true-group", "sort", "search"]) by(id)?.addEventListener("input", show);
  show();
})();
