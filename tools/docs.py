"""README.md and the documentation site from the notebooks: `python tools/docs.py [--readme | --quarto]`

The site, in _docs/, is rendered with smalldocs, or with Quarto (`--quarto`, when installed). `--readme` stops after README.md."""
import os, posixpath, re, shutil, subprocess, sys, yaml
from pathlib import Path
from fastcore.nbio import cell_frontmatter, read_nb, write_nb
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import nbglob
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs

root = Path(__file__).resolve().parent.parent
_dirs = re.compile(r'\A(?:#\|.*\n?)+')
_fence = re.compile(r'(^```.*?^```)', re.M|re.S)
_link = re.compile(r'(\]\(|\b(?:src|href)=")([^)\s"]+)')
_source = re.compile(r'\[source\]\([^)]*\)(?:\{[^}]*\})?')
_far = re.compile(r'[a-zA-Z][\w+.-]*:|//|#')       # a web address, or a place on the same page
_keep = {'cell_type','id','metadata','source','outputs','execution_count'}
_made = 'nbdev.yml','sidebar.yml','_quarto.yml'    # nbdev writes them beside the notebooks; only the build needs them

def tool(name):
    "The command `name` of this Python's environment"
    p = Path(sys.executable).parent/name
    if not p.exists(): sys.exit(f"there is no {p}: pip install -e '.[dev]' (smalldocs needs Python 3.11 or newer)")
    return str(p)

def _each_md(nb, f):
    "Apply `f` to every piece of markdown in `nb`: prose cells and markdown outputs"
    for c in nb.cells:
        if c.cell_type=='markdown': c.source = f(_dirs.sub('', c.source))
        for o in c.get('outputs', []):
            if md := o.get('data', {}).get('text/markdown'): o['data']['text/markdown'] = f(''.join(md))

def relink(md, f):
    "`md` with `f(path, anchor)` in place of each link or image that is neither a web address nor in fenced code"
    def _one(m): return m[0] if _far.match(m[2]) else m[1]+f(*re.fullmatch(r'([^#]*)(.*)', m[2]).groups())
    return ''.join(o if o.startswith('```') else _link.sub(_one, o) for o in _fence.split(md))

def stage(cache, site, cfg):
    "Copy nbdev's processed notebooks to `site`, with nbdev's page names and links that work from disk"
    shutil.rmtree(site, ignore_errors=True)
    base,nbs,names = cfg.doc_url.rstrip('/')+'/',cfg.nbs_path.relative_to(root),{}
    for p in sorted(o for o in cache.rglob('*') if o.is_file()):
        rel = p.relative_to(cache)
        if rel.parts[0] in (cfg.doc_path.name, '.quarto'): continue
        dst = nbpath2html(rel).with_suffix('.ipynb') if p.suffix=='.ipynb' else rel
        (site/dst).parent.mkdir(parents=True, exist_ok=True)
        if p.suffix!='.ipynb': shutil.copy(p, site/dst); continue
        up = '../'*(len(dst.parts)-1)
        def _to_site(path, anchor):
            if path.endswith('.ipynb'): return nbpath2html(path).with_suffix('.ipynb').as_posix()+anchor
            o = posixpath.normpath((nbs/rel.parent/path).as_posix())    # from the project's root
            if path.startswith('/') or o.startswith((nbs.as_posix()+'/', '..')) or not (root/o).is_file(): return path+anchor
            (site/o).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root/o, site/o)
            return up+re.sub(r'^docs/README\.md$', 'docs/index.md', o)+anchor
        nb = read_nb(p)
        if not cfg.git_url: _each_md(nb, lambda s: _source.sub('', s))    # they would lead to a repository without an address
        _each_md(nb, lambda s: relink(s.replace(f']({base}', f']({up}'), _to_site))
        for c in nb.cells:
            if c.cell_type=='raw': c.source = re.sub(r'^output-file:.*\n', '', c.source, flags=re.M)
            for k in set(c)-_keep: del c[k]          # nbdev leaves working keys behind; nbformat rejects them
        names[rel.as_posix()] = dst.as_posix()
        write_nb(nb, site/dst)
    if (root/'docs').is_dir(): shutil.copytree(root/'docs', site/'docs', dirs_exist_ok=True)
    if (site/'docs/README.md').exists(): (site/'docs/README.md').rename(site/'docs/index.md')
    for y in site.glob('*.yml'):
        txt = y.read_text()
        for a,b in names.items(): txt = txt.replace(a, b)
        d = yaml.safe_load(txt)
        d.pop('format-links', None)                  # of no use without Quarto: only HTML is made
        if isinstance(d.get('format'), dict):
            d['format'].pop('commonmark', None)
            for k in ('keep-md','css'): d['format'].get('html', {}).pop(k, None)
        y.write_text(yaml.safe_dump(d, sort_keys=False))

def readme(cache, cfg):
    "Write README.md from the processed index notebook, with links that work on the repository's page"
    nbs = cfg.nbs_path.relative_to(root)
    pages = {nbpath2html(p:=Path(o).relative_to(cfg.nbs_path)).as_posix():(nbs/p).as_posix() for o in nbglob(cfg.nbs_path)}
    def _to_repo(path, anchor):
        if path.startswith('/') and path[1:] in pages: return pages[path[1:]]    # `name` in backticks: the notebook that defines it
        o = posixpath.normpath((nbs/path).as_posix())
        if path.startswith('/') or not (root/o).exists(): sys.exit(f'{nbs/cfg.readme_nb} links to {path}, which does not exist')
        return o+anchor
    nb,res = read_nb(cache/cfg.readme_nb),[]
    _each_md(nb, lambda s: relink(s, _to_repo))
    for c in nb.cells:
        if c.cell_type=='raw':
            fm = cell_frontmatter(c.source) or {}
            res.append(f"# {fm.get('title', cfg.title)}\n\n> {fm.get('description', '')}")
        elif c.cell_type=='markdown' and not c.source.startswith('<!-- WARNING'): res.append(c.source)
        elif c.cell_type=='code':
            if 'echo: false' not in c.source: res.append(f"```python\n{_dirs.sub('', c.source)}\n```")
            for o in c.outputs:
                d = o.get('data', {})
                if any(k.startswith('image/') for k in d): continue    # show a picture with ![](../docs/images/name.jpg)
                txt = d.get('text/markdown') or d.get('text/plain') or o.get('text')
                if txt: res.append(''.join(txt) if 'text/markdown' in d else f"```text\n{''.join(txt).rstrip()}\n```")
    out = '\n\n'.join(o.strip('\n') for o in res)+'\n'
    p = root/'README.md'
    if not p.exists() or p.read_text()!=out: p.write_text(out)

def site(cfg, n_workers):
    "Build the documentation site"
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    cache = proc_nbs(force=True, n_workers=n_workers)
    out = root/'_site_src'
    stage(cache, out, cfg)
    subprocess.run([tool('smalldocs'), 'render', '-q', str(out)], check=True)
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(out/cfg.doc_path.name, cfg.doc_path)
    shutil.rmtree(out)
    print(f'{cfg.doc_path.relative_to(root)}/index.html')

def main():
    os.chdir(root)
    cfg = get_config()
    had = {o for o in _made if (cfg.nbs_path/o).exists()}
    n_workers = min(os.cpu_count() or 1, 4)
    try:
        if '--quarto' in sys.argv: subprocess.run([tool('nbdev-docs')], check=True)    # writes a README of its own
        elif '--readme' not in sys.argv: site(cfg, n_workers)
        if (cfg.nbs_path/cfg.readme_nb).exists(): readme(proc_nbs(force=True, file_glob=cfg.readme_nb, n_workers=1), cfg)
        else: print(f'no README.md: there is no {cfg.readme_nb}')
    finally:
        for o in _made:
            if o not in had: (cfg.nbs_path/o).unlink(missing_ok=True)

if __name__=='__main__': main()
