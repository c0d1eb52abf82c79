"""The project's own promises: one version, a valid sweep, small notebooks that end in an export and name no one's
folders"""
import ast, json, re
from importlib import metadata
from pathlib import Path
import pytest, yaml
import zoofast

ROOT = Path(__file__).resolve().parent.parent
def _nbs(pattern):
    hidden = lambda o: any(p[0] in '._' for p in o.relative_to(ROOT).parts)
    return sorted(o for o in (ROOT/'nbs').glob(pattern) if not hidden(o))

NOTEBOOKS = _nbs('**/*.ipynb')
SOURCES = [o for o in NOTEBOOKS if o.stem!='index' and o.parent.name!='tutorials']
MODULES = sorted((ROOT/'zoofast').rglob('*.py'))
PAGES = [o for o in (*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'), ROOT/'settings.yaml', *MODULES) if o.is_file()]
notebooks = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda o: o.relative_to(ROOT/'nbs').as_posix())

# An absolute path on somebody's machine. In a web address something stands before the slash.
_local = re.compile(r'(?<![\w.~})\-])(?:/(?:work|home|root|Users|mnt|scratch)/\w[^\s"\'\\]*|[A-Z]:\\+Users\b\S*)')

def _text(o):
    "A notebook field that is a string or a list of lines"
    return o if isinstance(o, str) else ''.join(o or [])

def _texts(nb):
    "All that can be read in a notebook: sources, and outputs other than pictures"
    for c in nb['cells']:
        yield _text(c['source'])
        for o in c.get('outputs', []):
            yield _text(o.get('text'))
            yield '\n'.join(o.get('traceback', []))
            for k,v in o.get('data', {}).items():
                if k.startswith('text/'): yield _text(v)

def test_under_test_is_this_checkout():
    folder = Path(zoofast.__file__).resolve().parent
    assert folder==ROOT/'zoofast', 'run pytest from the project: python -m pytest'

def test_version():
    v = zoofast.__version__
    assert re.fullmatch(r'\d+\.\d+\.\d+(?:\.\w+)?', v)
    assert f'## [{v}]' in (ROOT/'CHANGELOG.md').read_text(encoding='utf-8'), f'CHANGELOG.md says nothing of {v}'
    assert metadata.version('zoofast')==v, 'the installation is of another version: pip install -e .'

def test_readme_links_once(): assert '[[' not in (ROOT/'README.md').read_text(encoding='utf-8')

def test_settings():
    """settings.yaml says what it should, zoofast reads it without a complaint, and the command for W&B is one that
    there is"""
    import inspect, warnings
    from zoofast.cli.main import finetune
    from zoofast.sweep.settings import read_settings
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        s = read_settings(ROOT/'settings.yaml')
    assert (s.method, s.metric, s.goal)==('bayes', 'valid_loss', 'minimize') and s.early_terminate
    assert {'batch_size', 'learning_rate', 'layer_decay', 'model_name'}<={p.name for p in s.parameters}
    for p in s.parameters: assert not any(isinstance(p.spec.get(k), str) for k in ('min', 'max'))
    raw = yaml.safe_load((ROOT/'settings.yaml').read_text(encoding='utf-8'))
    for k,p in raw['parameters'].items():
        numbers = all(isinstance(p[o], (int, float)) for o in ('min', 'max') if o in p)
        assert numbers, f'{k}: write 1.0e-5, since YAML reads 1e-5 as text'
    words,known = raw['command'],{'--'+k.replace('_', '-') for k in inspect.signature(finetune).parameters}
    assert words[-2:]==['--settings', '${args_json}'] and {o for o in words if o.startswith('--')}<=known

@notebooks
def test_notebook_is_small(path): assert path.stat().st_size<500_000, 'fewer or smaller pictures: figure.dpi, figsize'

@notebooks
def test_notebook_names_no_local_path(path):
    found = [m[0] for t in _texts(json.loads(path.read_text(encoding='utf-8'))) for m in _local.finditer(t)]
    assert not found, f'paths of one machine: {found}'

@notebooks
def test_notebook_ran_without_error(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    assert not [o['ename'] for c in nb['cells'] for o in c.get('outputs', []) if o['output_type']=='error']

@notebooks
def test_directives_are_whole(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    bare = re.compile(r'\|\s*(?:export|hide|eval|default_exp)')
    torn = [s[:60] for s in (_text(c['source']) for c in cells) if bare.match(s)]
    assert not torn, (f'a directive lost its #, so nbdev does not see it: {torn} '
                      '(as jupytext text a markdown cell needs `# #| export`)')

@pytest.mark.parametrize('path', SOURCES, ids=lambda o: o.relative_to(ROOT/'nbs').as_posix())
def test_notebook_ends_with_export(path):
    last = json.loads(path.read_text(encoding='utf-8'))['cells'][-1]
    src = _text(last['source'])
    exports = last['cell_type']=='code' and 'nbdev_export()' in src and src.startswith('#| hide')
    assert exports, 'the last cell is `#| hide` and nbdev_export()'

@pytest.mark.parametrize('path', PAGES, ids=lambda o: o.relative_to(ROOT).as_posix())
def test_page_names_no_local_path(path):
    found = [m[0] for m in _local.finditer(path.read_text(encoding='utf-8'))]
    assert not found, f'paths of one machine: {found}'

def test_there_is_something_to_look_at(): assert len(SOURCES)>60 and len(MODULES)>70 and len(PAGES)>70

OWN_MODULES = [o for o in MODULES if o.name!='_modidx.py']
@pytest.mark.parametrize('path', OWN_MODULES, ids=lambda o: o.relative_to(ROOT/'zoofast').as_posix())
def test_module_says_what_it_is(path):
    said = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
    assert said, 'no docstring: the notebook starts with a title and a sentence'

@notebooks
def test_imports_have_cells_of_their_own(path):
    "nbdev runs every cell that imports something when it makes the documentation, and no other"
    imports = lambda o: isinstance(o, (ast.Import, ast.ImportFrom))
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    mixed = []
    for src in [_text(c['source']) for c in cells if c['cell_type']=='code']:
        if '#| export' in src or 'nbdev_export' in src: continue
        body = ast.parse(src).body
        kinds = {imports(o) for o in body}
        below_if = any(imports(o) for c in body if isinstance(c, ast.If) for o in ast.walk(c))
        if kinds=={True, False} or below_if: mixed.append(src[:60])
    assert not mixed, f'cells with imports and other code: {mixed}'
