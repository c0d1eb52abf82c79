"""What users of release 0.1.0 have on their disks loads, and goes on: bundles, killed runs, sweeps and predictions,
answers, indices, caches

tests/fixtures/release-0.1.0/make.py made the files with that release, and wrote down what it made of them itself."""
import json, os, shutil, tempfile
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from filelock import FileLock

FIXTURES = Path(__file__).resolve().parent/'fixtures'/'release-0.1.0'
# where they were made: unfinished tables and caches know files by their places
PLACE = Path('/tmp/zoofast-release-0.1.0')
pytestmark = pytest.mark.skipif(os.name=='nt', reason='the files were made in /tmp')
TASKS = ['classification', 'multilabel', 'regression', 'votes']

@pytest.fixture(scope='module')
def old():
    "The user's folder, in its place"
    with FileLock(str(PLACE)+'.lock'):
        shutil.rmtree(PLACE, ignore_errors=True)
        shutil.copytree(FIXTURES, PLACE)
        os.utime(PLACE/'survey'/'catalog.csv', ns=(1_760_000_000_123_456_789,)*2)
        was = os.getcwd()
        os.chdir(PLACE)
        yield PLACE
        os.chdir(was)
        shutil.rmtree(PLACE, ignore_errors=True)

def expected(name): return pd.read_csv(FIXTURES/'expected'/f'{name}.csv', dtype={'id_str': str})

def same(got, name, but=(), rows=None):
    "A table equal to the one that was written down, after the same trip through a file"
    with tempfile.TemporaryFile('w+') as f:
        got.to_csv(f, index=False)
        f.seek(0)
        got = pd.read_csv(f, dtype={'id_str': str})
    drop = ['file_loc', *but]
    got,want = (o.drop(columns=drop, errors='ignore') for o in (got, expected(name)[:rows]))
    pd.testing.assert_frame_equal(got, want, rtol=1e-4, atol=1e-5)

def loaders():
    from zoofast.all import GalaxyDataLoaders
    return GalaxyDataLoaders.from_catalog('survey/catalog.csv', 'morphology', size=32, batch_size=8, valid=0.3,
                                          device='cpu', cache='memory', progress=False)

@pytest.mark.parametrize('name', TASKS)
def test_bundles_predict_the_same(old, name):
    from zoofast.all import predict_catalog
    coverage = {} if name=='votes' else dict(coverage=0.8)
    preds = predict_catalog(f'bundles/{name}', 'survey/catalog.csv', tta=2, engine='torch', progress=False, **coverage)
    same(preds, name)

def test_a_bundle_keeps_its_loss(old):
    "Its name is that of a module which is elsewhere now; a stranger's names are refused as before"
    from zoofast.all import load_bundle
    from zoofast.tasks.losses import FocalCrossEntropy, loss_from_config
    saved = json.loads((old/'bundles'/'classification'/'config.json').read_text())['loss']
    assert saved['name']=='zoofast.losses.FocalCrossEntropy' and len(saved['args']['weight'])==5
    learn = load_bundle('bundles/classification').to_learner(loaders())
    assert isinstance(learn.loss_func, FocalCrossEntropy)
    np.testing.assert_allclose(learn.loss_func.weight, saved['args']['weight'])
    for name in ('zoofast.losses.load_bundle', 'zoofast.measures.torch', 'zoofast.save.os'):
        with pytest.raises(ValueError, match='is no loss of'): loss_from_config({'name': name})

def test_a_killed_run_goes_on(old):
    from zoofast.all import galaxy_learner, predict_catalog
    small = dict(pretrained=False, dims=(4, 4, 6, 8), depths=(1, 1, 1, 1))
    learn = galaxy_learner(loaders(), 'test_convnext', save_dir='run', learning_rate=3e-3, loss_func='focal', ema=0.9,
                           clip_grad=1., precision='fp32', scheduler_kwargs={'sched': 'cosine', 'warmup_epochs': 1},
                           **small)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(3, freeze_epochs=1, resume=True)
    want = json.loads((FIXTURES/'expected'/'run.json').read_text())
    now = pd.DataFrame(learn.history).drop(columns='call')           # which that release did not know
    pd.testing.assert_frame_equal(now, pd.DataFrame(want['history']), rtol=1e-4)
    assert learn.best_epoch['epoch']==want['best_epoch']['epoch']
    same(predict_catalog(learn, 'survey/catalog.csv', engine='torch', progress=False), 'run')

@pytest.mark.slow
def test_a_sweep_goes_on(old):
    "The trial that was killed is trained to its end, one more is made, and those that were there are kept"
    pytest.importorskip('optuna')
    from zoofast.all import SweepData, run_sweep
    from zoofast.encoders.compute import has_bf16
    if not has_bf16(torch.device('cpu')): pytest.skip('its trials are of a CPU that computes in bf16')
    settings = dict(method='random', metric=dict(name='valid_loss', goal='minimize'),
                    parameters=dict(learning_rate=dict(distribution='log_uniform_values', min=1e-4, max=1e-2),
                                    training_mode=dict(values=['full', 'head_only'])))
    data = SweepData('survey/catalog.csv', 'morphology', valid=0.3, device='cpu', cache='memory', progress=False)
    fixed = dict(encoder='bundles/classification', epochs=2, freeze_epochs=1, size=32, batch_size=8)
    _,table = run_sweep(settings, data, 'sweep', 4, fixed=fixed)
    assert table.state.tolist()==['finished']*4 and table.tries.tolist()==[1, 1, 2, 1]
    same(table.iloc[:3], 'sweep', ['seconds', 'host', 'began'], rows=3)      # the fourth is of today's recipe

def test_an_unfinished_prediction_goes_on(old):
    from zoofast.all import predict_catalog
    there = {o.name: o.stat().st_mtime_ns for o in Path('shards').glob('part-*.parquet')}
    assert len(there)==2
    saved = predict_catalog('bundles/classification', 'survey/catalog.csv', 'shards', shard_size=8, batch_size=8,
                            engine='torch', progress=False)
    assert {o: (old/'shards'/o).stat().st_mtime_ns for o in there}==there, 'a shard was made again'
    same(saved.to_pandas(), 'shards')

@pytest.mark.slow
@pytest.mark.parametrize('name', TASKS)
def test_answers_are_judged_the_same(old, name):
    from zoofast.all import Answers
    kept = old/'kept'/name
    kept.mkdir(parents=True)
    shutil.copytree(old/'answers'/name/'answers', kept/'answers')
    a = Answers(kept, progress=False)
    same(a.galaxies(), f'answers_{name}')
    plain = lambda o: o.to_dict('list') if hasattr(o, 'to_dict') else float(o)
    got = json.loads(json.dumps(a.scores(), default=plain))
    want = json.loads((FIXTURES/'expected'/f'answers_{name}.json').read_text())
    got,want = (pd.json_normalize(o).iloc[0] for o in (got, want))
    pd.testing.assert_series_equal(got, want, rtol=1e-5, check_names=False, check_dtype=False)

def test_an_index_and_a_pca(old):
    from zoofast.all import compress_features, find_similar, read_pca
    first = pd.read_parquet('features/features.parquet').id_str[0]
    same(find_similar('features/index', first, 5), 'similar')
    pca,made = read_pca('features/pca.parquet'),pd.read_parquet('features/pca.parquet')
    again = compress_features('features/features.parquet', pca=pca, progress=False)
    np.testing.assert_allclose(again.filter(like='pca_'), made.filter(like='pca_'), atol=1e-5)

def test_decoded_images_are_found(old, monkeypatch):
    "Files that look as they did then (place, size, times) have the same keys, and their pixels come from the old cache"
    import zoofast
    from zoofast.all import ImageReader
    from zoofast.data import store
    about,real = json.loads((FIXTURES/'expected'/'cache.json').read_text()),os.stat
    class Then:
        def __init__(self, size, changed, created):
            self.st_size = size
            self.st_mtime_ns = changed
            self.st_ctime_ns = created
    for name,t in about['changed'].items(): os.utime(old/'cache'/name, ns=(t, t))
    def stat(path, *a, **k):
        then = about['files'].get(str(path))
        return real(path, *a, **k) if then is None else Then(*then)
    monkeypatch.setattr(os, 'stat', stat)
    monkeypatch.setattr(zoofast, '__version__', '0.1.0')         # another version decodes again, on purpose
    assert {f: store._identity(f).hex() for f in about['files']}==about['keys']
    reader = ImageReader(32, no_flux='black')                    # as that release painted what has no flux
    assert store._config(reader)==about['config']!=store._config(ImageReader(32))
    class Decoded(Exception): pass
    def wide(self, file): raise Decoded(file)
    pixels = np.load(next((old/'cache').glob('*.npy')))
    monkeypatch.setattr(ImageReader, 'wide', wide)
    images = store.ImageStore(list(about['files']), reader, old/'cache', progress=False)
    np.testing.assert_array_equal(images[list(range(len(pixels)))].numpy(), pixels)
