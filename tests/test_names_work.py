"Whichever way a name is imported, what higher folders add to its class is there"
import subprocess, sys
import pytest, torch
from zoofast.bundles.bundle import write_bundle
from zoofast.bundles.model import GalaxyModel
from zoofast.encoders.encoder import GalaxyNet
from zoofast.encoders.sources import create_encoder
from zoofast.images.reader import ImageReader
from zoofast.tasks.classes import Classification

LEARNER = ['save_bundle', 'calibrate', 'push_to_hub', 'save_encoder', 'to_model', 'show_results', 'profile', 'tta']
MODEL = ['export_onnx', 'to_learner', 'predict']

def run(code):
    got = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert got.returncode==0, got.stderr
    return got.stdout

@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    net = GalaxyNet(create_encoder('resnet10t', size=32, pretrained=False), 2)
    model = GalaxyModel(net, Classification('ring', [False, True]), ImageReader(32), device='cpu')
    return write_bundle(tmp_path_factory.mktemp('names')/'bundle', model)

# A learner of galaxy_learner is a GalaxyLearner (tests/test_training.py), of which a method is there or is not
@pytest.mark.slow
@pytest.mark.parametrize('imports,learner', [
    ('from zoofast.training import galaxy_learner', 'galaxy_learner.__globals__["GalaxyLearner"]'),
    ('from zoofast import galaxy_learner', 'galaxy_learner.__globals__["GalaxyLearner"]'),
    ('import zoofast as zf; galaxy_learner = zf.galaxy_learner', 'galaxy_learner.__globals__["GalaxyLearner"]'),
    ('from zoofast.all import *', 'GalaxyLearner'),
    ('from zoofast.training import GalaxyLearner', 'GalaxyLearner'),
])
def test_a_learner_has_what_is_added(imports, learner):
    run(f'{imports}\nlacks = [o for o in {LEARNER} if not hasattr({learner}, o)]\nassert not lacks, lacks')

@pytest.mark.slow
@pytest.mark.parametrize('imports', ['from zoofast.bundles import load_bundle', 'from zoofast import load_bundle',
    'import zoofast as zf; load_bundle = zf.load_bundle', 'from zoofast.all import *'])
def test_a_model_has_what_is_added(imports, bundle):
    run(f'{imports}\nmodel = load_bundle({str(bundle)!r}, "cpu")\n'
        f'lacks = [o for o in {MODEL} if not hasattr(model, o)]\nassert not lacks, lacks')

@pytest.mark.slow
def test_a_learner_in_hand_has_what_is_added(bundle, tmp_path):
    "Made from the bundle and saved again, the catalogue included"
    run(f"""import os
os.environ['ZOOFAST_CACHE'] = {str(tmp_path/'cache')!r}
import zoofast as zf
df = zf.read_catalog(zf.simulate_survey({str(tmp_path/'survey')!r}, n=12, size=32, fits=False, progress=False))
model = zf.load_bundle({str(bundle)!r}, 'cpu')
df['ring'] = [False, True]*6
dls = zf.GalaxyDataLoaders.from_catalog(df, task=model.task, reader=model.reader, batch_size=4)
learn = model.to_learner(dls)
assert all(hasattr(learn, o) for o in {LEARNER})
learn.save_bundle({str(tmp_path/'again')!r})
assert zf.load_bundle({str(tmp_path/'again')!r}, 'cpu').task.classes==[False, True]""")
