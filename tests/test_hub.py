"""The Hugging Face hub: push, load, cache, and what goes wrong; huggingface_hub's own client against a hub on this
machine"""
import json, os, shutil, subprocess, sys, textwrap
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from huggingface_hub import ModelCard
from stub_hub import Hub
from zoofast.bundles.model import GalaxyModel
from zoofast.bundles.bundle import load_bundle, write_bundle
from zoofast.tasks.classes import Classification
from zoofast.encoders.encoder import GalaxyNet
from zoofast.encoders.sources import create_encoder
from zoofast.images.reader import ImageReader

@pytest.fixture(scope='module')
def good(tmp_path_factory):
    torch.manual_seed(0)
    net = GalaxyNet(create_encoder('test_efficientnet', 64, pretrained=False), 2)
    m = GalaxyModel(net, Classification('ring', [False, True]), ImageReader(64), device='cpu')
    return write_bundle(tmp_path_factory.mktemp('hub')/'rings', m, history=[{'epoch': 0, 'valid_loss': 1.}],
                        metrics={'accuracy': 0.9}, data={'galaxies': {'train': 8}})

@pytest.fixture
def hub():
    h = Hub()
    yield h
    h.shutdown()
    h.server_close()

@pytest.fixture
def run(hub, tmp_path, root):
    "Python code in a process of its own, whose hub is the one on this machine; what it prints"
    def _run(code, token='hf_write', **env):
        own = {'HF_ENDPOINT': hub.url, 'HF_HOME': str(tmp_path/'hf'), 'PYTHONPATH': str(root),
               'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1',
               'NO_PROXY': '127.0.0.1', 'no_proxy': '127.0.0.1'}
        if token: own['HF_TOKEN'] = token
        users = {k: v for k,v in os.environ.items() if not k.startswith(('HF_', 'HUGGING'))}
        command = [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)]
        res = subprocess.run(command, env={**users, **own, **env}, capture_output=True, text=True, timeout=300)
        assert res.returncode==0, res.stderr
        return res.stdout.strip()
    return _run

def attempt(*calls):
    "Code that prints what each call gives, or its error, a line each"
    one = lambda c: f"""
    try: print({c})
    except Exception as e: print(type(e).__name__, e)"""
    modules = ('bundles.save', 'bundles.bundle', 'encoders.sources')
    imports = '; '.join(f'from zoofast.{m} import *' for m in modules)
    return f'    {imports}'+''.join(map(one, calls))

@pytest.mark.slow
def test_push_then_load_predicts_the_same(hub, run, good, survey, tmp_path):
    (good/'pytorch_model.bin').write_bytes(b'mine')
    (good/'notes.txt').write_text('mine')
    url = run(attempt(f"push_to_hub({str(good)!r}, 'me/rings', message='First', private=True)"))
    sha,files = hub.at('me/rings', 'main')
    assert url==f'{hub.url}/me/rings/commit/{sha}' and 'me/rings' in hub.private
    assert files=={n: (good/n).read_bytes() for n in ('README.md', 'config.json', 'history.csv', 'model.safetensors')}
    hub.add('me/rings', {'large.bin': b'0'*1000, 'model.onnx': b'1'})
    hub.asked.clear()
    paths = survey[1].file_loc[:4].tolist()
    code = ("from zoofast.bundles.bundle import load_bundle\n"
            "load_bundle('hf_hub:me/rings', 'cpu').predict({!r}, progress=False).to_parquet({!r})")
    run(code.format(paths, str(tmp_path/'a.parquet')))
    there = pd.read_parquet(tmp_path/'a.parquet')
    here = load_bundle(good, 'cpu').predict(paths, progress=False)
    assert np.allclose(there.ring_True, here.ring_True, atol=1e-6)
    assert {p.rpartition('/')[2] for _,p in hub.asked if '/resolve/' in p}=={'config.json', 'model.safetensors'}
    hub.shutdown()                                   # the second time from the cache, and without a hub
    run(code.format(paths, str(tmp_path/'b.parquet')), HF_HUB_OFFLINE='1')
    assert pd.read_parquet(tmp_path/'b.parquet').equals(there)
    arch = ("from zoofast.encoders.sources import create_encoder\n"
            "print(create_encoder('hf_hub:me/rings', 64).config['arch'])")
    assert 'test_efficientnet' in run(arch, HF_HUB_OFFLINE='1')

@pytest.mark.slow
def test_branches(hub, run, good):
    push = f"push_to_hub({str(good)!r}, 'me/rings')"
    small = f"push_to_hub({str(good)!r}, 'me/rings', revision='small')"
    url = run(attempt(f"[{push}, {small}][1]"))
    assert '/commit/' in url and set(hub.repos['me/rings'])=={'main', 'small'}
    revisions = ('small', hub.at('me/rings', 'main')[0], 'gone')
    said = run(attempt(*(f"load_bundle('hf_hub:me/rings@{r}', 'cpu')" for r in revisions)))
    small,one,gone = said.splitlines()
    assert 'GalaxyModel' in small and 'GalaxyModel' in one
    assert gone.endswith('hf_hub:me/rings@gone: the bundle cannot be fetched: the repository has no such revision')

@pytest.mark.slow
def test_the_command(hub, run, good):
    command = ['zoofast', 'push', str(good), 'me/rings']
    out = run(f"import sys; sys.argv = {command!r}; from zoofast.cli import main\n"
              "try: main()\nexcept SystemExit as e: assert not e.code")
    assert out==f"{hub.url}/me/rings/commit/{hub.at('me/rings', 'main')[0]}"

@pytest.mark.slow
def test_another_learner_starts_from_its_encoder(hub, run, good, survey):
    hub.add('me/rings', {n: (good/n).read_bytes() for n in ('config.json', 'model.safetensors')})
    code = f"""
    import torch, pandas as pd
    from zoofast.all import *
    df = read_catalog({str(survey[0]/'catalog.csv')!r})
    dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=64, cache=None, progress=False)
    learn = galaxy_learner(dls, 'hf_hub:me/rings')
    want = load_bundle({str(good)!r}, 'cpu').net.encoder.state_dict()
    assert all(torch.equal(v.cpu(), want[k]) for k,v in learn.model.encoder.state_dict().items())
    learn.push_to_hub('me/morphologies', license='cc-by-4.0')
    print(learn.encoder_weights)"""
    assert run(code)=='hf_hub:me/rings'
    card = ModelCard(hub.at('me/morphologies', 'main')[1]['README.md'].decode()).data
    assert (card.base_model, card.license, card.pipeline_tag)==('me/rings', 'cc-by-4.0', 'image-classification')
    assert json.loads(hub.at('me/morphologies', 'main')[1]['config.json'])['base_model']=='me/rings'

@pytest.mark.slow
def test_what_cannot_be_pushed(hub, run, good, tmp_path):
    bad,linked = (Path(shutil.copytree(good, tmp_path/n)) for n in ('bad', 'linked'))
    with open(bad/'model.safetensors', 'r+b') as f: f.seek(-1, 2); f.write(b'\1')
    (linked/'README.md').unlink()
    (linked/'README.md').symlink_to('/etc/passwd')
    call = lambda d=good, repo='me/rings', **kw: f"push_to_hub({str(d)!r}, {repo!r}, **{kw})"
    want = [(call(token='hf_read'), 'the token does not allow it'),
            (call(repo='other/rings'), 'the token does not allow it'),
            (call(repo='not a name'), 'not a name'),
            (call(repo='a/b/c'), 'a/b/c'),
            (call(bad), 'checksum'),
            (call(linked), 'outside its folder'),
            ("push_to_hub('hf_hub:me/rings', 'me/rings')", 'folder of a bundle that is here')]
    said = run(attempt(*(c for c,_ in want))).splitlines()
    assert len(said)==len(want)
    for text,(c,w) in zip(said, want): assert text.startswith('BundleError') and w in text, text
    assert 'hf auth login' in run(attempt(call()), token=None)
    assert run(attempt(call()), HF_HUB_OFFLINE='1').endswith('the hub cannot be reached')
    assert run(attempt(call()), HF_ENDPOINT='http://127.0.0.1:9').endswith('the hub cannot be reached')
    assert not hub.repos

@pytest.mark.slow
def test_what_cannot_be_loaded(hub, run, good):
    files = {n: (good/n).read_bytes() for n in ('config.json', 'model.safetensors')}
    for repo in ('rings', 'gated', 'half'): hub.add(f'me/{repo}', files)
    hub.gated.add('me/gated')
    hub.broken = 'me/half/resolve/.*/model.safetensors'
    hub.add('me/other', {'config.json': b'{"architecture": "resnet18"}', 'pytorch_model.bin': b'x'})
    hub.add('me/empty', {'README.md': b'x'})
    want = [('gone', 'there is no such repository'),
            ('gated', 'gated: ask for access'),
            ('half', 'cannot be fetched'),
            ('other', 'not a zoofast bundle'),
            ('empty', 'config.json is missing'),
            ('a b/../c', 'cannot be fetched'),
            ('rings', 'GalaxyModel')]
    load = lambda repo: f"load_bundle('hf_hub:me/{repo}', 'cpu')"
    asked = ', '.join(f"is_bundle('hf_hub:me/{r}')" for r in ('rings', 'other', 'gone'))
    said = run(attempt(*(load(r) for r,_ in want), asked)).splitlines()
    assert said.pop()=='True False False' and len(said)==len(want)
    for text,(r,w) in zip(said, want): assert (text.startswith('BundleError') or r=='rings') and w in text, text
    half,never,there = run(attempt(*map(load, ('half', 'never', 'rings'))), HF_HUB_OFFLINE='1').splitlines()
    assert 'not complete' in half or 'model.safetensors is missing' in half         # config.json alone is in the cache
    assert 'not in the cache, and the hub cannot be reached' in never and 'GalaxyModel' in there
    unreachable = run(attempt("load_bundle('hf_hub:me/never')"), HF_ENDPOINT='http://127.0.0.1:9')
    assert 'not in the cache, and the hub cannot be reached' in unreachable
    assert 'log in' in run(attempt("load_bundle('hf_hub:me/gone')"), token=None)
