"What the tests share: --slow, --slow-until, --gpu, real data where there is some, and the command line of a user"
import multiprocessing, os, shutil, time
from collections import Counter
from pathlib import Path
import preloaded, pytest

ROOT = Path(__file__).resolve().parent.parent

def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also run the tests marked slow')
    parser.addoption('--slow-until', type=int, metavar='SECONDS', help='begin no slow test later (as of date +%%s)')
    parser.addoption('--gpu', action='store_true', help='let the tests see the GPUs of this machine')

def pytest_configure(config):
    "Tests that compare numbers to the last digits do so on the CPU, whatever the machine has"
    if not config.getoption('--gpu'): os.environ['CUDA_VISIBLE_DEVICES'] = ''

def pytest_collection_modifyitems(config, items):
    "Without --slow, of a test that is marked slow(but=k) the first k cases are run, of one marked slow none"
    if config.getoption('--slow'): return
    seen = Counter()
    for o in items:
        if (mark := o.get_closest_marker('slow')) is None: continue
        test = o.nodeid.partition('[')[0]
        seen[test] += 1
        if seen[test]>mark.kwargs.get('but', 0): o.add_marker(pytest.mark.skip(reason='slow: run with --slow'))

def pytest_sessionfinish():
    "Whoever is left does not keep the tests from ending"
    for o in multiprocessing.active_children(): o.kill()

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    "A machine that is slower than others still comes to an end, and says what it has left out"
    until = item.config.getoption('--slow-until')
    if until and item.get_closest_marker('slow') and time.time()>until: pytest.skip('slow: the time for these is over')

@pytest.fixture(scope='session')
def root(): return ROOT

@pytest.fixture(scope='session')
def data_dir():
    "The folder of real images and labels, which is no part of the project; the test is skipped where it is absent"
    p = Path(os.environ.get('ZOOFAST_DATA') or ROOT.parent/'shared'/'data')
    if not p.is_dir(): pytest.skip(f'no real data at {p} (set ZOOFAST_DATA)')
    return p

@pytest.fixture(scope='session')
def run_zoofast():
    """`run_zoofast('check', 'rings.csv', cwd=..., env={...})`: the finished process, with its `returncode`, `stdout`,
    `stderr`"""
    def _run(*args, cwd=None, env=None):
        path = os.pathsep.join(o for o in (str(ROOT), os.environ.get('PYTHONPATH')) if o)
        return preloaded.run(['-m', 'zoofast.cli', *args], cwd, {'PYTHONPATH': path, **(env or {})})
    return _run

@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
    "Decoded images go to a folder of the test run, also those of the commands that it starts"
    os.environ['ZOOFAST_CACHE'] = str(tmp_path_factory.mktemp('cache'))

@pytest.fixture(scope='session')
def survey(tmp_path_factory):
    "A simulated survey of 60 galaxies of 64 pixels: its folder and its catalogue"
    from zoofast.simulate import simulate_survey
    folder = tmp_path_factory.mktemp('survey')
    return folder,simulate_survey(folder, n=60, size=64, progress=False)

@pytest.fixture(scope='module')
def browser():
    play = pytest.importorskip('playwright.sync_api')
    exe = next((p for n in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(n))), None)
    if exe is None: pytest.skip('no chromium here (apt-get install chromium)')
    with play.sync_playwright() as p:
        b = p.chromium.launch(executable_path=exe, args=['--no-sandbox', '--disable-gpu'])
        yield b
        b.close()

@pytest.fixture
def opened(browser):
    "`opened(path, width, dark)`: the page, and all that went wrong on it"
    pages = []
    def _open(path, width=1400, dark=False):
        context = browser.new_context(viewport=dict(width=width, height=900), color_scheme='dark' if dark else 'light')
        page,wrong = context.new_page(),[]
        page.on('console', lambda m: wrong.append(f'console: {m.text}') if m.type in ('error', 'warning') else None)
        page.on('pageerror', lambda e: wrong.append(f'error: {e}'))
        page.on('dialog', lambda d: (wrong.append(f'dialog: {d.message}'), d.dismiss()))
        own = lambda r: r.url.startswith(('data:', path.as_uri()))
        page.on('request', lambda r: wrong.append(f'request: {r.url[:200]}') if not own(r) else None)
        page.goto(path.as_uri())
        pages.append(context)
        return page,wrong
    yield _open
    for c in pages: c.close()
