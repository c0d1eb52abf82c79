"What runs an encoder: the same answers from torch, ONNX Runtime and OpenVINO, or a reason why not"
import json, subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from torch import nn
onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('openvino')
from zoofast.encoders import engines
from zoofast.bundles.model import GalaxyModel
from zoofast.bundles.bundle import write_bundle
from zoofast.tasks.classes import Classification, MultiLabel
from zoofast.encoders.encoder import GalaxyNet
from zoofast.encoders.sources import create_encoder
from zoofast.encoders.compute import fold_norms
from zoofast.encoders.engines import make_engine
from zoofast.bundles.onnx import *
from zoofast.images.reader import ImageReader
from zoofast.tasks.regression import Regression
from zoofast.tasks.schema import Schema
from zoofast.core.files import cache_dir
from zoofast.tasks.votes import VoteCounts

# name, size, channels: of each kind of encoder
ENCODERS = [('test_efficientnet',64,3), ('resnet10t',64,3), ('test_convnext',64,5), ('test_vit',160,1),
            ('tf_efficientnet_lite0',64,1), ('repvgg_a0',64,3), ('test_nfnet',64,3),
            pytest.param('swin_tiny_patch4_window7_224',224,3, marks=pytest.mark.slow)]

@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch): monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path/'cache'))

@pytest.fixture
def long_jobs(monkeypatch): monkeypatch.setattr(engines, 'AUTO_FROM', 0.)

def encoder(name='test_efficientnet', size=64, channels=3, seed=0):
    "A random encoder whose batch norms have been trained a little, so that folding them is no trifle"
    torch.manual_seed(seed)
    enc = create_encoder(name, size, channels, pretrained=False)
    enc.train()
    with torch.no_grad():
        for p in enc.parameters(): p.add_(0.02*torch.randn_like(p))
        for _ in range(3): enc(torch.rand(4, channels, size, size))
    return enc.eval()

def images(n, channels=3, size=64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n,channels,size,size), dtype=torch.uint8, generator=rng)

def kept(): return sorted((cache_dir().parent/'engines').glob('*.onnx'))

@torch.inference_mode()
def plain(enc, x): return enc(x.float()/255)

def close(a, b): return bool(((a-b).abs()<=1e-4*b.abs().max()).all())

@pytest.mark.slow(but=2)
@pytest.mark.parametrize('name,size,channels', ENCODERS)
@pytest.mark.parametrize('engine', ['torch', 'onnx', 'openvino'])
def test_same_features_for_batches_of_any_size(engine, name, size, channels):
    enc = encoder(name, size, channels)
    e = make_engine(enc, engine)
    for n in (5,1,3):
        x = images(n, channels, size, seed=n)
        got = e(x)
        assert got.dtype==torch.float32 and got.shape==(n, enc.num_features)
        assert close(got, plain(enc, x))
    assert e.name==engine

@pytest.mark.parametrize('name', ['test_efficientnet', 'resnet10t', 'repvgg_a0', 'mobilenetv3_small_050'])
def test_batch_norms_are_folded_and_nothing_changes(name):
    enc,x = encoder(name),images(4)
    before = {k: v.clone() for k,v in enc.state_dict().items()}
    new = fold_norms(enc, x)
    def norms(e): return sum(isinstance(m, nn.BatchNorm2d) for m in e.modules())
    assert norms(enc) and not norms(new)
    a,b = plain(enc, x),plain(new, x)
    assert (a-b).abs().max()<=1e-5*a.abs().max()
    assert all(torch.equal(v, enc.state_dict()[k]) for k,v in before.items())

class Twice(nn.Module):
    "Its convolution's output is used beside the batch norm too: to fold would change it"
    def __init__(self):
        super().__init__()
        self.conv,self.bn = nn.Conv2d(3, 8, 3),nn.BatchNorm2d(8)
    def forward(self, x): y = self.conv(x); return (self.bn(y)+y).mean((2,3))

def test_what_folding_would_change_is_left():
    enc = create_encoder(Twice(), 64).train()
    enc(torch.rand(4,3,64,64))
    assert fold_norms(enc.eval(), images(2)) is enc

def test_first_batch_of_one():
    enc = encoder()
    for engine in ('torch', 'onnx', 'openvino'):
        e = make_engine(enc, engine)
        e(images(1))
        assert close(e(images(4, seed=1)), plain(enc, images(4, seed=1)))

def test_exported_once():
    enc,x = encoder(),images(2)
    make_engine(enc, 'onnx')(x)
    path, = kept()
    was = path.stat().st_ino
    make_engine(enc, 'openvino')(x); make_engine(encoder(), 'onnx')(x)
    assert [o.stat().st_ino for o in kept()]==[was]
    make_engine(encoder(seed=1), 'onnx')(x)
    assert len(kept())==2
    assert not list(path.parent.glob('*.part'))

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('engine', ['onnx', 'openvino'])
@pytest.mark.parametrize('damage', ['cut', 'empty', 'noise', 'other weights', 'other encoder'])
def test_damaged_file_is_made_again(engine, damage):
    enc,x = encoder(),images(3)
    make_engine(enc, engine)(x)
    path, = kept()
    good = path.read_bytes()
    if damage.startswith('other'):
        make_engine(encoder(seed=1) if damage=='other weights' else encoder('resnet10t'), engine)(x)
        other, = set(kept())-{path}
        path.write_bytes(other.read_bytes())
    else: path.write_bytes({'cut': good[:len(good)//2], 'empty': b'', 'noise': bytes(range(256))*64}[damage])
    bad = path.read_bytes()
    assert close(make_engine(enc, engine)(x), plain(enc, x))
    assert path.read_bytes()!=bad, 'the damaged file was used as it is'

class Moody(nn.Module):
    "Its way depends on the image"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
    def forward(self, x): return (self.conv(x) if x.mean().item()<0.1 else -self.conv(x)).mean((2,3))

class Broken(nn.Module):
    "Leaves torch, and hooks or copies of it fail"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
    def __deepcopy__(self, memo):
        if getattr(self, 'copied', False): raise RuntimeError('no second copy')
        new = Broken(); new.load_state_dict(self.state_dict()); new.copied = True
        return new
    def forward(self, x): return torch.tensor(self.conv(x).mean((2,3)).tolist())

@pytest.mark.slow
@pytest.mark.parametrize('level', [0, 255])
@pytest.mark.parametrize('module', [Moody, Broken])
@pytest.mark.parametrize('engine', ['onnx', 'openvino'])
def test_other_numbers_are_refused(module, engine, level, long_jobs, capfd):
    enc,x = create_encoder(module(), 32).eval(),torch.full((2,3,32,32), level, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"engine='{engine}' cannot run this encoder: .*use engine='torch'"):
        make_engine(enc, engine)(x)
    e = make_engine(enc, 'auto', n_images=10**9)
    assert close(e(x), plain(enc, x))
    assert e.name=='torch' and f'not {engine}: ' in e.why
    assert torch.equal(make_engine(enc, 'torch')(x), plain(enc, x))
    assert capfd.readouterr()==('', ''), 'exporters and runtimes stay quiet'

def test_a_wrong_export_is_refused(monkeypatch, long_jobs):
    "Also where the exporter itself is wrong: here it exports another encoder"
    enc,x,real = encoder(),images(2),engines.to_onnx
    monkeypatch.setattr(engines, 'EXPORTERS', ('trace',))
    monkeypatch.setattr(engines, 'to_onnx', lambda net, *args: real(engines._FromBytes(encoder(seed=1)).eval(), *args))
    with pytest.raises(ValueError, match='differ from torch'): make_engine(enc, 'onnx')(x)
    assert close(make_engine(enc, 'auto', 10**9)(x), plain(enc, x))

@pytest.mark.slow
def test_answers_are_compared_too():
    "Features that agree to 1e-4 do not do where the head makes much of a small difference"
    enc,x = encoder(),images(2)
    make_engine(enc, 'onnx', answers=lambda f: f.softmax(1))(x)
    with pytest.raises(ValueError, match='differ'): make_engine(enc, 'onnx', answers=lambda f: torch.sin(f*1e9))(x)

def test_auto_leaves_short_jobs_alone(monkeypatch):
    enc,x = encoder(),images(4)
    monkeypatch.setattr(engines, '_exported', lambda *_: pytest.fail('exported for a short job'))
    for n in (None, 1, 4, 255, 300):
        e = make_engine(enc, 'auto', n_images=n)
        assert close(e(x), plain(enc, x)) and e.name=='torch' and e.why

def test_auto_takes_an_export_that_is_there_in_shorter_jobs(monkeypatch):
    monkeypatch.setattr(engines, 'AUTO_FROM', 1e9)
    enc,x = encoder(),images(20)
    def rates(n):
        e = make_engine(enc, 'auto', n_images=n)
        assert close(e(x), plain(enc, x))
        return set(e.rates)
    monkeypatch.setattr(engines, 'KEPT_FROM', 0.)
    assert rates(10**4)=={'torch'} and not kept()
    make_engine(enc, 'onnx')(x)
    assert rates(10**4)>{'torch'} and len(kept())==1
    monkeypatch.setattr(engines, 'KEPT_FROM', 1e9)
    assert rates(10**4)=={'torch'}

@pytest.mark.parametrize('enough,tried', [(1e9, {'torch','onnx','openvino'}), (0., {'torch','openvino'})])
def test_auto_takes_the_fastest(long_jobs, monkeypatch, enough, tried):
    monkeypatch.setattr(engines, 'ENOUGH', enough)
    enc,x = encoder(),images(20)
    e = make_engine(enc, 'auto', n_images=10**8)
    assert close(e(x), plain(enc, x))
    assert set(e.rates)==tried and e.name==max(e.rates, key=e.rates.get) and e.name in e.why

def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path/'file'))
    enc,x = encoder(),images(2)
    assert close(make_engine(enc, 'onnx')(x), plain(enc, x))

def test_weights_that_change_are_noticed():
    for engine in ('torch', 'onnx'):
        enc,x = encoder(),images(2)
        e = make_engine(enc, engine)
        e(x)
        before = plain(enc, x)
        with torch.no_grad(): next(enc.body.parameters()).mul_(2)
        assert not close(before, plain(enc, x)) and close(e(x), plain(enc, x))

def test_threads(monkeypatch):
    import onnxruntime
    asked,real = [],onnxruntime.InferenceSession
    def session(m, o, **kw):
        asked.append(o.intra_op_num_threads)
        return real(m, o, **kw)
    monkeypatch.setattr(onnxruntime, 'InferenceSession', session)
    make_engine(encoder(), 'onnx')(images(2))
    assert asked==[torch.get_num_threads()]

WITHOUT = """
import sys
for o in sys.argv[2:]: sys.modules[o] = None
import torch
from zoofast.encoders import engines
from zoofast.encoders.sources import create_encoder
engines.AUTO_FROM = 0
enc = create_encoder('test_efficientnet', 64, pretrained=False).eval()
e = engines.make_engine(enc, 'auto', 10**9)
e(torch.zeros(2,3,64,64, dtype=torch.uint8))
print(e.name, '|', e.why)
try: engines.make_engine(enc, sys.argv[1])
except ValueError as e: print(e)
"""

@pytest.mark.slow
@pytest.mark.parametrize('engine,package', [('onnx','onnxruntime'), ('openvino','openvino')])
def test_without_the_package(engine, package, root):
    "An engine that is not installed is named, and how to have it; `auto` goes on without"
    command = [sys.executable, '-c', WITHOUT, engine, 'onnxruntime', 'openvino']
    res = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    auto,explicit = res.stdout.strip().splitlines()
    assert auto.startswith('torch | ') and f'not {engine}: ' in auto
    assert explicit==(f"engine='{engine}': the package {package} cannot be imported; "
                      f"to install it: pip install 'zoofast[{engine}]'")

# the whole model

def survey_model(survey, name='test_efficientnet'):
    folder,df = survey
    task = Classification('morphology').fit(df)
    df = df.assign(file_loc=[str(folder/f) for f in df.file_loc])
    torch.manual_seed(0)
    net = GalaxyNet(encoder(name), task.n_out)
    with torch.no_grad(): net.head[1].weight.mul_(20)              # answers that are sure
    return GalaxyModel(net, task, ImageReader(64), device='cpu'),df

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('engine', ['torch', 'onnx', 'openvino', 'auto'])
def test_predictions_are_the_same(engine, survey, long_jobs):
    model,df = survey_model(survey)
    want,probs = model.predict(df.file_loc, progress=False),model.task.columns[1:]
    # 60 galaxies: the last batch has 4, or one
    for kw in (dict(batch_size=7), dict(batch_size=59), dict(tta=3, mc_dropout=2)):
        a = model.predict(df.file_loc, progress=False, **kw)
        b = model.predict(df.file_loc, progress=False, engine=engine, **kw)
        assert a.columns.equals(b.columns) and a.morphology_pred.equals(b.morphology_pred)
        num = list(a.columns[a.dtypes==float])
        assert np.abs(a[num]-b[num]).to_numpy().max()<1e-4
    assert model.engine is None
    model.set_engine(engine, len(df))
    assert np.abs(model.predict(df.file_loc, progress=False)[probs]-want[probs]).to_numpy().max()<1e-4

def test_a_gpu_is_left_to_torch(survey):
    model,df = survey_model(survey)
    model.net.to('meta')                                           # a device that is not a CPU
    with pytest.raises(ValueError, match="engine='onnx' runs on a CPU, and the model is on meta"):
        model.set_engine('onnx')
    assert model.set_engine('auto', 10**9) is model

@pytest.mark.slow
def test_export_command(survey, tmp_path, run_zoofast):
    "What the command writes, used with onnxruntime alone in another process, gives what `predict` gives"
    model,df = survey_model(survey)
    write_bundle(tmp_path/'bundle', model)
    res = run_zoofast('export', tmp_path/'bundle', '--out', tmp_path/'m.onnx')
    assert res.returncode==0, res.stderr
    assert 'm.onnx' in res.stdout and 'Warning' not in res.stderr
    np.save(tmp_path/'x.npy', np.stack([model.reader(f).numpy() for f in df.file_loc]))
    code = """import json, sys, numpy as np, onnxruntime as ort
s = ort.InferenceSession(sys.argv[1])
meta = s.get_modelmeta().custom_metadata_map
p, = s.run(['probabilities'], {'images': np.load(sys.argv[2])})
assert 'torch' not in sys.modules and p.dtype==np.float32
said = {k: json.loads(meta[k]) for k in ('classes', 'outputs', 'reader', 'versions')}
print(json.dumps(dict(said, p=p.tolist())))"""
    command = [sys.executable, '-c', code, tmp_path/'m.onnx', tmp_path/'x.npy']
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert out.returncode==0, out.stderr
    got,want = json.loads(out.stdout),model.predict(df.file_loc, progress=False)
    assert np.abs(np.array(got['p'])-want[model.task.columns[1:]].to_numpy()).max()<1e-4
    assert [got['classes'][i] for i in np.argmax(got['p'], 1)]==want.morphology_pred.tolist()
    assert got['outputs']==model.task.classes and got['reader']['size']==64
    assert torch.__version__.startswith(got['versions']['torch'])
    res = run_zoofast('export', tmp_path/'bundle', '--out', tmp_path/'m.pt')
    assert res.returncode==2 and 'must end in .onnx' in res.stderr and not (tmp_path/'m.pt').exists()

def tasks():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(id_str=[str(i) for i in range(40)],
                           a=rng.integers(0, 2, 40), b=rng.integers(0, 2, 40),
                           mag=rng.normal(18, 2, 40), frac=rng.uniform(0, 1, 40)))
    schema = Schema.from_name('decals_dr5_ortho')
    votes = VoteCounts(schema)
    return [MultiLabel(['a','b']).fit(df),
            Regression(['mag','frac']).fit(df),
            Regression(['frac'], unit_interval=True).fit(df),
            votes]

@pytest.mark.parametrize('i', range(4), ids=['multilabel', 'regression', 'unit interval', 'votes'])
def test_every_task_exports_its_answers(i, tmp_path):
    task = tasks()[i]
    model = GalaxyModel(GalaxyNet(encoder(), task.n_out), task, ImageReader(64), device='cpu')
    s = ort.InferenceSession(model.export_onnx(tmp_path/'m.onnx'))
    meta,x = s.get_modelmeta().custom_metadata_map,images(3)
    assert s.get_outputs()[0].name=='answers' and s.get_outputs()[0].type=='tensor(float)'
    assert len(json.loads(meta['outputs']))==task.n_out
    got,want = s.run(None, {'images': x.numpy()})[0],model.samples(x)[0]
    assert np.all(np.abs(got-want)<=1e-4*np.maximum(1, np.abs(want)))
    graph = onnx.load(tmp_path/'m.onnx').graph
    constants = {a.t.data_type for n in graph.node for a in n.attribute}
    kinds = constants | {t.data_type for t in graph.initializer}
    assert onnx.TensorProto.DOUBLE not in kinds
    onnx.checker.check_model(str(tmp_path/'m.onnx'))

def test_a_failed_export_leaves_what_was_there(tmp_path, monkeypatch):
    import zoofast.bundles.onnx as export
    task = Classification('a', ['x','y'])
    model = GalaxyModel(GalaxyNet(encoder(), 2), task, ImageReader(64), device='cpu')
    (tmp_path/'m.onnx').write_text('mine')
    def fail(*_): raise RuntimeError('no exporter today')
    monkeypatch.setattr(export, 'to_onnx', fail)
    with pytest.raises(ValueError, match='cannot be exported to ONNX: no exporter today'):
        model.export_onnx(tmp_path/'m.onnx')
    assert [o.read_text() for o in tmp_path.glob('*.onnx*')]==['mine']
