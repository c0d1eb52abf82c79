"""What makes zoofast fast changes no answer: each option on and off gives the same features, losses and models, and a
step waits for no device. No timings here"""
from zoofast.all import *
import copy, functools, os, shutil, subprocess, sys, pytest, torch         # after it: fastai has a `copy` of its own
from torch.utils._python_dispatch import TorchDispatchMode

@pytest.fixture(scope='module')
def dls(survey):
    return GalaxyDataLoaders.from_catalog(survey[1].head(30), 'morphology', size=64, batch_size=8, progress=False)

def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): f(learn)
    return learn

def first_losses(dls, encoder='tf_efficientnet_lite0', **kw):
    "Training loss of each step of an epoch, and the validation loss"
    seen = []
    class Note(Callback):
        def after_loss(self):
            if self.training: seen.append(float(self.loss.detach()))
    pretrained = encoder=='tf_efficientnet_lite0'
    learn = quiet(galaxy_learner(dls, encoder, pretrained=pretrained, cbs=Note(), keep_best=False, **kw),
                  lambda l: l.fit(1))
    return seen,learn.history[-1]['valid_loss']

@pytest.fixture(scope='module')
def usual(dls): return functools.cache(lambda encoder: first_losses(dls, encoder))

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('encoder,kw', [
    ('tf_efficientnet_lite0', dict(channels_last=False)),
    ('test_vit', dict(channels_last=False)),
    ('tf_efficientnet_lite0', dict(opt_kwargs=dict(fused=False)))], ids=str)
def test_layout_and_fused_step_change_nothing(dls, usual, encoder, kw):
    (a,va),(b,vb) = usual(encoder),first_losses(dls, encoder, **kw)
    assert a==pytest.approx(b, abs=5e-3) and va==pytest.approx(vb, abs=5e-3) and len(a)>2

def test_channels_last_is_what_it_says(dls):
    is_last = lambda x: x.is_contiguous(memory_format=torch.channels_last)
    for on in (True, False):
        learn = galaxy_learner(dls, 'tf_efficientnet_lite0', channels_last=on)
        stem,seen = learn.net.encoder.body.conv_stem,[]
        h = stem.register_forward_pre_hook(lambda m,a: seen.append(is_last(a[0])))
        quiet(learn, lambda l: l.fit(1))
        predict_catalog(learn, dls.catalog.head(3), progress=False)
        h.remove()
        assert set(seen)=={on} and is_last(learn.net.encoder.body.conv_stem.weight)==on

@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs a compiler')
@pytest.mark.slow
def test_compiled(dls, usual):
    (a,va),(b,vb) = usual('test_vit'),first_losses(dls, 'test_vit', compile=True)
    assert a==pytest.approx(b, abs=5e-3) and va==pytest.approx(vb, abs=5e-3)

def test_compile_keeps_names_and_copies(dls):
    "Nothing is compiled before the encoder is used: bundles, copies and features are as without it"
    kw = dict(training_mode='head_only', learning_rate=1e-2)
    a,b = (galaxy_learner(dls, 'tf_efficientnet_lite0', compile=o, **kw) for o in (False, True))
    assert list(a.net.state_dict())==list(b.net.state_dict())
    for o in (a, b): quiet(o, lambda l: l.fit(2))
    assert a.history==b.history
    assert type(copy.deepcopy(b.net.encoder.body))==type(a.net.encoder.body)

@pytest.mark.slow
def test_cached_features_cost_one_pass(dls):
    """However many epochs the frozen stage has, the encoder sees each galaxy once, and three more random views where
    the head is fitted at once; with cache_features=False in every epoch"""
    def seen(on, epochs, **kw):
        learn,n = galaxy_learner(dls, 'tf_efficientnet_lite0', cache_features=on, **kw),[0]
        def count(m, a): n[0] += len(a[0])
        h = learn.net.encoder.register_forward_pre_hook(count)
        quiet(learn, lambda l: l.fine_tune(0, freeze_epochs=epochs))
        h.remove()
        return n[0],learn
    galaxies = len(dls.train_ds)+len(dls.valid_ds)
    assert [seen(True, e)[0] for e in (1, 4)]==[galaxies+3*len(dls.train_ds)]*2
    assert [seen(True, e, views=0)[0] for e in (1, 4)]==[galaxies]*2
    n,learn = seen(False, 2)
    assert n==2*galaxies and len(learn.history)==2

def test_without_cached_features_the_encoder_stays_as_it_was(dls):
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0', cache_features=False, training_mode='head_only',
                           learning_rate=1e-2)
    before = {k: v.clone() for k,v in learn.net.encoder.state_dict().items()}
    quiet(learn, lambda l: l.fit(2))
    assert all(torch.equal(v, before[k]) for k,v in learn.net.encoder.state_dict().items())

def test_folded_features_are_the_encoders(dls, monkeypatch):
    "Whether batch norms are folded or not, the cached features are the same to 1e-5 of the largest"
    import zoofast.training.freezing as f
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0')
    feats = {}
    for n in (1, 10**9):
        monkeypatch.setattr(f, 'FOLD_FROM', n)
        feats[n] = torch.cat([dl.dataset.store for dl in f.feature_loaders(dls, learn.net, progress=False)])
    a,b = feats[1],feats[10**9]
    assert not torch.equal(a, b) and (a-b).abs().max()<=2e-5*b.abs().max()

def test_hyperparameters_one_at_a_time(dls):
    "`hypers` looks up what fastai's own list holds"
    learn = galaxy_learner(dls, 'test_vit', pretrained=False, blocks='fine')
    learn.opt.set_hypers(lr=1e-3, mom=0.8, wd=0.1)
    n = len(learn.opt.groups)
    assert len(learn.opt.hypers)==n and learn.opt.hypers[-1]==list(learn.opt.hypers)[n-1]
    assert [h['lr'] for h in learn.opt.hypers]==pytest.approx([1e-3*s for s in learn.opt.scales])
    assert {h['mom'] for h in learn.opt.hypers}=={0.8}
    assert [h['lr'] for h in learn.opt.hypers[-2:]]==[1e-3, 1e-3]
    with pytest.raises(IndexError): learn.opt.hypers[n]

class Waits(TorchDispatchMode):
    "Counts how often a number is taken out of a tensor, for which Python would wait for a GPU"
    n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 'local_scalar_dense' in str(func)
        return func(*args, **(kwargs or {}))

def test_the_recorder_waits_for_nothing(dls):
    "The losses are recorded without taking a number out of a tensor"
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0')
    learn.loss,learn.yb,learn.dl = torch.tensor(0.5),(torch.tensor([0, 1]),),learn.dls.train
    with Waits() as w:
        for m in (learn.recorder.loss, learn.recorder.smooth_loss): m.reset(); m.accumulate(learn); m.value
    assert w.n==0
    with Waits() as w: learn.loss.item()
    assert w.n==1

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU (--gpu)')
def test_no_step_waits_for_the_gpu(survey):
    dls = GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, batch_size=4, device='cuda', progress=False)
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0')
    class Watch(Callback):
        order = -999
        def before_backward(self): torch.cuda.set_sync_debug_mode('error')
        def after_step(self): torch.cuda.set_sync_debug_mode('default')
    try: quiet(learn, lambda l: l.fit(2, cbs=Watch()))
    finally: torch.cuda.set_sync_debug_mode('default')

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU (--gpu)')
@pytest.mark.parametrize('encoder', ['convnext_atto', 'tf_efficientnet_lite0', 'test_vit'])
def test_a_seed_repeats_on_a_gpu(survey, encoder):
    def trained():
        dls = GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=160, batch_size=16, device='cuda',
                                             progress=False)
        learn = quiet(galaxy_learner(dls, encoder, pretrained=False), lambda l: l.fit_one_cycle(2, 1e-3))
        return learn.net.state_dict()
    a,b = trained(),trained()
    assert all(torch.equal(v, b[k]) for k,v in a.items())

def test_validation_in_a_fit_is_in_inference_mode_and_outside_gives_ordinary_tensors(dls):
    seen = []
    class Note(Callback):
        def after_pred(self): seen.append((self.training, torch.is_inference(self.pred)))
    learn = quiet(galaxy_learner(dls, 'tf_efficientnet_lite0', cbs=Note(), ema=0.9), lambda l: l.fit(2))
    assert set(seen)=={(True, False), (False, True)}
    with learn.no_bar(): preds = learn.get_preds()[0]
    (preds*torch.ones(1, requires_grad=True)).sum().backward()

@pytest.mark.slow
def test_a_profile_leaves_no_trace(dls):
    kw = dict(learning_rate=1e-3, ema=0.9, scheduler_kwargs={'sched': 'cosine'})
    a,b = (galaxy_learner(dls, 'tf_efficientnet_lite0', **kw) for _ in range(2))
    t = a.profile(batches=2)
    assert t.share.sum()==pytest.approx(1) and a.history==[] and (t.seconds>=0).all()
    for o in (a, b): quiet(o, lambda l: l.fine_tune(1))
    assert all(torch.equal(v, b.net.state_dict()[k]) for k,v in a.net.state_dict().items())
    assert a.history==b.history

FAULTS = """
import os, resource, sys, torch
from zoofast.all import Callback, GalaxyDataLoaders, galaxy_learner
from zoofast.encoders.compute import memory_kept
def resident(): return int(open("/proc/self/statm").read().split()[1])*os.sysconf("SC_PAGE_SIZE")
def big(): torch.ones(200_000_000, dtype=torch.uint8)
before = resident()
with memory_kept():
    with memory_kept(): big()
    inside = resident()                             # the inner block gives nothing back
try:
    with memory_kept(): big(); raise KeyError
except KeyError: pass
after = resident()
dls,seen = GalaxyDataLoaders.from_catalog(sys.argv[1], "morphology", size=128, batch_size=16, progress=False),[]
class Count(Callback):
    def before_batch(self): seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
learn = galaxy_learner(dls, "tf_efficientnet_lite0", cbs=Count(), keep_best=False)
with learn.no_bar(), learn.no_logging(): learn.fit(2)
print(inside-before, after-before, resident()-before, min(b-a for a,b in zip(seen, seen[1:])))
"""

@pytest.mark.slow
@pytest.mark.skipif(sys.platform!='linux', reason="glibc's allocator")
def test_a_step_uses_the_memory_of_the_one_before_and_it_goes_back_in_the_end(survey):
    def run(**env):
        command = [sys.executable, '-W', 'ignore', '-c', FAULTS, str(survey[0]/'catalog.csv')]
        p = subprocess.run(command, env=os.environ|env, capture_output=True, text=True)
        assert p.returncode==0, p.stderr[-2000:]
        return [int(o) for o in p.stdout.split()]
    inside,after,fitted,faults = run()
    assert inside>150e6 and after<50e6 and fitted<600e6, (inside, after, fitted)
    left_alone = run(MALLOC_TRIM_THRESHOLD_='131072')
    assert left_alone[0]<50e6 and left_alone[-1]>20*max(faults, 100), (faults, left_alone)
