"""A run that is killed goes on where it was, and ends where the unbroken run would have; the best model of all stages
is the one that is kept"""
import random, signal, time
import numpy as np, pandas as pd, preloaded, pytest, torch
from safetensors.torch import load_file
from zoofast.all import *
from zoofast.training.checkpoints import copy_weights

SCRIPT = '''
import sys, warnings
warnings.filterwarnings("ignore")
from zoofast.all import *
torch.set_num_threads(1)
folder,run,resume = sys.argv[1],sys.argv[2],sys.argv[3]=="resume"
dls = GalaxyDataLoaders.from_catalog(f"{folder}/catalog.csv", "morphology", size=64, batch_size=8, progress=False)
learn = galaxy_learner(dls, "tf_efficientnet_lite0", learning_rate=1e-3, save_dir=run, ema=0.9, clip_grad=1.,
                       accumulate=2, precision="fp32",
                       scheduler_kwargs={"sched": "cosine", "warmup_epochs": 1, "step_on_epochs": False, "noise": 0.5})
print("training", flush=True)
with learn.no_bar(), learn.no_logging(): learn.fine_tune(3, freeze_epochs=3, resume=resume)
learn.save_bundle(f"{run}/bundle")
pd.DataFrame(learn.history).to_csv(f"{run}/history.csv", index=False)
'''

def start(folder, run, resume=""):
    "A training process, when it begins to train"
    p = preloaded.start(['-c', SCRIPT, folder, run, resume])
    assert p.stdout.readline()=='training\n'
    return p

@pytest.mark.slow
def test_killed_five_times(survey, tmp_path):
    """kill -9 at five random moments of two-stage training: the weights are the same to the last bit, and so is the
    history"""
    folder,_ = survey
    p = start(folder, tmp_path/'whole')
    began = time.time()
    assert p.wait()==0
    took = time.time()-began
    moments = random.Random()                       # other moments in each run of this test
    for i in range(5):
        p = start(folder, tmp_path/'broken', 'resume')
        time.sleep(moments.uniform(0, took/3))
        p.send_signal(signal.SIGKILL)
        p.wait()
    assert start(folder, tmp_path/'broken', 'resume').wait()==0
    for name in ('bundle/model.safetensors', 'checkpoints/best.safetensors'):
        a,b = load_file(tmp_path/'whole'/name),load_file(tmp_path/'broken'/name)
        assert list(a)==list(b) and all(torch.equal(a[k], b[k]) for k in a), name
    whole,broken = (torch.load(tmp_path/n/'checkpoints'/'last.pt', weights_only=True) for n in ('whole', 'broken'))
    assert all(torch.equal(v, broken['model'][k]) for k,v in whole['model'].items())
    assert (tmp_path/'whole'/'history.csv').read_text()==(tmp_path/'broken'/'history.csv').read_text()

@pytest.fixture(scope='module')
def dls(survey): return GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, batch_size=16, progress=False)

def lite0(dls, **kwargs): return galaxy_learner(dls, 'tf_efficientnet_lite0', **kwargs)
def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)
def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): f(learn)
    return learn

class Stop(Exception): pass

class StopAt(Callback):
    "Breaks a fit off in the middle of an epoch"
    def __init__(self, fit, epoch): self.at = fit,epoch
    def after_step(self):
        if (self.learn.n_fits, self.learn.epoch)==self.at and self.iter==1: raise KeyboardInterrupt

PLATEAU = {'sched': 'plateau', 'patience_epochs': 0, 'decay_rate': 0.5}
OTHERS = [dict(seed=None), dict(opt='lion'), dict(scheduler_kwargs=PLATEAU), dict(precision='bf16')]
@pytest.mark.slow
@pytest.mark.parametrize('at,kw', [
    ((0, 1), {}),
    ((1, 0), {}),
    ((0, 1), dict(training_mode='head_only', views=3)),
    *(((1, 2), kw) for kw in OTHERS)], ids=str)
def test_interrupted(dls, tmp_path, at, kw):
    def learner(run, **more): return lite0(dls, learning_rate=1e-3, save_dir=tmp_path/run, **kw, **more)
    steps = {'head_lr': 1e-2} if 'training_mode' in kw else {}           # the head alone would be fitted at once
    train = lambda l, **k: l.fine_tune(3, freeze_epochs=2, **steps, **k)
    torch.manual_seed(1); random.seed(1); np.random.seed(1)
    whole = learner('whole')
    start = torch.get_rng_state()
    quiet(whole, train)
    torch.manual_seed(1); random.seed(1); np.random.seed(1)
    broken = learner('broken', cbs=StopAt(*at))
    torch.set_rng_state(start)
    with pytest.raises(KeyboardInterrupt): quiet(broken, train)
    again = learner('broken')
    if kw.get('seed', 1) is None: copy_weights(again.net, state(broken))     # without a seed, the head begins elsewhere
    quiet(again, lambda l: train(l, resume=True))
    assert same(state(whole), state(again))
    assert whole.history==again.history or at==(0, 1) and kw.get('seed', 1) is None

@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(dls, tmp_path):
    first = quiet(lite0(dls, save_dir=tmp_path), lambda l: l.fine_tune(1))
    class Never(Callback):
        def before_batch(self): raise AssertionError('trained again')
    again = quiet(lite0(dls, save_dir=tmp_path, resume=True, cbs=Never()), lambda l: l.fine_tune(1))
    assert same(state(first), state(again)) and again.history==first.history

@pytest.mark.slow
def test_resume_of_another_run_is_refused(dls, tmp_path):
    quiet(lite0(dls, save_dir=tmp_path), lambda l: l.fine_tune(1))
    def resume(n, data=dls, **kwargs): lite0(data, save_dir=tmp_path).fine_tune(n, resume=True, **kwargs)
    with pytest.raises(ValueError, match=r'learning_rate=0.0005, not 0.001'):
        lite0(dls, learning_rate=1e-3, save_dir=tmp_path).fine_tune(1, resume=True)
    with pytest.raises(ValueError, match='fit 2 of the run in .* had 1 epochs.*, not 7 epochs'): resume(7)
    with pytest.raises(ValueError, match='needs save_dir'): lite0(dls).fine_tune(1, resume=True)
    with pytest.raises(ValueError, match='fit 1 of the run'): resume(1, freeze_epochs=0)
    with pytest.raises(ValueError, match='fit 2 of the run'): resume(1, base_lr=1e-3, head_lr=1e-2)
    other = GalaxyDataLoaders.from_catalog(dls.catalog, 'morphology', size=64, batch_size=16, augment=None,
                                           progress=False)
    with pytest.raises(ValueError, match='augment='): resume(1, other)
    backwards = dls.catalog.iloc[::-1].reset_index(drop=True)
    turned = GalaxyDataLoaders.from_catalog(backwards, 'morphology', size=64, batch_size=16, progress=False)
    with pytest.raises(ValueError, match='catalogue='): resume(1, turned)
    again = lite0(dls, save_dir=tmp_path)
    with pytest.raises(ValueError, match='not 7 epochs'): again.fine_tune(7, resume=True)
    quiet(again, lambda l: l.fine_tune(1, resume=True))                       # a second try may be right
    assert len(again.history)==2
    (tmp_path/'checkpoints'/'best.safetensors').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='best model so far cannot be read'): resume(1)
    (tmp_path/'checkpoints'/'last.pt').write_bytes(b'no checkpoint')
    with pytest.raises(ValueError, match='cannot be read as a checkpoint'): resume(1)

@pytest.mark.slow
def test_a_better_frozen_stage_is_kept(dls, tmp_path):
    "In memory, on disk and in the bundle; the second stage is spoilt by its learning rate"
    learn = lite0(dls, save_dir=tmp_path, ema=0.)
    frozen = []
    class Look(Callback):
        order = 70
        def after_epoch(self):
            if self.learn.n_fits==0 and self.fitting: frozen.append(state(self.learn))
    spoilt = dict(base_lr=0.05, head_lr=5e-3, freeze_epochs=2)
    quiet(learn, lambda l: (l.add_cb(Look()), l.fine_tune(2, **spoilt)))
    h = pd.DataFrame(learn.history)
    assert h.valid_loss.idxmin()<2, 'the test is about a run that gets worse'
    assert same(frozen[h.valid_loss.idxmin()], state(learn))
    assert same(state(learn), load_file(tmp_path/'checkpoints'/'best.safetensors'))
    learn.save_bundle(tmp_path/'bundle')
    assert same(state(learn), load_file(tmp_path/'bundle'/'model.safetensors'))
    assert learn.best_epoch['trained']=='head'
    assert learn.validate()[0]==pytest.approx(h.valid_loss.min(), abs=1e-4)
    last = quiet(lite0(dls, keep_best=False, ema=0.), lambda l: l.fine_tune(2, **spoilt))
    assert not same(state(learn), state(last))

@pytest.mark.slow
def test_best_by_a_named_metric(dls):
    learn = quiet(lite0(dls, monitor='accuracy', learning_rate=1e-3), lambda l: l.fine_tune(3))
    assert learn.best_epoch['accuracy']==max(h['accuracy'] for h in learn.history)
    assert learn.validate()[1]==pytest.approx(learn.best_epoch['accuracy'])
    with pytest.raises(ValueError, match="monitor='acc': there are train_loss, valid_loss, accuracy"):
        lite0(dls, monitor='acc')

@pytest.mark.slow
def test_patience_ends_a_stage_not_the_run(dls):
    learn = lite0(dls, patience=2, learning_rate=0.05)
    quiet(learn, lambda l: l.fine_tune(12, head_lr=0.5, freeze_epochs=12))
    h = pd.DataFrame(learn.history)
    for _,stage in h.groupby('fit'):
        best = int(stage.valid_loss.to_numpy().argmin())
        assert len(stage)==12 or len(stage)==best+1+2
    assert set(h.fit)=={0, 1} and len(h)<24

def test_a_loss_that_is_no_number_stops_the_run(dls, tmp_path):
    "with the step, the rates and the galaxies; the last good checkpoint stays, the best model is in hand"
    ids,calls = [],[]
    rows = dls.catalog[dls.catalog.split=='train'].id_str.tolist()
    def loss(out, y):
        if out.requires_grad: calls.append(1)
        return torch.nn.functional.cross_entropy(out, y)*(float('nan') if len(calls)==8 and out.requires_grad else 1.)
    learn = lite0(dls, loss_func=loss, save_dir=tmp_path)
    class Note(Callback):
        def before_backward(self): ids[:] = [rows[i] for i in self.dl.galaxies(self.iter)]
        def after_batch(self):
            if self.training: ids[:] = [rows[i] for i in self.dl.galaxies(self.iter)]
    learn.add_cb(Note())
    n = len(dls.train)
    with pytest.raises(ValueError, match='training has diverged: the loss is nan') as e:
        quiet(learn, lambda l: l.fit(9))
    said = str(e.value)
    assert f'step {7%n+1} of epoch {7//n+1}' in said
    assert 'learning rates from 6.67e-05 (lowest block) to 0.0005 (head)' in said
    words = {o.strip(',;') for o in said.split()}
    all_named = all(o in said for o in set(rows)&words)
    assert all_named and sum(o in said for o in rows)==len(next(iter(dls.train))[1]) or 7%n+1==n
    saved = torch.load(tmp_path/'checkpoints'/'last.pt', weights_only=True)
    assert all(v.isfinite().all() for v in saved['model'].values() if v.is_floating_point())
    assert len(learn.history)==7//n
    assert all(v.isfinite().all() for v in state(learn).values() if v.is_floating_point())

@pytest.mark.slow
def test_ema_is_what_is_validated_and_kept(dls):
    learn = quiet(lite0(dls, ema=0.99, learning_rate=1e-3), lambda l: l.fit(3))
    last_kept = same(state(learn), {k: v for k,v in learn.ema.module.state_dict().items()})
    assert last_kept or learn.best_epoch is not learn.history[-1]
    assert learn.validate()[0]==pytest.approx(learn.best_epoch['valid_loss'], abs=1e-5)
    plain = quiet(lite0(dls, learning_rate=1e-3, ema=0.), lambda l: l.fit(3))
    assert not same(state(learn), state(plain))
    assert plain.history[0]['train_loss']==learn.history[0]['train_loss']      # training itself is the same

@pytest.mark.slow
def test_fastais_early_stopping(dls, tmp_path):
    "The epoch at which it stops is kept too, and the run counts as finished"
    def make():
        stop = EarlyStoppingCallback(monitor='accuracy', patience=1, min_delta=9)
        return lite0(dls, training_mode='head_only', ema=0.5, save_dir=tmp_path, cbs=stop)
    learn = quiet(make(), lambda l: l.fit(6))
    assert len(learn.history)==2
    assert learn.validate()[0]==pytest.approx(learn.best_epoch['valid_loss'], abs=1e-4)
    again = quiet(make(), lambda l: l.fit(6, resume=True))
    assert again.history==learn.history and same(state(learn), state(again))

@pytest.mark.slow
def test_only_a_part_of_a_resumed_run(dls, tmp_path):
    class Cut(Callback):
        def before_epoch(self):
            if self.learn.n_fits==1 and self.learn.epoch==1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        quiet(lite0(dls, save_dir=tmp_path, cbs=Cut()), lambda l: (l.fit(1), l.fit(3)))
    learn = quiet(lite0(dls, save_dir=tmp_path, resume=True), lambda l: l.fit(1))
    with pytest.raises(BundleError, match='was killed in fit 2, and only 1 have been called'):
        learn.save_bundle(tmp_path/'bundle')
    quiet(learn, lambda l: l.fit(3))
    whole = quiet(lite0(dls, save_dir=tmp_path/'whole'), lambda l: (l.fit(1), l.fit(3)))
    assert same(state(whole), state(learn)) and whole.history==learn.history
