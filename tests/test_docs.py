"""The documentation site: links and anchors lead somewhere, what is public is described, nothing is asked of the
network

The site is built once, which takes minutes; `ZOOFAST_SITE=_docs` takes one that `make docs` has built."""
import ast, importlib, inspect, json, os, posixpath, re, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from codemap import FLOORS, about_folder, by_floor, code_page, imports, notebooks, sidebar

from zoofast._names import NAMES

PAGES = notebooks(ROOT/'nbs')
MODULES = {p.module:p for p in PAGES if p.module}

class Page(HTMLParser):
    "Links, anchors, what the browser loads, and the text of a page, with that of its code cells apart"
    def __init__(self, path):
        super().__init__()
        self.links,self.ids,self.loads,self.text,self._skip = [],set(),[],[],0
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.ids |= {d[k] for k in ('id', 'name') if d.get(k)}
        if tag=='a' and d.get('href') is not None: self.links.append(d['href'])
        if tag in ('img', 'script', 'iframe', 'source', 'video', 'audio', 'embed') and d.get('src'):
            self.loads.append(d['src'])
        if tag=='link' and d.get('href') and d.get('rel') not in ('canonical', 'alternate'):
            self.loads.append(d['href'])
        if tag=='object' and d.get('data'): self.loads.append(d['data'])
        self._skip += tag in ('script', 'style')
    def handle_endtag(self, tag): self._skip -= tag in ('script', 'style')
    def handle_data(self, data):
        if not self._skip: self.text.append(data)

@pytest.fixture(scope='session')
def site(tmp_path_factory, request):
    "The folder of the site"
    if os.environ.get('ZOOFAST_SITE'): return Path(os.environ['ZOOFAST_SITE']).resolve()
    if not request.config.getoption('--slow'): pytest.skip('builds the site, minutes; ZOOFAST_SITE=_docs or --slow')
    pytest.importorskip('smalldocs', reason='smalldocs needs Python 3.11')
    out = tmp_path_factory.mktemp('docs')/'site'
    command = [sys.executable, 'tools/docs.py', '--site-only', '--out', str(out)]
    res = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert res.returncode==0, res.stdout+res.stderr
    return out

@pytest.fixture(scope='session')
def pages(site): return {p.relative_to(site).as_posix():Page(p) for p in sorted(site.rglob('*.html'))}

def test_every_notebook_has_its_page(pages):
    missing = [p.href for p in PAGES if p.href.replace('.ipynb', '.html') not in pages]
    assert not missing
    assert {'code.html', 'docs/measured.html', 'docs/images.html', 'CONTRIBUTING.html'}<=set(pages)

def test_links_and_anchors(site, pages):
    dead = []
    for name,page in pages.items():
        for link in page.links+page.loads:
            url,anchor = urldefrag(link)
            if re.match(r'[a-zA-Z][\w+.-]*:|//', link): continue
            to = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(url))) if url else name
            if (site/to).is_dir(): to = posixpath.join(to, 'index.html').removeprefix('./')
            if to.startswith('..') or not (site/to).is_file(): dead.append(f'{name}: {link}')
            elif anchor and to in pages and anchor not in ('top', '') and unquote(anchor) not in pages[to].ids:
                dead.append(f'{name}: {link} (no such anchor)')
    assert not dead, '\n'.join(dead)

# What stands in a cell of text and not on its page: code, tables, directives, tags, maths, and where a link leads
MARKUP = re.compile(r'^```.*?^```|^\|.*$|^#\|.*$|</?(?:img|br|span|code|small|div|p|a)\b[^>]*>|\$\$.*?\$\$|'
                    r'!?\[([^\]]*)\]\([^)]*\)|\$[^$]*\$', flags=re.S|re.M)

def _plain(s): return re.sub(r'[^a-z]', '', s.lower())

def test_prose_is_all_there(pages):
    "Each paragraph of the notebooks begins somewhere on its page"
    lost = []
    for p in PAGES:
        text = _plain(''.join(pages[p.href.replace('.ipynb', '.html')].text))
        for c in json.loads((ROOT/'nbs'/p.path).read_text(encoding='utf-8'))['cells']:
            s = ''.join(c['source'])
            if c['cell_type']!='markdown' or '#| hide' in s: continue
            s = MARKUP.sub(lambda m: m[1] or '', s)
            lost += [f'{p.path}: {o.strip()[:70]}' for o in s.split('\n\n') if _plain(o)[:30] not in text]
    assert not lost, '\n'.join(lost)

def test_nothing_from_the_network(site, pages):
    far = [f'{n}: {o}' for n,p in pages.items() for o in p.loads if re.match(r'(?:https?:)?//', o)]
    address = r'url\(["\']?((?:https?:)?//[^)]*)|@import[^;]{0,80}'
    for p in site.rglob('*.css'):
        far += [f'{p.name}: {m}' for m in re.findall(address, p.read_text(encoding='utf-8')) if m]
    assert not far, '\n'.join(far)

def test_no_directives_no_noise(pages):
    noise = re.compile(r'^\s*#\|\s*(?:export\w*|hide\w*|default_exp|eval|slow|gpu|code-fold|echo)\b.*$|'
                       r'\x1b\[|\d+%\|[█▏▎▍▌▋▊▉ ]*\||\d+/\d+ \[\d+:\d+|\w*Warning: |<IPython\.core|█████', re.M)
    read = {n: ''.join(p.text) for n,p in pages.items() if n!='CONTRIBUTING.html'}
    found = [f'{n}: {m[0].strip()[:80]}' for n,text in read.items() for m in noise.finditer(text)]
    assert not found, '\n'.join(found)

def test_maths_is_in_the_page(site, pages):
    source = {n for n,p in pages.items() if re.search(r'\\\(.+?\\\)|\\\[.+?\\\]', ''.join(p.text))}
    raw = [n for n in pages if n in source and 'class="math' in (site/n).read_text(encoding='utf-8')]
    assert not raw, f'maths that needs a script: {raw}'

def test_search_finds_a_function(site):
    entries = json.loads((site/'search.json').read_text(encoding='utf-8'))
    ours = [e['text']+e['section'] for e in entries if e['href'].startswith('training/finetune.html')]
    assert any('galaxy_learner' in o for o in ours)
    assert (site/'search.js').read_text(encoding='utf-8').startswith('window.siteSearch = [')
    assert all((site/urldefrag(e['href'])[0]).is_file() for e in entries)

# --- how the code fits together

def test_every_module_has_its_floor():
    from test_layering import FLOORS as house, PATHS
    assert {p.module for v in by_floor(PAGES).values() for p in v}==set(MODULES)==set(PATHS) and len(MODULES)>40
    shown = [o for o in FLOORS if o]
    assert shown==[o for o in house if o in FLOORS], 'the page shows the folders in the order of the house'

def test_folders_say_what_they_are():
    folders = {p.parent.name for p in (ROOT/'zoofast').glob('*/__init__.py')}
    assert folders==set(FLOORS)-{''} and len(folders)>=13
    for o in folders: assert len(about_folder(ROOT/'zoofast', o))>5, f'zoofast/{o}/__init__.py says nothing of itself'

def test_picture_shows_what_is_imported():
    leans,html_ = imports(ROOT/'zoofast'),code_page(PAGES, ROOT/'zoofast')
    shown = {m[1]:set(m[2].split()) for m in re.finditer(r'data-module="([\w.]+)" data-leans="([^"]*)"', html_)}
    assert shown=={k:leans[k]&set(MODULES) for k in MODULES}
    assert 'encoders.sources' in shown['training.finetune'], 'the imports are not read'
    assert 'catalog.read' in shown['data.loaders'], 'the imports are not read'
    assert 'training.finetune' in shown['cli.finetune'], 'an import inside a function is not read'

def test_sidebar_leads_to_every_page():
    def _hrefs(items): return [h for o in items for h in ([o['href']] if 'href' in o else _hrefs(o['contents']))]
    hrefs = _hrefs(sidebar(PAGES))
    assert {p.href for p in PAGES}<=set(hrefs) and len(hrefs)==len(set(hrefs))

# --- every public function

def _code():
    "What the lessons, guides and pages run or show, cell by cell"
    for p in PAGES:
        for c in json.loads((ROOT/'nbs'/p.path).read_text(encoding='utf-8'))['cells']:
            s = ''.join(c['source'])
            if c['cell_type']=='code' and not re.search(r'^#\|\s*export', s, re.M): yield s
            elif c['cell_type']=='markdown': yield from re.findall(r'^```(?:python|sh)\n(.*?)^```', s, re.S|re.M)

def _exported():
    "`(module, name, object)` of every function and class that a module's `__all__` names"
    for k in MODULES:
        m = importlib.import_module(f'zoofast.{k}')
        for n in m.__all__:
            o = getattr(m, n)
            if inspect.isfunction(o) or inspect.isclass(o): yield k,n,o

PUBLIC = [(k, n) for k,names in NAMES.items() for n in names]     # those that a user types

def _called(tree):
    used = [o for o in ast.walk(tree) if isinstance(o, (ast.Name, ast.Attribute))]
    return {o.id if isinstance(o, ast.Name) else o.attr for o in used}

def _patched(o):
    "The class that a function becomes a method of, by @patch"
    if not (isinstance(o, ast.FunctionDef) and o.args.args and o.args.args[0].arg=='self'): return None
    of = o.args.args[0].annotation
    return of.id if isinstance(of, ast.Name) else None

def test_public_names_have_entries(pages):
    "Each has one on the page of the module that defines it"
    missing = [f'{k}.{n}' for k,n in PUBLIC if not {n, n.lower()}&pages[MODULES[k].href.replace('.ipynb', '.html')].ids]
    assert not missing, '\n'.join(missing)

def test_exported_functions_have_entries(pages):
    from zoofast._modidx import d
    missing,looked = [],0
    for mod,syms in d['syms'].items():
        known = importlib.import_module(mod).__all__
        for name,(link,_) in syms.items():
            parts = name.removeprefix(mod+'.').split('.')
            if any(o.startswith('_') for o in parts) or len(parts)==1 and parts[0] not in known: continue
            looked += 1
            page,anchor = link.split('#')
            if anchor not in pages[page].ids: missing.append(name)
    assert not missing, '\n'.join(missing)
    assert looked>250

def test_parameters_are_described():
    from zoofast._showdoc import params
    bare = [f'{k}.{n}: {a}' for k,n,o in _exported() for a,_,_,told in params(o) if not told]
    assert not bare, '\n'.join(bare)

def test_examples():
    "A lesson uses the function by name, or runs one that calls it; a command's help has an example of its own"
    code = {m: ast.parse((ROOT/'zoofast'/f"{m.replace('.', '/')}.py").read_text(encoding='utf-8')) for m in MODULES}
    inside = {}
    for tree in code.values():
        for o in ast.walk(tree):
            if isinstance(o, (ast.FunctionDef, ast.ClassDef)): inside.setdefault(o.name, set()).update(_called(o))
            if of := _patched(o): inside.setdefault(of, set()).update(_called(o))
    shown = set(re.findall(r'[A-Za-z_]\w*', '\n'.join(_code())))
    reached,new = set(),{o for o in shown if o in inside}
    while new:
        reached |= new
        new = {o for n in new for o in inside[n] if o in inside}-reached
    def _own(n, o): return f"Example: zoofast {n.replace('_', '-')}" in (inspect.getdoc(o) or '')
    missing = [f'{k}.{n}' for k,n,o in _exported() if n not in shown and n not in reached and not _own(n, o)]
    assert not missing, f'no lesson shows {missing}'
    hidden = [f'{k}.{n}' for k,n in PUBLIC if n not in shown]
    assert not hidden, f'public, and only reached through others: no lesson, guide or page shows {hidden}'

def test_the_tests_that_hold_a_promise_are_there():
    text = (ROOT/'docs'/'trust.md').read_text()
    named = re.findall(r'`(tests/\w+\.py)(?:::(\w+))?`', text)
    assert len(named)>25
    for file,name in named:
        assert (ROOT/file).is_file() and (not name or f'def {name}(' in (ROOT/file).read_text()), (file, name)
    for file in re.findall(r'`python (benchmarks/\w+\.py)', text): assert (ROOT/file).is_file(), file
