"Predictions on a Dask cluster: the same table as one process's, whoever is killed on the way"
import json, os, re, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, preloaded, pytest, torch
from zoofast.bundles.bundle import load_bundle, write_bundle
from zoofast.catalog.read import read_catalog
from zoofast.core.cluster import ClusterError, check_client
from zoofast.core.errors import BundleError, CatalogError, ImageError
from zoofast.data.check import check_catalog
from zoofast.images.reader import ImageReader
from zoofast.predict.table import predict_catalog, represent
from zoofast.simulate import simulate_survey
from tiny import tiny_bundle

ROOT = Path(__file__).resolve().parent.parent
ROWS,SHARD,BAD = 2407,40,[7, 500, 2390]            # the last shard alone has a batch of seven

class Trips(torch.nn.Linear):
    "A layer that fails, or kills its process, at a batch of seven; each attempt adds a letter to a file"
    def forward(self, x):
        if len(x)==7:
            with open(self.log, 'a') as f: f.write('x')
            if self.kills: os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError('it trips')
        return super().forward(x)

@pytest.fixture(scope='module')
def sky(tmp_path_factory):
    "A bundle, a catalogue of rows that point to 20 images, three to none, and one process's table"
    tmp = tmp_path_factory.mktemp('sky')
    df = read_catalog(simulate_survey(tmp/'survey', n=20, size=32, fits=False, progress=False))
    tiny_bundle(tmp/'bundle', df)
    big = pd.DataFrame({'id_str': [f'{587722981736579107+i:021d}' for i in range(ROWS)],
                        'file_loc': np.resize(df.file_loc.to_numpy(), ROWS), 'z': np.arange(ROWS)/7})
    big.loc[BAD, 'file_loc'] = [f'gone{i}.jpg' for i in BAD]
    big.to_csv(tmp/'big.csv', index=False)
    big.to_parquet(tmp/'big.parquet', row_group_size=333)
    how = dict(shard_size=SHARD, batch_size=16, columns='z', engine='torch', progress=False)
    predict_catalog(tmp/'bundle', tmp/'big.csv', tmp/'one', **how)
    return tmp,how,pd.read_parquet(tmp/'one')

def same(folder, want, size=SHARD):
    "Bit for bit, and a manifest that is complete"
    pd.testing.assert_frame_equal(pd.read_parquet(folder), want, check_exact=True)
    m = json.loads((folder/'_manifest.json').read_text())
    assert m['complete'] and not (folder/'_progress').exists()
    assert len(list(folder.glob('part-*.parquet')))==-(-len(want)//size)

def environment():
    path = os.pathsep.join(o for o in (str(ROOT), os.environ.get('PYTHONPATH')) if o)
    return {'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'DASK_LOGGING__DISTRIBUTED': 'critical'}

def start(*words):
    return subprocess.Popen([sys.executable, *map(str, words)], env={**os.environ, **environment()},
                            stderr=subprocess.DEVNULL)

def predicts(sky, out, *words, catalog='big.csv'):
    tmp,how,_ = sky
    words = ['predict', tmp/'bundle', tmp/catalog, '--out', out, '--shard-size', SHARD, '--batch-size', 16,
             '--columns', 'z', '--engine', 'torch', *words]
    return preloaded.start(['-m', 'zoofast.cli', *words], env=environment())

def wait_for(what, process, seconds=300):
    "Wait until something is so, while a process is at work"
    end = time.time()+seconds
    while not (got := what()):
        assert process.poll() is None, process.communicate()[1]
        assert time.time()<end, 'nothing happens'
        time.sleep(.002)
    return got

def kill(pid):
    try: os.kill(pid, signal.SIGKILL)
    except ProcessLookupError: pass

class Cluster:
    "A scheduler and two workers, each in a process of its own, as on the nodes of a cluster"
    def __init__(self, tmp):
        self.file = tmp/'scheduler.json'
        self.scheduler = start('-m', 'dask', 'scheduler', '--host', '127.0.0.1', '--port', 0, '--no-dashboard',
                               '--scheduler-file', self.file)
        wait_for(self.file.exists, self.scheduler)
        worker = ('-m', 'dask', 'worker', '--scheduler-file', self.file, '--nthreads', 1, '--memory-limit', 0,
                  '--no-dashboard', '--host', '127.0.0.1')
        self.nannies = [start(*worker) for _ in range(2)]

    def pids(self):
        "The processes of the workers themselves, which nannies start again"
        from distributed import Client
        with Client(scheduler_file=str(self.file), set_as_default=False) as c:
            return list(c.run(os.getpid, on_error='ignore').values())

    def kill_worker(self, process, but=()):
        kill(pid := wait_for(lambda: [o for o in self.pids() if o not in but], process)[0])
        return pid

    def end(self):
        for o in (self.scheduler, *self.nannies): kill(o.pid)
        for o in (self.scheduler, *self.nannies): o.wait()

@pytest.mark.slow
def test_all_are_killed(sky, tmp_path):
    "A worker three times, the driver, the scheduler: then the table is one process's"
    out,words = tmp_path/'t',('--tta', 8, '--shard-size', 20)
    def there(): return {o.name: o.stat().st_mtime_ns for o in out.glob('part-*.parquet')}
    cluster = Cluster(tmp_path)
    try:
        driver = predicts(sky, out, *words, '--dask', cluster.file)
        killed = []
        def more(n=3):
            enough = len(there())+n
            wait_for(lambda: len(there())>=enough, driver)
        for _ in range(3):
            more()
            killed.append(cluster.kill_worker(driver, killed))
        more()
        kill(driver.pid)
        assert 'Dask: ' in driver.communicate()[1]
        driver = predicts(sky, out, *words, '--dask', cluster.file)
        more(6)                                            # the last driver's are four at most
        kill(cluster.scheduler.pid)
        said,err = driver.communicate()
        assert driver.returncode==2 and 'is gone; what was done is kept' in err and 'Traceback' not in err, err
    finally: cluster.end()
    kept = there()
    assert len(kept)<121
    driver = predicts(sky, out, *words, '--dask', 2)
    said,err = driver.communicate()
    assert driver.returncode==0 and '2407 rows written' in said and 'dashboard: http' in err, err
    assert {k: v for k,v in there().items() if k in kept}==kept, 'a shard was made again'
    tmp,how,_ = sky
    how = dict(how, tta=8, shard_size=20)
    same(out, predict_catalog(tmp/'bundle', tmp/'big.csv', tmp_path/'one', **how).to_pandas(), 20)

@pytest.mark.slow
def test_two_drivers(sky, tmp_path):
    "With a cluster each, one of them a process without one: each shard is made once"
    all_ = [predicts(sky, tmp_path/'t', *words) for words in (['--dask', 1], ['--dask', 1], [])]
    for o in all_:
        said,err = o.communicate()
        assert o.returncode==0 and '2407 rows written' in said, err
    same(tmp_path/'t', sky[2])

@pytest.mark.slow
def test_local_workers_end_with_their_driver(sky, tmp_path):
    import psutil
    driver = predicts(sky, tmp_path/'t', '--dask', 2)
    wait_for(lambda: len(list((tmp_path/'t').glob('part-*')))>=3, driver)
    children = psutil.Process(driver.pid).children(recursive=True)
    assert len(children)>=2
    kill(driver.pid)
    driver.communicate()
    gone,alive = psutil.wait_procs(children, timeout=120)
    for o in alive: o.kill()
    assert not alive
    assert predicts(sky, tmp_path/'t').wait()==0
    same(tmp_path/'t', sky[2])

@pytest.fixture(scope='module')
def client():
    from zoofast.core.cluster import dask_client
    with dask_client(2) as c: yield c

def tripping(sky, log, kills):
    import cloudpickle
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    model = load_bundle(sky[0]/'bundle', 'cpu')
    model.net.head[1].__class__ = Trips
    model.net.head[1].log,model.net.head[1].kills = str(log),kills
    return model

@pytest.mark.slow
@pytest.mark.parametrize('kills', [False, True])
def test_what_fails_is_named_and_the_rest_is_done(sky, client, tmp_path, kills):
    tmp,how,want = sky
    model = tripping(sky, tmp_path/'log', kills)
    with pytest.raises(ClusterError) as e: predict_catalog(model, tmp/'big.csv', tmp_path/'t', client=client, **how)
    said = str(e.value)
    ids = f'{want.id_str[2400]} to {want.id_str[2406]}'
    assert f'1 shard could not be made: shard 60 (rows 2401 to 2407, {ids})' in said
    assert ('5 workers died' if kills else 'failed 3 times: RuntimeError: it trips') in said
    assert len((tmp_path/'log').read_text()) in ((5, 6) if kills else (3,))     # a first death may be too quick to tell
    assert len(list((tmp_path/'t').glob('part-*.parquet')))==60
    predict_catalog(tmp/'bundle', tmp/'big.csv', tmp_path/'t', client=client, **how)
    same(tmp_path/'t', want)

@pytest.mark.slow
def test_another_model(sky, client, tmp_path, monkeypatch):
    tmp,how,_ = sky
    other = load_bundle(tmp/'bundle', 'cpu')
    with torch.no_grad(): other.net.head[1].bias += 1e-3
    write_bundle(tmp_path/'other', other)
    from zoofast.predict import table
    real = table._source
    monkeypatch.setattr(table, '_source', lambda model, asked: real(model, tmp_path/'other'))
    with pytest.raises(BundleError, match='the worker at tcp.*another than that of the process that asks: weights'):
        predict_catalog(tmp/'bundle', tmp/'big.csv', tmp_path/'t', client=client, **how)
    monkeypatch.undo()
    predict_catalog(tmp/'bundle', tmp/'big.csv', tmp_path/'t', client=client, **how)
    with pytest.raises(CatalogError, match='another model.*weights sha256 differs'):
        predict_catalog(tmp_path/'other', tmp/'big.csv', tmp_path/'t', client=client, **how)
    same(tmp_path/'t', sky[2])

@pytest.mark.slow
def test_all_that_can_be_asked(sky, client, tmp_path):
    "Each way as by one process: in memory, joined to a file, several looks, a model in memory, an encoder by its name"
    tmp,how,want = sky
    head = pd.read_csv(tmp/'big.csv', dtype={'id_str': str}).head(100)
    head['file_loc'] = [o if os.path.isabs(o) else str(tmp/o) for o in head.file_loc]
    head.to_parquet(tmp_path/'head.parquet')
    how = dict(how, shard_size=30)
    model = load_bundle(tmp/'bundle', 'cpu')
    calls = [(predict_catalog, model, {}), (predict_catalog, tmp/'bundle', dict(tta=4, mc_dropout=2)),
             (represent, tmp/'bundle', {}), (represent, 'test_vit', dict(size=32, pretrained=False)),
             (represent, model.net.encoder, dict(reader=ImageReader(32)))]
    for i,(f,m,kw) in enumerate(calls):
        if kw.get('pretrained') is False: torch.manual_seed(1)
        kw = {**how, **kw}
        a = f(m, head, **kw)
        if kw.get('pretrained') is False: torch.manual_seed(1)
        pd.testing.assert_frame_equal(f(m, head, client=client, **kw), a, check_exact=True)
        if kw.get('pretrained') is False: continue
        for name in (f'{i}.parquet', f'{i}.csv'):
            f(m, tmp_path/'head.parquet', tmp_path/name, client=client, **kw)
            f(m, tmp_path/'head.parquet', tmp_path/f'one{name}', **kw)
            assert (tmp_path/name).read_bytes()==(tmp_path/f'one{name}').read_bytes()
    with pytest.raises(ImageError, match='gone7.jpg'):
        predict_catalog(model, head, tmp_path/'raise', client=client, **dict(how, on_bad='raise'))

@pytest.mark.slow
def test_check(sky, client):
    "Images opened by the workers: what is wrong is what one process finds"
    df = read_catalog(sky[0]/'big.csv').drop_duplicates('file_loc').reset_index(drop=True)
    broken = sky[0]/'broken.jpg'
    broken.write_bytes(b'no image')
    df.loc[2, 'file_loc'] = str(broken)
    want,got = check_catalog(df, progress=False),check_catalog(df, progress=False, client=client)
    assert len(got.bad)==4 and 'broken.jpg' in got.bad.reason.str.cat()
    for k in ('ok', 'bad', 'suspect'): pd.testing.assert_frame_equal(getattr(got, k), getattr(want, k))
    for o in (False, lambda f: None):
        with pytest.raises(ValueError, match='goes without'): check_catalog(df, open_images=o, client=client)

def test_workers_that_are_threads_give_memory_back(sky):
    "A worker keeps freed memory from shard to shard, and no longer: here it is the memory of this process"
    from distributed import Client, LocalCluster
    from zoofast.encoders import compute
    tmp,how,want = sky
    here = dict(processes=False, threads_per_worker=1, dashboard_address=None)
    few = read_catalog(tmp/'big.csv').head(100)
    with LocalCluster(1, **here) as cluster, Client(cluster, set_as_default=False) as client:
        got = predict_catalog(tmp/'bundle', few, batch_size=16, engine='torch', progress=False, client=client)
        pd.testing.assert_frame_equal(got[want.columns.drop('z')], want.drop(columns='z').head(100), check_dtype=False)
        for _ in range(100):
            if not compute._inside: break
            time.sleep(.1)
        assert compute._inside==0

def page_faults(n, numbers):
    "Of a worker that is prepared as for predictions, and makes one large tensor after the other"
    import resource
    from zoofast.encoders.compute import memory_kept
    from zoofast.predict.table import _settle
    _settle(('another machine', 0))
    def there(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with memory_kept():
        torch.ones(numbers)
        before = there()
        for _ in range(n): torch.ones(numbers)
        return there()-before

@pytest.mark.slow
@pytest.mark.skipif(sys.platform!='linux', reason='the memory of glibc')
def test_local_workers_keep_their_memory(client):
    "The memory of a tensor is there for the next one, rather than given back and cleared again, page by page"
    import cloudpickle
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pages = 12*2**20*4//4096
    assert client.submit(page_faults, 30, 12*2**20, pure=False).result()<3*pages

@pytest.mark.slow
def test_what_can_be_no_cluster(sky, monkeypatch):
    tmp,how,_ = sky
    for o,said in ((0, '0 workers will not do'), (True, 'bool will do|bool will not do'),
                   ('two', "'two' is no address"), (2.5, 'float will not do')):
        for f in (predict_catalog, represent):
            with pytest.raises(ClusterError, match=said): f(tmp/'nothing', tmp/'nothing.csv', client=o)
    monkeypatch.setitem(sys.modules, 'distributed', None)
    for f in (predict_catalog, represent):
        with pytest.raises(ClusterError, match=r"pip install 'zoofast\[cluster\]'"):
            f(tmp/'nothing', tmp/'nothing.csv', client=2)
    with pytest.raises(ClusterError, match='pip install'): check_catalog(pd.DataFrame(), client=2)
    assert check_client(None) is None

@pytest.mark.parametrize('address,said', [
    ('tls://127.0.0.1:9', 'needs certificates: set distributed.comm.tls'),
    ('http://127.0.0.1:8787', 'that is its dashboard; its own address begins with tcp://'),
    ('no-such-host.invalid:8786', 'no Dask scheduler answers at no-such-host.invalid:8786'),
    pytest.param('tcp://127.0.0.1:9', 'no Dask scheduler answers at tcp://127.0.0.1:9', marks=pytest.mark.slow),
    pytest.param('[::1]:9', 'no Dask scheduler answers', marks=pytest.mark.slow)])
def test_an_address_where_no_scheduler_is(address, said):
    "Before Dask's client tries for half a minute"
    from zoofast.core.cluster import dask_client
    with pytest.raises(ClusterError, match=re.escape(said)):
        with dask_client(address): pass
