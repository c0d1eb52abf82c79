"The names that users type: few, written down in one place, offered everywhere alike, and nobody else's"
import ast, importlib, inspect, json, re, subprocess, sys
from pathlib import Path
import pytest
import zoofast
from zoofast._names import FOLDERS, NAMES

ROOT = Path(__file__).resolve().parent.parent
OWN = [n for names in NAMES.values() for n in names]
GUIDES = sorted((ROOT/'nbs'/'tutorials').glob('*.ipynb'))
DOCS = [ROOT/'README.md', *sorted((ROOT/'docs').glob('*.md'))]

def _run(code):
    "What a fresh Python prints"
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    return res.stdout.strip()

def test_few():
    assert 50<=len(OWN)<=120 and len(OWN)==len(set(OWN))

def test_the_same_everywhere():
    import zoofast.all
    assert set(zoofast.__all__)-set(FOLDERS)==set(OWN)
    assert set(OWN)<=set(zoofast.all.__all__)
    for n in OWN: assert getattr(zoofast.all, n) is getattr(zoofast, n)

def test_all_brings_no_other_of_our_names():
    "Whatever else `zoofast.all` has comes from fastai's star imports"
    import zoofast.all
    module = lambda n: getattr(getattr(zoofast.all, n), '__module__', '')
    ours = [n for n in zoofast.all.__all__ if module(n).split('.')[0]=='zoofast']
    assert set(ours)<=set(OWN)
    assert 'Table' not in zoofast.all.__all__, "astropy's would be replaced by fastcore's, which is of HTML"

def test_each_is_defined_where_the_list_says():
    for k,names in NAMES.items():
        m = importlib.import_module(f'zoofast.{k}')
        assert set(names)<=set(m.__all__), k
        for n in names: assert getattr(getattr(zoofast, n), '__module__', f'zoofast.{k}')==f'zoofast.{k}', n

OTHERS = ['builtins', 'torch', 'torch.nn', 'numpy', 'fastai.basics', 'fastai.callback.all', 'fastai.vision.all']
@pytest.mark.parametrize('module', OTHERS)
def test_nothing_is_replaced(module):
    m = importlib.import_module(module)
    assert not [n for n in OWN if hasattr(m, n)], f'{module} has these names'

def test_nothing_of_the_standard_library_is_replaced():
    assert not set(OWN) & sys.stdlib_module_names

def test_fastai_stays_what_it_was():
    "After `from zoofast.all import *` all of fastai's names mean what they mean to fastai"
    import zoofast.all, fastai.basics, fastai.callback.all
    public = lambda m: getattr(m, '__all__', None) or vars(m)
    theirs = {n: getattr(m, n) for m in (fastai.basics, fastai.callback.all) for n in public(m) if n[0]!='_'}
    assert len(theirs)>500
    other = [n for n,o in theirs.items() if hasattr(zoofast.all, n) and getattr(zoofast.all, n) is not o]
    assert not other
    assert zoofast.all.accuracy.__module__=='fastai.metrics' and zoofast.all.open_file.__module__.startswith('fastcore')

def test_metrics_of_fastai_train(survey):
    "The most usual line of fastai's"
    names = {}
    exec('from zoofast.all import *', names)
    dls = names['GalaxyDataLoaders'].from_catalog(survey[1], 'morphology', size=64, batch_size=16, progress=False)
    learn = names['galaxy_learner'](dls, 'test_efficientnet', pretrained=False, metrics=[names['accuracy']])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert 0<=float(learn.recorder.values[-1][-1])<=1

@pytest.mark.parametrize('folder', FOLDERS)
def test_folders_are_offered(folder):
    m = getattr(zoofast, folder)
    assert m.__name__==f'zoofast.{folder}'
    if folder in ('cli', 'simulate'): return
    mine = [n for k,names in NAMES.items() if k.split('.')[0]==folder for n in names]
    assert set(m.__all__)==set(mine)<=set(dir(m))
    for n in mine: assert getattr(m, n) is getattr(zoofast, n)

@pytest.mark.slow
def test_tab_completion():
    "In a plain Python and in IPython, before anything was loaded"
    assert set(OWN)<=set(dir(zoofast)) and set(FOLDERS)<=set(dir(zoofast))
    code = '''import sys, rlcompleter, zoofast as zf
c = rlcompleter.Completer(dict(zf=zf))
found = []
while o := c.complete('zf.read_', len(found)): found.append(o.strip('() '))
print(*found)
print('torch' in sys.modules)'''
    *found,loaded = _run(code).split()
    assert {'zf.read_catalog', 'zf.read_settings'}<=set(found), loaded
    from IPython.core.completer import IPCompleter
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    shell.user_ns['zf'] = zoofast
    completer = IPCompleter(shell=shell, namespace=shell.user_ns, use_jedi=False)
    assert any(o.endswith('.galaxy_learner') for o in completer.complete('zf.gal')[1])

def test_light_until_used():
    "A catalogue is read and checked without torch"
    code = '''import sys, zoofast as zf
zf.read_catalog, zf.check_catalog, dir(zf)
print('torch' in sys.modules, 'fastai' in sys.modules)'''
    assert _run(code)=='False False'

def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match='no_such_thing'): zoofast.no_such_thing
    with pytest.raises(AttributeError, match='no_such_thing'): zoofast.predict.no_such_thing

# --- what README, guides and pages show

def _blocks(text): return re.findall(r'^```python\n(.*?)^```', text, re.S|re.M)

def _cells(path, kind):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type']==kind]

def _told():
    "All that README, guides and pages say"
    pages = [p.read_text(encoding='utf-8') for p in DOCS]
    guides = [s for p in GUIDES for k in ('code', 'markdown') for s in _cells(p, k)]
    return '\n'.join([*pages, *guides])

def test_every_name_is_shown():
    assert len(GUIDES)>=12 and len(DOCS)>=4
    words = set(re.findall(r'[A-Za-z_]\w*', _told()))
    missing = [n for n in OWN if n not in words]
    assert not missing, f'README, guides and docs show nobody {missing}: show them, or take them from zoofast/_names.py'

def _used_and_made(code):
    "Names that a piece of code uses, and those that it makes itself"
    tree,used,made = ast.parse(code),set(),set()
    for o in ast.walk(tree):
        if isinstance(o, ast.Name): (used if isinstance(o.ctx, ast.Load) else made).add(o.id)
        elif isinstance(o, (ast.FunctionDef, ast.ClassDef)): made.add(o.name)
        elif isinstance(o, ast.arg): made.add(o.arg)
        elif isinstance(o, ast.ExceptHandler) and o.name: made.add(o.name)
        elif isinstance(o, ast.ExceptHandler) and o.name: made.add(o.name)
        elif isinstance(o, (ast.Import, ast.ImportFrom)): made |= {(a.asname or a.name).split('.')[0] for a in o.names}
    return used,made

@pytest.mark.parametrize('path', GUIDES, ids=lambda o: o.stem)
def test_guides_find_their_names(path):
    "Every name in a guide is one of `zoofast.all`, or the guide imports or makes it"
    import builtins, fastcore.test, zoofast.all
    code = re.sub(r'^\s*[%!].*$', '', '\n'.join(_cells(path, 'code')), flags=re.M)
    used,made = _used_and_made(code)
    known = {*zoofast.all.__all__, *dir(builtins), *dir(fastcore.test)}
    assert len(used)>10
    assert not (lost := used-made-known), lost

def _calls():
    "`(page, call)` of every call of a public name in the code of README and pages"
    for p in DOCS:
        for code in _blocks(p.read_text(encoding='utf-8')):
            for o in ast.walk(ast.parse(code)):
                if isinstance(o, ast.Call) and ast.unparse(o.func).split('.')[0] in OWN: yield p.name,o

def test_calls_in_the_pages_fit():
    "Each gives what the function takes"
    n = 0
    for page,o in _calls():
        first,*rest = ast.unparse(o.func).split('.')
        f = getattr(zoofast, first)
        for part in rest: f = getattr(f, part)
        if any(isinstance(a, ast.Starred) for a in o.args) or any(k.arg is None for k in o.keywords): continue
        given = [a for a in o.args if not (isinstance(a, ast.Constant) and a.value is ...)]
        if len(given)<len(o.args): continue                             # `...` stands for the rest
        try: inspect.signature(f).bind(*given, **{k.arg: k.value for k in o.keywords})
        except TypeError as e: pytest.fail(f'{page}: {ast.unparse(o)}: {e}')
        n += 1
    assert n>=40
