"""A bundle from a stranger: what does not fit is refused with one sentence that names the file, nothing is run, no
network is used, no memory is taken"""
import hashlib, json, os, pickle, resource, shutil, socket, stat, struct, subprocess, sys, tempfile, time, zipfile
from pathlib import Path
import numpy as np, pytest, torch
from safetensors.torch import load_file, save_file
from zoofast.core.errors import BundleError
from zoofast.bundles.bundle import is_bundle, load_bundle, write_bundle
from zoofast.bundles.model import GalaxyModel
from zoofast.encoders.encoder import GalaxyNet
from zoofast.encoders.sources import create_encoder
from zoofast.images.reader import ImageReader
from zoofast.tasks.classes import Classification

SIZE,CLASSES = 64,['ring', 'spiral', 'other']

def model_of(arch='test_efficientnet', channels=3, dropout=0.5, **kw):
    torch.manual_seed(0)
    enc = create_encoder(arch, SIZE, channels, pretrained=False, **kw)
    net,task = GalaxyNet(enc, len(CLASSES), dropout),Classification('morphology', CLASSES)
    return GalaxyModel(net, task, ImageReader(SIZE, channels), device='cpu')

@pytest.fixture(scope='module')
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp('good')/'b'
    return write_bundle(folder, model_of(), card='# rings', history=[{'epoch': 0}], params={'lr': 1e-4})

@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "A local folder needs none: whoever asks for an address or a connection fails the test"
    def never(*args, **kwargs): raise AssertionError(f'the network was asked: {args}')
    monkeypatch.setattr(socket, 'getaddrinfo', never)
    monkeypatch.setattr(socket.socket, 'connect', never)

@pytest.fixture
def bundle(good, tmp_path): return Path(shutil.copytree(good, tmp_path/'b'))

def config(d): return json.loads((d/'config.json').read_text())
def say(d, **kw):
    "Change parts of config.json; a name with a dot is inside a part"
    c = config(d)
    for k,v in kw.items():
        part = c
        *at,last = k.split('__')
        for a in at: part = part[a]
        part[last] = v
    (d/'config.json').write_text(json.dumps(c))
def sign(d): say(d, sha256={'model.safetensors': hashlib.sha256((d/'model.safetensors').read_bytes()).hexdigest()})
def weights(d, data):
    (d/'model.safetensors').write_bytes(data)
    sign(d)
def tensors(d, change):
    sd = load_file(d/'model.safetensors')
    change(sd)
    save_file(sd, d/'model.safetensors')
    sign(d)
def header(d, change):
    "Change the header of the weights, and keep the numbers"
    data = (d/'model.safetensors').read_bytes()
    n = int.from_bytes(data[:8], 'little')
    h = json.loads(data[8:8+n])
    change(h)
    h = json.dumps(h).encode()
    weights(d, struct.pack('<Q', len(h))+h+data[8+n:])

class Payload:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (os.mkdir, (self.path,))

def refused(d, *words, seconds=20):
    "It is refused in time, with one sentence that names what is wrong; returns it"
    start = time.perf_counter()
    with pytest.raises(BundleError) as e: load_bundle(d, device='cpu')
    text = str(e.value)
    assert '\n' not in text and len(text)<1000+len(str(d)), text
    for w in words: assert w in text, text
    assert time.perf_counter()-start<seconds
    return text

def test_the_good_one_loads_and_predicts_the_same(good, survey):
    files = survey[1].file_loc[:4].tolist()
    a,b = (m.predict(files, progress=False) for m in (model_of(), load_bundle(good, 'cpu')))
    probs = lambda df: df.filter(like='morphology_').iloc[:,1:].astype(float)
    assert np.allclose(probs(a), probs(b), atol=1e-6)
    saved,loaded = load_file(good/'model.safetensors'),load_bundle(good, 'cpu').net.state_dict()
    assert all(torch.equal(v, saved[k]) for k,v in loaded.items())

# weights that are none

def test_a_pickle_named_safetensors_is_not_unpickled(bundle, tmp_path):
    oldest = lambda o: pickle.dumps(o, 0)
    for how,word in ((pickle.dumps, 'a pickle'), (oldest, 'safetensors'), (saved_by_torch, 'a zip file')):
        weights(bundle, how(Payload(tmp_path/'made')))
        refused(bundle, 'model.safetensors', word)
    assert not (tmp_path/'made').exists()
    # the payload would have done it
    with pytest.raises(Exception): os.mkdir(pickle.loads(pickle.dumps(Payload(tmp_path/'made'))) or tmp_path/'made')
    assert (tmp_path/'made').is_dir()

def saved_by_torch(o):
    with tempfile.TemporaryDirectory() as d:
        torch.save({'w': o}, f'{d}/w.pt')
        return Path(f'{d}/w.pt').read_bytes()

def test_a_pickle_beside_is_left_alone(bundle, tmp_path):
    (bundle/'pytorch_model.bin').write_bytes(saved_by_torch(Payload(tmp_path/'made')))
    load_bundle(bundle, 'cpu')
    (bundle/'model.safetensors').unlink()
    refused(bundle, 'model.safetensors is missing')
    assert not (tmp_path/'made').exists()

def test_a_zip_bomb_is_not_unpacked(bundle, tmp_path):
    with zipfile.ZipFile(tmp_path/'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('zeros', b'\0'*50_000_000)
    weights(bundle, (tmp_path/'bomb.zip').read_bytes())
    refused(bundle, 'model.safetensors', 'a zip file', seconds=2)

@pytest.mark.parametrize('part', [0, 4, 8, 20, 0.001, 0.5, -1])
def test_truncated_weights(bundle, part):
    data = (bundle/'model.safetensors').read_bytes()
    (bundle/'model.safetensors').write_bytes(data[:int(part*len(data)) if 0<part<1 else part])
    refused(bundle, 'model.safetensors')
    sign(bundle)
    refused(bundle, 'model.safetensors', 'no whole safetensors file')

def test_more_bytes_than_the_header_says(bundle):
    weights(bundle, (bundle/'model.safetensors').read_bytes()+b'\0')
    refused(bundle, 'bytes of numbers')

@pytest.mark.parametrize('n', [2**63, 2**64-1, 10**9, 20_000_000])
def test_a_header_of_impossible_length(bundle, n):
    with open(bundle/'model.safetensors', 'r+b') as f: f.write(struct.pack('<Q', n))
    sign(bundle)
    refused(bundle, 'model.safetensors', f'header would have {n} bytes', seconds=2)

def test_a_header_of_hundreds_of_megabytes(bundle):
    n = 300_000_000
    with open(bundle/'model.safetensors', 'wb') as f:
        f.write(struct.pack('<Q', n)+b'{"a":"')
        f.truncate(n+8)                              # zeros that take no room on the disk
    refused(bundle, f'header would have {n} bytes', seconds=2)

NO_HEADERS = [
    ('{"a":'*1_000_000, 'nested too deeply'),
    ('['*100_000+']'*100_000, 'nested too deeply'),
    ('{}', 'bytes of numbers'),
    ('{"a": 1}', 'no type'),
    ('[]', 'list'),
    ('{"a": NaN}', 'no number'),
]
@pytest.mark.parametrize('text,word', NO_HEADERS, ids=range(6))
def test_a_header_that_is_none(bundle, text, word):
    weights(bundle, struct.pack('<Q', len(text))+text.encode()+b'\0'*8)
    refused(bundle, 'model.safetensors', word, seconds=5)

def _first(h): return next(k for k in h if k!='__metadata__')
IMPOSSIBLE = [
    ('data_offsets', [0, 2**62]), ('data_offsets', [-8, 0]), ('data_offsets', [8, 0]),
    ('data_offsets', [0]), ('data_offsets', [0., 4.]),
    ('shape', [2**40, 2**40]), ('shape', [-1]), ('shape', [True]), ('shape', 'all'),
    ('dtype', 'Q8'), ('dtype', ['F32']),
    ('more', 1),
]
@pytest.mark.parametrize('field,value', IMPOSSIBLE)
def test_a_header_with_impossible_entries(bundle, field, value):
    header(bundle, lambda h: h[_first(h)].update({field: value}))
    refused(bundle, 'model.safetensors', _first(load_file_names(bundle)))
def load_file_names(d):
    data = (d/'model.safetensors').read_bytes()
    return json.loads(data[8:8+int.from_bytes(data[:8], 'little')])

def test_tensors_that_share_their_bytes(bundle):
    def change(h): h['head.1.bias']['data_offsets'] = [o-4 for o in h['head.1.bias']['data_offsets']]
    header(bundle, change)
    refused(bundle, 'model.safetensors', 'does not begin')

# weights of another model

def test_a_swapped_head(bundle):
    def five_classes(sd):
        n_in = sd['head.1.weight'].shape[1]
        sd.update({'head.1.weight': torch.rand(5, n_in), 'head.1.bias': torch.rand(5)})
    tensors(bundle, five_classes)
    refused(bundle, "'head.1.weight' has shape (5, ", '3 outputs')

def test_a_swapped_head_of_the_right_shape(bundle):
    before = config(bundle)['sha256']
    tensors(bundle, lambda sd: sd.update({'head.1.weight': sd['head.1.weight']+1}))
    say(bundle, sha256=before)
    refused(bundle, 'model.safetensors has changed', 'checksum')

def test_one_bit_differs(bundle):
    with open(bundle/'model.safetensors', 'r+b') as f: f.seek(-3, 2); f.write(b'\1')
    refused(bundle, 'checksum')

def test_a_changed_header_with_the_same_numbers(bundle):
    data = (bundle/'model.safetensors').read_bytes()
    (bundle/'model.safetensors').write_bytes(data.replace(b'"format":"pt"', b'"format":"tf"'))
    refused(bundle, 'checksum')

def test_tensors_too_many_and_too_few(bundle, good):
    tensors(bundle, lambda sd: sd.update(extra=torch.zeros(1)))
    refused(bundle, "'extra'", 'lacks')
    counter = next(k for k in load_file(good/'model.safetensors') if k.endswith('num_batches_tracked'))
    for name in ('head.1.bias', 'encoder.mean', counter):
        shutil.copy(good/'model.safetensors', bundle)
        tensors(bundle, lambda sd: sd.pop(name))
        refused(bundle, repr(name))

DTYPES = [torch.int8, torch.int32, torch.int64, torch.float64, torch.bool, torch.complex64, torch.uint8]
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_weights_of_another_type(bundle, dtype):
    tensors(bundle, lambda sd: sd.update({'head.1.weight': sd['head.1.weight'].to(dtype)}))
    refused(bundle, "'head.1.weight'", str(dtype), 'torch.float32')

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_halves_become_floats(bundle, dtype):
    tensors(bundle, lambda sd: sd.update({k: v.to(dtype) for k,v in sd.items() if v.is_floating_point()}))
    net = load_bundle(bundle, 'cpu').net
    assert all(torch.equal(v, load_file(bundle/'model.safetensors')[k].to(v.dtype)) for k,v in net.state_dict().items())

@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_weights_that_are_no_numbers(bundle, value):
    def change(sd): sd['head.1.bias'][1] = value
    tensors(bundle, change)
    refused(bundle, "'head.1.bias' holds NaN or infinity")

def test_another_encoder(bundle):
    say(bundle, encoder__arch='test_vit')
    refused(bundle, 'config.json', '64 features')

# config.json

BAD_JSON = {
    'empty': b'',
    'cut': b'{"format": "zoofast-bundle"',
    'list': b'[1]',
    'text': b'"zoofast-bundle"',
    'nested': b'{"a":'*200_000,
    'nested a little': b'{"format": '*80+b'1'+b'}'*80,
    'not utf-8': b'{"format": "\xff\xfe"}',
    'utf-16': '{"format": 1}'.encode('utf-16'),
    'byte-order mark': '\ufeff{"format": 1}'.encode(),
    'twice': b'{"format": "zoofast-bundle", "format": "x"}',
    'NaN': b'{"format": NaN}',
    'infinity': b'{"format": -Infinity}',
    'overflow': b'{"format": 1e999}',
    'digits': b'{"format": '+b'9'*5000+b'}',
    'half a character': b'{"format": "\\ud800"}',
    'zeros': b'\0'*100,
    'pickle': pickle.dumps({'a': 1}),
}
@pytest.mark.parametrize('data', BAD_JSON.values(), ids=BAD_JSON)
def test_a_config_that_is_none(bundle, data):
    (bundle/'config.json').write_bytes(data)
    refused(bundle, 'config.json', 'cannot be read', seconds=5)
    assert not is_bundle(bundle)

def test_a_huge_config(bundle):
    with open(bundle/'config.json', 'wb') as f: f.truncate(10*2**30)
    refused(bundle, 'config.json has more than 16 MB', seconds=2)

BAD_KWARGS = [
    {'checkpoint_path': '/etc/passwd'}, {'pretrained_cfg': {'file': 'evil.pth'}},
    {'pretrained_cfg_overlay': {'url': 'http://x'}},
    {'pretrained': True}, {'cache_dir': '/etc'}, {'num_classes': 10**12}, {'features_only': True}, {'nonsense': 1},
    {'in_chans': 10**9}, {'in_chans': 16000}, {'img_size': 10**6}, {'stem_size': 16384}, {'fix_stem': [1]*1000},
    {'act_layer': 'os.system'}, {'act_layer': 'x'*10**6}, {'device': 'cuda:99'}, {'norm_layer': {'a': 1}},
    {'global_pool': '__import__'}, {'drop_rate': 'x'}]
BAD_VALUES = [
    ('format', 'other'), ('format', None),
    ('format_version', 2), ('format_version', 0), ('format_version', '1'), ('format_version', 1.0),
    ('format_version', True), ('format_version', [1]),
    ('task', None), ('task', {}),
    ('task__kind', 'tarot'), ('task__kind', ['classification']), ('task__kind', None),
    ('task__classes', 5), ('task__classes', 'abc'), ('task__classes', ['a', 'a', 'b']), ('task__classes', [1, '1', 2]),
    ('task__classes', [{'a': 1}, 'b', 'c']), ('task__classes', [None, 'b', 'c']), ('task__classes', [['a'], 'b', 'c']),
    ('task__classes', [1.5, 2, 3]), ('task__classes', []), ('task__classes', ['a']),
    ('task__classes', ['pred', 'a', 'b']), ('task__classes', list(range(10**5))),
    ('task__label', 5), ('task__label', None), ('task__label', ['a']),
    ('task__num_classes', 10**12),
    ('reader', []),
    ('reader__size', 10**9), ('reader__size', -1), ('reader__size', True), ('reader__size', '64'),
    ('reader__channels', 10**9),
    ('reader__stretch', 'os.system'), ('reader__stretch', {'kind': '__import__'}), ('reader__stretch', ['a']),
    ('reader__stretch', None),
    ('reader__margin', 1e9),
    ('reader__crop', 'all'),
    ('reader__command', 'rm'),
    ('encoder', 'resnet18'),
    ('encoder__size', 10**9), ('encoder__size', 96), ('encoder__size', 64.5),
    ('encoder__channels', 10**9), ('encoder__channels', 1),
    ('encoder__num_features', 10**9), ('encoder__num_features', 7),
    ('encoder__mean', None), ('encoder__mean', [0.5]), ('encoder__mean', ['a', 'b', 'c']),
    ('encoder__mean', [0.1]*10**5),
    ('encoder__std', [0, 1, 1]), ('encoder__std', [-1, 1, 1]),
    ('encoder__arch', 5), ('encoder__arch', {'a': 1}), ('encoder__arch', ''), ('encoder__arch', 'no_such'),
    ('encoder__arch', 'local-dir:/etc'), ('encoder__arch', 'hf_hub:some/one'), ('encoder__arch', 'hf-hub:some/one'),
    ('encoder__arch', '../../etc/passwd'), ('encoder__arch', 'test_vit.r160_in1k:x'),
    ('encoder__kwargs', None), ('encoder__kwargs', [1]),
    *(('encoder__kwargs', {'in_chans': 3, **kw}) for kw in BAD_KWARGS),
    ('head', []), ('head', {}),
    ('head__dropout', -1), ('head__dropout', 1), ('head__dropout', 2), ('head__dropout', '0.5'),
    ('head__dropout', None), ('head__dropout', True),
    ('sha256', None), ('sha256', {}),
    ('sha256__model.safetensors', None), ('sha256__model.safetensors', 'x'), ('sha256__model.safetensors', ['0'*64]),
    ('sha256__../model.safetensors', '0'*64),
    ('sha256__/etc/passwd', '0'*64),
    ('sha256__weights.bin', '0'*64),
]
@pytest.mark.parametrize('name,value', BAD_VALUES, ids=[f'{k}={v!r}'[:60] for k,v in BAD_VALUES])
def test_a_config_that_says_what_cannot_be(bundle, name, value):
    say(bundle, **{name: value})
    refused(bundle, str(bundle))

def test_other_versions_say_which_is_read(bundle):
    say(bundle, format_version=2)
    refused(bundle, 'version 2', 'reads version 1', 'a newer one is needed')
    say(bundle, format_version=0)
    assert 'newer' not in refused(bundle, 'version 0', 'reads version 1')

def test_anothers_config(bundle):
    (bundle/'config.json').write_text(json.dumps({'architecture': 'resnet18', 'pretrained_cfg': {}}))
    refused(bundle, 'local-dir:')

# the folder

def test_a_link_out_of_the_folder(bundle, good, tmp_path):
    for name in ('model.safetensors', 'config.json'):
        for target in (tmp_path/'elsewhere', Path('../elsewhere')):
            shutil.copy(good/name, tmp_path/'elsewhere')
            (bundle/name).unlink()
            (bundle/name).symlink_to(target)
            refused(bundle, name, 'outside its folder')
        (bundle/name).unlink()
        shutil.copy(good/name, bundle)
    (bundle/'config.json').unlink()
    (bundle/'config.json').symlink_to('/etc/passwd')
    assert 'root' not in refused(bundle, 'config.json', 'outside its folder').replace(str(bundle), '')

def test_links_inside_the_folder_and_to_it(bundle, tmp_path):
    (bundle/'model.safetensors').rename(bundle/'weights')
    (bundle/'model.safetensors').symlink_to('weights')
    (tmp_path/'link').symlink_to(bundle)
    assert load_bundle(tmp_path/'link', 'cpu').task.classes==CLASSES

def test_a_snapshot_of_the_hubs_cache(good, tmp_path):
    snap,blobs = tmp_path/'models--me--rings'/'snapshots'/('a'*40),tmp_path/'models--me--rings'/'blobs'
    for o in (snap, blobs): o.mkdir(parents=True)
    for name in ('model.safetensors', 'config.json'):
        shutil.copy(good/name, blobs/f'{name}1')
        (snap/name).symlink_to(f'../../blobs/{name}1')
    assert load_bundle(snap, 'cpu').task.classes==CLASSES
    blobs.rename(tmp_path/'elsewhere')
    blobs.symlink_to(tmp_path/'elsewhere')
    refused(snap, 'outside its folder')

def test_links_in_a_circle_and_to_nowhere(bundle):
    for target in ('model.safetensors', 'nowhere'):
        (bundle/'model.safetensors').unlink()
        (bundle/'model.safetensors').symlink_to(target)
        refused(bundle, 'model.safetensors')

@pytest.mark.parametrize('name', ['model.safetensors', 'config.json'])
@pytest.mark.parametrize('kind', ['pipe', 'socket', 'device', 'folder'])
def test_what_is_no_file_does_not_hang(bundle, name, kind):
    p = bundle/name
    p.unlink()
    if kind=='pipe': os.mkfifo(p)
    elif kind=='folder': p.mkdir()
    elif kind=='socket':
        here = os.getcwd()
        os.chdir(bundle)                             # the name of a socket may have 107 letters
        socket.socket(socket.AF_UNIX).bind(name)
        os.chdir(here)
    else:
        try: os.mknod(p, stat.S_IFCHR | 0o666, os.makedev(1, 5))       # /dev/zero, which never ends
        except PermissionError: pytest.skip('only root makes devices')
    refused(bundle, name, 'no ordinary file', seconds=2)

@pytest.mark.slow
def test_no_permission(good):
    "As another user where the tests run as root, who may read everything"
    closed = ['model.safetensors', 'config.json', '.']
    with tempfile.TemporaryDirectory(dir='/tmp') as home:
        os.chmod(home, 0o755)
        for i,o in enumerate(closed): (Path(shutil.copytree(good, f'{home}/b{i}'))/o).chmod(0)
        code = f"""import os; from zoofast.bundles.bundle import load_bundle\nif os.getuid()==0: os.setuid(65534)
for i in range({len(closed)}):
    try: load_bundle(f'{home}/b{{i}}')
    except Exception as e: print(type(e).__name__, e)"""
        out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.splitlines()
        for i,o in enumerate(closed): Path(home, f'b{i}', o).chmod(0o755)
    assert len(out)==len(closed) and all(o.startswith('BundleError') and 'ermission' in o for o in out), out

@pytest.mark.parametrize('source', ['', 'nowhere', 'a\0b', 'x'*5000, '/dev/null', '~nobody_at_all/x'], ids=range(6))
def test_sources_that_are_none(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(source)

# memory

BOMBS = [
    ('test_vit', dict(img_size=16384, dynamic_img_size=True)),
    ('test_vit', dict(embed_dim=16384, depth=16384)),
    ('test_vit', dict(depth=16384)),
    ('test_vit', dict(mlp_ratio=16384)),
    ('test_vit', dict(img_size=16384, patch_size=1)),
    ('test_efficientnet', dict(in_chans=1024, stem_size=16384)),
    ('resnet18', dict(layers=[16384]*250)),
    ('resnet18', dict(base_width=16384, cardinality=16384)),
    ('swin_tiny_patch4_window7_224', dict(img_size=8192, window_size=128)),
    ('convnext_atto', dict(depths=[16384]*4, dims=[16384]*4)),
]
@pytest.mark.parametrize('arch,kw', BOMBS, ids=str)
def test_an_encoder_too_large_for_its_file_takes_no_memory(bundle, arch, kw):
    say(bundle, encoder__arch=arch, encoder__kwargs={'in_chans': 3, **kw})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(bundle)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before<300_000       # KB

def test_an_image_of_millions_of_pixels_is_not_computed(tmp_path):
    """An encoder that takes any size, and a config that asks for the largest there is: it loads at once, for no image
    is encoded"""
    d = write_bundle(tmp_path/'b', model_of())
    say(d, encoder__size=8192, reader__size=8192)
    before,start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,time.perf_counter()
    load_bundle(d, 'cpu')
    assert time.perf_counter()-start<10 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before<300_000

@pytest.mark.slow
def test_memory_is_that_of_the_model(tmp_path):
    "The weights are read straight into the model: loading takes the model's size, not twice that"
    d = write_bundle(tmp_path/'b', model_of('resnet50'))
    code = f"""
import sys, resource
import timm, zoofast.bundles.bundle as b
small = b.load_bundle({str(write_bundle(tmp_path/'small', model_of()))!r}, 'cpu')
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
m = b.load_bundle({str(d)!r}, 'cpu')
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)*1024)"""
    used = int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)
    size = (d/'model.safetensors').stat().st_size
    assert used<2.4*size, f'{used/1e6:.0f} MB for {size/1e6:.0f} MB of weights'

# other ways in

def test_an_encoder_source_is_checked_as_well(bundle, good):
    assert create_encoder(str(good), SIZE).num_features==config(good)['encoder']['num_features']
    wrong = {'encoder__kwargs': {'img_size': 10**6}, 'encoder__arch': 'local-dir:/etc',
             'sha256': {'../x': '0'*64}, 'format_version': 3}
    for name,value in wrong.items():
        c = config(bundle)
        say(bundle, **{name: value})
        with pytest.raises(ValueError, match='b/config.json|no architecture'): create_encoder(str(bundle), SIZE)
        (bundle/'config.json').write_text(json.dumps(c))
    with open(bundle/'model.safetensors', 'r+b') as f: f.seek(-3, 2); f.write(b'\1')
    with pytest.raises(BundleError, match='checksum'): create_encoder(str(bundle), SIZE)

HONEST = [('test_vit', 1), ('test_vit', 5), ('test_convnext', 3), ('resnet10t', 4),
          ('swin_tiny_patch4_window7_224', 3), ('test_nfnet', 3), ('mixer_s32_224', 3)]
@pytest.mark.slow(but=2)
@pytest.mark.parametrize('arch,channels', HONEST)
def test_honest_bundles_of_many_kinds_load(tmp_path, arch, channels):
    m = model_of(arch, channels)
    back = load_bundle(write_bundle(tmp_path/'b', m), 'cpu')
    x = torch.rand(2, channels, SIZE, SIZE)
    with torch.inference_mode(): assert torch.equal(m.net(x), back.net(x))
