"""README.md and the documentation site from the notebooks: `python tools/docs.py`

nbdev processes the notebooks; smalldocs, or Quarto where it is installed, renders them and the hand-written pages of
docs/ to _docs/. The site asks nothing of the network, and can be read from disk."""
import ast, argparse, html, os, posixpath, re, shutil, subprocess, sys, tempfile, yaml
from pathlib import Path
from fastcore.nbio import cell_frontmatter, read_nb, write_nb
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import nbglob
from nbdev.serve import proc_nbs
from codemap import code_page, notebooks, sidebar

root = Path(__file__).resolve().parent.parent
_dirs = re.compile(r'\A(?:#\|.*\n?)+')
_fence = re.compile(r'(^```.*?^```)', re.M|re.S)
_link = re.compile(r'(\]\(|\b(?:src|href)=")([^)\s"]+)')
_source = re.compile(r'\[source\]\([^)]*\)(?:\{[^}]*\})?')
_twice = re.compile(r'\[\[(`[^`]*`)\]\([^)]*\)\]')     # nbdev links a name in backticks also where it is linked already
_named = re.compile(r'\[(`[^`\n]*`)\]\(([^)\s]+\.html#[\w.]+)\)')
_far = re.compile(r'[a-zA-Z][\w+.-]*:|//|#')       # a web address, or a place on the same page
_keep = {'cell_type','id','metadata','source','outputs','execution_count'}
_math = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
_katex = re.compile(r'<(?:link|script)\b[^>]*katex[^>]*>(?:</script>)?')
_import = re.compile(r'@import (?:url\([^)]*\)|"[^"]*")[^;]*;')

def tool(name):
    "The command `name` of this Python's environment"
    p = Path(sys.executable).parent/name
    if not p.exists(): sys.exit(f"there is no {p}: pip install -e '.[dev]' (smalldocs needs Python 3.11 or newer)")
    return str(p)

def hidden():
    """Pages and anchors that nbdev would link to although there is nothing: names with an underscore, and those that a
    module does not export"""
    from zoofast._modidx import d
    out = set()
    for mod,syms in d['syms'].items():
        tree = ast.parse((root/f"{mod.replace('.', '/')}.py").read_text(encoding='utf-8'))
        assigned = [o for o in tree.body if isinstance(o, ast.Assign)]
        known = next((ast.literal_eval(o.value) for o in assigned if o.targets[0].id=='__all__'), [])
        for name,(link,_) in syms.items():
            parts = name.removeprefix(mod+'.').split('.')
            if any(o.startswith('_') for o in parts) or len(parts)==1 and parts[0] not in known: out.add(link)
    return out

_hidden = hidden()

def _is_hidden(url):
    "Does a link lead to something that has no entry? Pages stand in their folder, or in none"
    parts = url.split('/')
    return parts[-1] in _hidden or '/'.join(parts[-2:]) in _hidden

def _each_md(nb, f):
    "Apply `f` to every piece of markdown in `nb`: prose cells and markdown outputs"
    def tidy(md): return f(_named.sub(lambda m: m[1] if _is_hidden(m[2]) else m[0], _twice.sub(r'[\1]', md)))
    for c in nb.cells:
        if c.cell_type=='markdown': c.source = tidy(_dirs.sub('', c.source))
        for o in c.get('outputs', []):
            if md := o.get('data', {}).get('text/markdown'): o['data']['text/markdown'] = tidy(''.join(md))

def relink(md, f):
    "`md` with `f(path, anchor)` in place of each link or image that is neither a web address nor in fenced code"
    def _one(m): return m[0] if _far.match(m[2]) else m[1]+f(*re.fullmatch(r'([^#]*)(.*)', m[2]).groups())
    return ''.join(o if o.startswith('```') else _link.sub(_one, o) for o in _fence.split(md))

class Staged:
    """The folder that the site is rendered from: nbdev's processed notebooks, with nbdev's page names, and hand-written
    pages, with links that work from disk"""
    def __init__(self, folder, cfg):
        self.folder = folder
        self.nbs = cfg.nbs_path.relative_to(root)
        self.base = cfg.doc_url.rstrip('/')+'/'
        self.has_repo = bool(cfg.git_url)

    def linked(self, md, at):
        """`md` of the page at `at` in the repository, with links to pages and files of the site, which takes along what
        they lead to"""
        here = at.relative_to(self.nbs) if at.is_relative_to(self.nbs) else at
        up = '../'*(len(here.parts)-1)
        def _to_site(path, anchor):
            o = Path(posixpath.normpath((at.parent/path).as_posix()))    # from the project's root
            if path.startswith('/') or o.parts[0]=='..' or not (root/o).is_file(): return path+anchor
            to = self.page(o)
            return path+anchor if to is None else up+to+anchor
        return relink(md.replace(f']({self.base}', f']({up}'), _to_site)

    def page(self, o):
        "Where a file of the repository lies in the site, which takes it along; nothing for what belongs to a notebook"
        if o.is_relative_to(self.nbs):
            if o.suffix!='.ipynb': return None
            return nbpath2html(o.relative_to(self.nbs)).with_suffix('.ipynb').as_posix()
        if o.as_posix()=='README.md': return 'index.ipynb'
        self.copy(o)
        return re.sub(r'^docs/README\.md$', 'docs/index.md', o.as_posix())

    def copy(self, o):
        "Copy a file of the repository, once; a page with its links"
        to = self.folder/('docs/index.md' if o.as_posix()=='docs/README.md' else o)
        if to.exists(): return
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root/o, to)
        if o.suffix=='.md': to.write_text(self.linked((root/o).read_text(encoding='utf-8'), o), encoding='utf-8')

    def notebook(self, p, rel):
        "Take over nbdev's notebook `p`, which was `rel` among the notebooks"
        nb = read_nb(p)
        # they would lead to a repository without an address
        if not self.has_repo: _each_md(nb, lambda s: _source.sub('', s))
        _each_md(nb, lambda s: self.linked(s, self.nbs/rel))
        for c in nb.cells:
            if c.cell_type=='raw': c.source = re.sub(r'^output-file:.*\n', '', c.source, flags=re.M)
            for k in set(c)-_keep: del c[k]          # nbdev leaves working keys behind; nbformat rejects them
        write_nb(nb, self.folder/nbpath2html(rel).with_suffix('.ipynb'))

def stage(cache, folder, cfg):
    "Put nbdev's processed notebooks and the hand-written pages into `folder`"
    staged = Staged(folder, cfg)
    for p in sorted(o for o in cache.rglob('*') if o.is_file() and o.suffix!='.yml'):
        rel = p.relative_to(cache)
        if rel.parts[0] in (cfg.doc_path.name, '.quarto'): continue
        (folder/rel).parent.mkdir(parents=True, exist_ok=True)
        if p.suffix=='.ipynb': staged.notebook(p, rel)
        else: shutil.copy(p, folder/rel)
    for o in sorted((root/'docs').rglob('*')):
        if o.is_file(): staged.copy(o.relative_to(root))
    for o in ('CONTRIBUTING.md', 'CHANGELOG.md'): staged.copy(Path(o))

def _readme_output(o):
    "What is shown of an output of code, or nothing"
    d = o.get('data', {})
    if any(k.startswith('image/') for k in d): return None    # show a picture with ![](../docs/images/name.jpg)
    txt = ''.join(d.get('text/markdown') or d.get('text/plain') or o.get('text') or '')
    if not txt: return None
    return txt if 'text/markdown' in d else f"```text\n{txt.rstrip()}\n```"

def _readme_parts(c, cfg):
    "What a cell of the index notebook becomes in README.md"
    if c.cell_type=='raw':
        fm = cell_frontmatter(c.source) or {}
        return [f"# {fm.get('title', cfg.title)}\n\n> {fm.get('description', '')}"]
    if c.cell_type=='markdown': return [] if c.source.startswith('<!-- WARNING') else [c.source]
    if c.cell_type!='code': return []
    code = [] if 'echo: false' in c.source else [f"```python\n{_dirs.sub('', c.source)}\n```"]
    return code+[o for o in map(_readme_output, c.outputs) if o]

def readme(cache, cfg):
    "Write README.md from the processed index notebook, with links that work on the repository's page"
    nbs = cfg.nbs_path.relative_to(root)
    pages = {}
    for o in nbglob(cfg.nbs_path):
        p = Path(o).relative_to(cfg.nbs_path)
        pages[nbpath2html(p).as_posix()] = (nbs/p).as_posix()
    def _to_repo(path, anchor):
        # `name` in backticks: the notebook that defines it
        if path.startswith('/') and path[1:] in pages: return pages[path[1:]]
        o = posixpath.normpath((nbs/path).as_posix())
        if path.startswith('/') or not (root/o).exists():
            sys.exit(f'{nbs/cfg.readme_nb} links to {path}, which does not exist')
        return o+anchor
    nb = read_nb(cache/cfg.readme_nb)
    _each_md(nb, lambda s: relink(s, _to_repo))
    parts = [o for c in nb.cells for o in _readme_parts(c, cfg)]
    out = '\n\n'.join(o.strip('\n') for o in parts)+'\n'
    p = root/'README.md'
    if not p.exists() or p.read_text()!=out: p.write_text(out)

def project(cfg, pages):
    "The settings of the site: its sidebar, and what smalldocs and Quarto are to make of the pages"
    guides = [dict(text='Guides', href='tutorials/rings.ipynb'),
              dict(text='How it fits together', href='code.md'),
              dict(text='Measured', href='docs/measured.md')]
    script = '<script src="SITE_ROOTsite.js" defer></script>'
    website = {
        'title': cfg.title,
        'description': cfg.description,
        'navbar': dict(title=cfg.title, search=True, left=guides),
        'sidebar': {'style': 'docked', 'contents': sidebar(pages), 'collapse-level': 2},
        'page-navigation': True,
    }
    page = {
        'theme': dict(light='default', dark='darkly'),
        'css': 'site.css',
        'toc': True,
        'toc-depth': 3,
        'include-in-header': dict(text=script),
    }
    return {
        'project': {'type': 'website', 'output-dir': cfg.doc_path.name},
        'website': website,
        'format': dict(html=page),
    }

def polish(out):
    """Nothing from the network: maths as MathML, no web fonts; and a search that also works where a page may not fetch
    files"""
    from latex2mathml.converter import convert as mathml
    for p in out.rglob('*.html'):
        s = p.read_text(encoding='utf-8')
        up = '../'*(len(p.relative_to(out).parts)-1)
        s = s.replace('SITE_ROOT', up)
        s = _math.sub(lambda m: mathml(html.unescape(m[2]), display='block' if m[1]=='display' else 'inline'), s)
        s = _katex.sub('', s)
        p.write_text(s, encoding='utf-8')
    for p in out.rglob('*.css'): p.write_text(_import.sub('', p.read_text(encoding='utf-8')), encoding='utf-8')
    p = out/'search.json'
    if p.exists():
        entries = p.read_text(encoding='utf-8')
        (out/'search.js').write_text(f'window.siteSearch = {entries};\n', encoding='utf-8')

def site(cfg, n_workers, out, quarto=False, quick=False):
    "Build the documentation site in the folder `out`"
    pages = notebooks(cfg.nbs_path)
    cache = proc_nbs(force=not quick, n_workers=n_workers)
    with tempfile.TemporaryDirectory() as tmp: _render(cache, Path(tmp)/'site', cfg, pages, out, quarto)
    print(os.path.relpath(out/'index.html'))

def _render(cache, src, cfg, pages, out, quarto):
    "Put the pages together in the folder `src`, and render them to the folder `out`"
    stage(cache, src, cfg)
    (src/'code.md').write_text(code_page(pages, root/cfg.lib_path.name), encoding='utf-8')
    (src/'_quarto.yml').write_text(yaml.safe_dump(project(cfg, pages), sort_keys=False), encoding='utf-8')
    for o in ('site.css', 'site.js'): shutil.copy(root/'tools'/o, src/o)
    if quarto: subprocess.run(['quarto', 'render', str(src), '--no-execute'], check=True)
    else: subprocess.run([tool('smalldocs'), 'render', '-q', str(src)], check=True)
    made = src/cfg.doc_path.name
    shutil.copy(root/'tools/site.js', made/'site.js')
    # pictures of <img>, which the renderer does not take along
    for o in src.rglob('*'):
        if o.suffix not in ('.jpg', '.png', '.svg') or o.is_relative_to(made): continue
        to = made/o.relative_to(src)
        if to.exists(): continue
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(o, to)
    polish(made)
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, out)

def main():
    os.chdir(root)
    cfg = get_config()
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', type=Path, default=cfg.doc_path, help='folder of the site, which is replaced')
    ap.add_argument('--site-only', action='store_true', help='leave README.md as it is')
    ap.add_argument('--readme', action='store_true', help='write README.md only')
    ap.add_argument('--quarto', action='store_true',
                    help='render with Quarto, which must be installed, instead of smalldocs')
    ap.add_argument('--quick', action='store_true', help='process only the notebooks that changed')
    args = ap.parse_args()
    n_workers = min(os.cpu_count() or 1, 4)
    if not args.readme: site(cfg, n_workers, args.out.resolve(), args.quarto, args.quick)
    if args.site_only: return
    if (cfg.nbs_path/cfg.readme_nb).exists():
        (root/'_proc'/cfg.readme_nb).unlink(missing_ok=True)
        readme(proc_nbs(file_glob=cfg.readme_nb, n_workers=1), cfg)
    else: print(f'no README.md: there is no {cfg.readme_nb}')

if __name__=='__main__': main()
