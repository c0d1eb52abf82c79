"Images read by several processes: as by threads, and what happens to them when something ends"
import multiprocessing, os, signal, subprocess, sys, threading, time
import pandas as pd, pytest, torch
from zoofast.bundles.model import GalaxyModel, each_batch
from zoofast.data.check import check_catalog
from zoofast.encoders.encoder import GalaxyNet
from zoofast.encoders.sources import create_encoder
from zoofast.core.errors import ImageError
from zoofast.images.reader import ImageReader
from zoofast.predict.table import predict_catalog, represent
from zoofast.images.parallel import FORK_FROM, n_readers
from zoofast.simulate import simulate_survey
from zoofast.data.store import ImageStore
from zoofast.tasks.classes import Classification

pytestmark = pytest.mark.skipif(sys.platform!='linux', reason='processes read on Linux alone')

@pytest.fixture
def long(survey, tmp_path):
    "Some hundred rows of a few images; two that cannot be read"
    df = survey[1]
    (tmp_path/'broken.jpg').write_bytes(open(df.file_loc[0], 'rb').read()[:300])
    files = [df.file_loc[i%len(df)] for i in range(260)]
    files[70],files[-1] = str(tmp_path/'gone.jpg'),str(tmp_path/'broken.jpg')
    return pd.DataFrame(dict(id_str=[str(i) for i in range(len(files))], file_loc=files))

@pytest.fixture
def model():
    torch.manual_seed(0)
    net = GalaxyNet(create_encoder('test_vit', 160, pretrained=False), 3)
    return GalaxyModel(net, Classification('label', ['a', 'b', 'c']), ImageReader(160), device='cpu')

@pytest.fixture
def sky_files(tmp_path):
    return simulate_survey(tmp_path/'sky', n=9, size=48, progress=False).fits_loc.tolist()

@pytest.fixture(params=['0', '2'])
def how(request, monkeypatch):
    monkeypatch.setenv('ZOOFAST_READERS', request.param)
    return request.param

def children(pid):
    "Processes that a process has started"
    out = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(pid)], capture_output=True, text=True).stdout
    return [int(o) for o in out.split()]

def test_many_images_are_read_by_processes(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(4)))
    assert (n_readers(FORK_FROM), n_readers(FORK_FROM-1))==(4, 0)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(16)))
    assert [n_readers(n) for n in (FORK_FROM, 10**4, 10**5)]==[5, 11, 16], 'each costs a start'
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert n_readers(10**5)==4, 'two processes of one machine share its cores'
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)))
    assert n_readers(10**6)==0, 'two are no sooner than threads'

def test_a_number_that_is_none(monkeypatch, long, model):
    monkeypatch.setenv('ZOOFAST_READERS', '-1')
    with pytest.raises(ValueError, match="ZOOFAST_READERS='-1': give a number"):
        predict_catalog(model, long, progress=False)

def test_predictions_are_the_same(how, long, model, tmp_path):
    before = torch.get_rng_state()
    t = predict_catalog(model, long, tmp_path/'out.parquet', batch_size=48, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    assert t.id_str.tolist()==long.id_str.tolist()
    assert t.error.notna().to_numpy().nonzero()[0].tolist()==[70, len(long)-1]
    assert 'there is no file' in t.error[70] and 'broken.jpg' in t.error.iloc[-1]
    few = model.predict(long.file_loc[:40].tolist(), progress=False)
    same = [c for c in few if c not in ('id_str', 'error')]
    pd.testing.assert_frame_equal(t[same].iloc[:40], few[same], check_dtype=False)
    again = t[~t.index.isin([70, len(long)-1])].groupby('file_loc')[[c for c in t if c.startswith('label')]].nunique()
    assert (again==1).to_numpy().all(), 'the same image has the same answers wherever it stands'

def test_the_first_bad_image_is_raised(how, long, model):
    with pytest.raises(ImageError, match='gone.jpg') as kept:
        predict_catalog(model, long, on_bad='raise', progress=False)
    assert kept.value and not multiprocessing.active_children(), 'nobody is left, though the error is kept'
    def fails(x, *_): raise KeyError('compute')
    model.samples = fails
    with pytest.raises(KeyError) as kept: model.predict(long.file_loc.tolist(), progress=False)
    assert kept.value and not multiprocessing.active_children()

def test_threads_read_where_there_is_no_room_for_processes(long, monkeypatch):
    def full(): raise BlockingIOError('Resource temporarily unavailable')
    monkeypatch.setenv('ZOOFAST_READERS', '2')
    monkeypatch.setattr(os, 'fork', full)
    got = list(each_batch(ImageReader(32), long.file_loc.tolist(), 50, progress=False))
    assert sum(len(why) for _,why in got)==len(long) and [why is not None for _,w in got for why in w].count(True)==2

def test_features_store_and_check_are_the_same(how, long, model, tmp_path):
    reader = ImageReader(32)
    store = ImageStore(long.file_loc, reader, 'memory', progress=False)
    assert set(store.bad)=={long.file_loc[70], long.file_loc.iloc[-1]}
    assert all(torch.equal(store[[i]][0], reader.wide(f)) for i,f in enumerate(store.files) if f not in store.bad)
    assert len(check_catalog(long, open_images=True, progress=False).bad)==2
    feats = represent(create_encoder('test_vit', 160, pretrained=False), long, size=160, progress=False)
    assert feats.error.notna().sum()==2

def test_a_function_of_ones_own_sees_each_image(how, long):
    seen = []
    check_catalog(long, open_images=seen.append, progress=False)
    assert len(set(seen))==long.file_loc.nunique()-1, 'but for the one that is not there'

LONG = '''
import signal, sys, time
# whoever starts the tests in the background has it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
from zoofast.bundles.model import each_batch
from zoofast.images.reader import ImageReader
for i,(x,_) in enumerate(each_batch(ImageReader(64), [sys.argv[1]]*10**6, 16, progress=False)):
    if i==3:
        print('reading', flush=True)
        time.sleep(600)                       # the readers have read ahead, and wait
'''

@pytest.mark.slow
@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_readers_end_with_their_parent(survey, sig):
    p = subprocess.Popen([sys.executable, '-c', LONG, survey[1].file_loc[0]], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True, env={**os.environ, 'ZOOFAST_READERS': '3'},
                         start_new_session=True)
    assert p.stdout.readline()=='reading\n', p.stderr.read()
    time.sleep(0.5)
    readers = children(p.pid)
    assert len(readers)==3
    os.killpg(p.pid, sig) if sig==signal.SIGINT else os.kill(p.pid, sig)          # Ctrl-C reaches all of them
    p.wait(60)
    def alive(pid):
        try: return open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0]!='Z'
        except OSError: return False
    for _ in range(100):
        if not any(map(alive, readers)): break
        time.sleep(0.1)
    else: pytest.fail('a reader goes on')
    said = p.communicate(timeout=60)[1]
    assert said.count('Traceback')==(sig==signal.SIGINT), f'readers say nothing: {said}'

@pytest.mark.slow
def test_a_reader_that_is_killed_is_said(survey):
    kill = """import os, signal, subprocess
        ps = ['ps', '-o', 'pid=', '--ppid', str(os.getpid())]
        readers = subprocess.run(ps, capture_output=True, text=True).stdout.split()
        os.kill(int(readers[0]), signal.SIGKILL)"""
    code = LONG.replace('time.sleep(600)', '').replace("print('reading', flush=True)", kill)
    p = subprocess.run([sys.executable, '-c', code, survey[1].file_loc[0]], capture_output=True, text=True, timeout=120,
                       env={**os.environ, 'ZOOFAST_READERS': '3'})
    assert p.returncode==1 and 'ZOOFAST_READERS=0' in p.stderr.splitlines()[-1]

def test_an_error_of_the_catalogue_is_no_lack_of_room(long, monkeypatch):
    from zoofast.images.parallel import read_batches
    monkeypatch.setenv('ZOOFAST_READERS', '2')
    def batches():
        yield 0,[1, 2, 3]
        raise OSError('the disk is gone')
    with pytest.raises(OSError, match='the disk is gone') as kept:
        list(read_batches(lambda j, px: j, batches(), (2,), 10))
    assert kept.value and not multiprocessing.active_children(), 'nobody is left'

def test_some_processes_and_then_no_room(long, monkeypatch):
    "The third cannot be started: threads read, and the two end"
    monkeypatch.setenv('ZOOFAST_READERS', '3')
    fork,made = os.fork,[]
    def two():
        if len(made)==2: raise BlockingIOError('Resource temporarily unavailable')
        made.append(1)
        return fork()
    monkeypatch.setattr(os, 'fork', two)
    got = [w for _,why in each_batch(ImageReader(32), long.file_loc.tolist(), 50, progress=False) for w in why]
    assert len(made)==2 and [o is not None for o in got].count(True)==2 and len(got)==len(long)
    for _ in range(100):
        if not multiprocessing.active_children(): return
        time.sleep(0.1)
    pytest.fail('a reader goes on')

def test_a_reader_killed_while_the_model_works(long, monkeypatch):
    monkeypatch.setenv('ZOOFAST_READERS', '2')
    it = each_batch(ImageReader(32), long.file_loc.tolist()*20, 16, progress=False)
    next(it)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    time.sleep(1)                                  # nothing is raised here
    with pytest.raises(ChildProcessError, match='ZOOFAST_READERS=0'): list(it)
    assert not multiprocessing.active_children()

def test_reading_goes_on_after_the_thread_that_began_it(long, monkeypatch):
    monkeypatch.setenv('ZOOFAST_READERS', '2')
    it,first = each_batch(ImageReader(32), long.file_loc.tolist(), 16, progress=False),[]
    t = threading.Thread(target=lambda: first.append(next(it)))
    t.start(); t.join(); time.sleep(0.5)
    assert sum(len(why) for _,why in [*first, *it])==len(long)

def test_a_stretch_of_ones_own_stays_in_this_process(how, sky_files):
    seen = []
    def stretch(flux): seen.append(1); return (flux>0).astype('uint8')
    batches = each_batch(ImageReader(32, stretch=stretch), sky_files, 4, progress=False)
    assert len([1 for _,why in batches for w in why if w is None])==len(sky_files)
    assert len(seen)==len(sky_files)

def test_pixels_that_are_no_bytes_are_refused(how, long):
    class Floats(ImageReader):
        def wide(self, path): return super().wide(path)/255
    with pytest.raises(TypeError): list(each_batch(Floats(32), long.file_loc[:9].tolist(), 4, progress=False))
