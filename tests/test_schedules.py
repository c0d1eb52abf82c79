"Every group's rate is timm's or fastai's to 1e-9, at every step of a real fit, also of one that goes on in the middle"
import math, warnings
import numpy as np, pytest, timm.scheduler, torch
from fastai.callback.core import Callback
from fastai.callback.schedule import SchedCos, combine_scheds, combined_cos
from fastai.learner import Metric
from fastai.metrics import accuracy
from zoofast.all import galaxy_learner, GalaxyDataLoaders, list_schedulers, plot_schedule
from zoofast.training.schedules import TimmSchedule, check_scheduler_kwargs, schedule_rates

GROUPS,EPOCHS,N = [0, 4, 8],6,5      # stem, a block in the middle, head; batches in an epoch

@pytest.fixture(scope='module')
def dls(survey): return GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, batch_size=10, progress=False)

def make(dls, **kwargs):
    usual = {'training_mode': 'head_only', 'learning_rate': 1e-3, 'metrics': accuracy}
    return galaxy_learner(dls, 'tf_efficientnet_lite0', **{**usual, **kwargs})

@pytest.fixture(scope='module')
def learn(dls): return make(dls)     # used again and again: what a fit leaves behind would show in the next

class Spy(Callback):
    "What the optimizer is given, whoever has set it"
    def before_fit(self): self.lrs,self.pcts = [],[]
    def before_backward(self):
        self.lrs.append([g['lr'] for g in self.opt.opt.param_groups])
        self.pcts.append(self.pct_train)

def spied(learn, fit):
    spy = Spy()
    with learn.no_bar(), learn.no_logging(): fit(learn, spy)
    first = [learn.opt.block.index(b) for b in range(9)]      # every block has one or two groups in torch's optimizer
    lrs = np.array(spy.lrs)
    for k,b in enumerate(learn.opt.block): np.testing.assert_array_equal(lrs[:, k], lrs[:, first[b]])
    return lrs[:, first],spy.pcts

def base(lr=1e-3): return lr*0.75**np.array([7, 6, 5, 4, 3, 2, 1, 0, 0])

def timm_rates(kwargs, rates, n_epoch, n_batch, metrics=None, accumulate=1):
    "The rates of each batch on a bare optimizer, driven as in timm's train.py"
    opt = torch.optim.SGD([dict(params=[torch.zeros(1)], lr=r) for r in rates], lr=1.)
    updates_per_epoch,res = (n_batch+accumulate-1)//accumulate,[]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        kwargs = {'num_epochs': n_epoch, **kwargs}
        sched,_ = timm.scheduler.create_scheduler_v2(opt, **kwargs, updates_per_epoch=updates_per_epoch)
    for epoch in range(n_epoch):
        num_updates = epoch*updates_per_epoch
        for i in range(n_batch):
            res.append([g['lr'] for g in opt.param_groups])
            if (i+1)%accumulate and i+1<n_batch: continue
            num_updates += 1
            sched.step_update(num_updates=num_updates, metric=0.)
        sched.step(epoch+1, metrics[epoch] if metrics else None)
    return np.array(res)

def same(got, want):
    assert got.shape==want.shape
    np.testing.assert_allclose(got[:, GROUPS], want[:, GROUPS], rtol=1e-9, atol=0)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=0)

VARIANTS = {
    'plain': {},
    'warm-up': dict(warmup_epochs=2, warmup_lr=3e-6),
    'prefix': dict(warmup_epochs=1, warmup_lr=0., warmup_prefix=True, num_epochs=5),
    'noise': dict(noise=[0.2, 0.7], noise_pct=0.5, noise_std=0.4, noise_seed=3, warmup_epochs=1),
    'noise to the end': dict(noise=0.5, warmup_epochs=1),
    'cycles': dict(num_epochs=2, cycle_limit=3, cycle_decay=0.5, min_lr=1e-6, k_decay=1.5),
    'longer cycles': dict(num_epochs=2, cycle_limit=2, cycle_mul=2., cycle_decay=0.3, min_lr=1e-7),
}

@pytest.mark.slow
@pytest.mark.parametrize('by', ['epoch', 'step'])
@pytest.mark.parametrize('sched', list_schedulers())
def test_timm(learn, sched, by):
    for name,extra in VARIANTS.items():
        if sched=='plateau' and by=='step' or 'cycles' in name and sched not in ('cosine', 'tanh', 'poly'): continue
        if sched=='rsqrt' and not extra.get('warmup_epochs'): extra = {**extra, 'stable_timescale': 2.}
        kwargs = dict(sched=sched, step_on_epochs=by=='epoch', decay_epochs=2, decay_milestones=[2, 4], decay_rate=0.4,
                      patience_epochs=0, plateau_mode='max', **extra)
        got,_ = spied(learn, lambda l, spy: l.fit(EPOCHS, cbs=[TimmSchedule(kwargs, monitor='accuracy'), spy]))
        assert len(got)==N*EPOCHS
        want = timm_rates(kwargs, base(), EPOCHS, N, [h['accuracy'] for h in learn.history[-EPOCHS:]])
        same(got, want)
        np.testing.assert_array_equal(learn.recorder.rates, got)
        # fastai's own record is of the rates that were used
        np.testing.assert_array_equal(learn.recorder.hps['lr'], learn.recorder.lrs)
        if sched!='constant' or 'warm-up' in name: assert len(np.unique(got[:, -1]))>1
        if sched!='plateau': np.testing.assert_array_equal(schedule_rates(learn, EPOCHS, kwargs), got)
    assert not {'initial_lr', 'lr_scale'} & {k for g in learn.opt.opt.param_groups for k in g}

def test_as_written(learn):
    "The example of the documentation; the second fit starts from its own rate, not the first one's"
    for lr in (1e-3, 5e-3):
        kwargs = {'sched': 'cosine', 'num_epochs': 50, 'decay_rate': 0.1}
        got,_ = spied(learn, lambda l, spy: l.fit(3, lr, cbs=[TimmSchedule(kwargs), spy]))
        same(got, timm_rates(kwargs, base(lr), 3, N))

def test_trained_blocks_and_a_list_of_rates(dls):
    learn = make(dls, training_mode='full', n_blocks=1)
    rates = list(np.linspace(1e-4, 1e-3, 9))
    kwargs = dict(sched='tanh', step_on_epochs=False)
    before = [p.detach().clone() for p in learn.model.parameters()]
    got,_ = spied(learn, lambda l, spy: l.fit(2, rates, cbs=[TimmSchedule(kwargs), spy]))
    same(got, timm_rates(kwargs, rates, 2, N))
    assert any(not torch.equal(p, q) for p,q in zip(before, learn.model.parameters()))

@pytest.mark.parametrize('monitor,mode', [('valid_loss', 'min'), ('accuracy', 'max')])
def test_plateau_watches(learn, monitor, mode):
    kwargs = dict(sched='plateau', patience_epochs=0, decay_rate=0.5, warmup_epochs=1)
    got,_ = spied(learn, lambda l, spy: l.fit(EPOCHS, 0.3, cbs=[TimmSchedule(kwargs, monitor), spy]))
    metrics = [h[monitor] for h in learn.history[-EPOCHS:]]
    same(got, timm_rates({**kwargs, 'plateau_mode': mode}, base(0.3), EPOCHS, N, metrics))
    other = timm_rates({**kwargs, 'plateau_mode': 'max' if mode=='min' else 'min'}, base(0.3), EPOCHS, N, metrics)
    assert not np.array_equal(got, other)

def test_accumulated_batches(learn):
    learn.accumulate = 2
    try:
        kwargs = dict(sched='poly', step_on_epochs=False, warmup_epochs=1)
        got,_ = spied(learn, lambda l, spy: l.fit(3, cbs=[TimmSchedule(kwargs), spy]))
        same(got, timm_rates(kwargs, base(), 3, N, accumulate=2))
        np.testing.assert_array_equal(schedule_rates(learn, 3, kwargs), got)
    finally: learn.accumulate = 1

class Curve(Metric):
    "Rises, stands still and falls, whatever is learnt"
    name = 'curve'
    def reset(self): self.at = 0
    def accumulate(self, learn): self.at = learn.epoch
    @property
    def value(self): return [0.5, 0.6, 0.6, 0.4, 0.7, 0.6][self.at]

@pytest.fixture(scope='module')
def pair(dls):
    "Two learners alike"
    return make(dls, metrics=Curve()),make(dls, metrics=Curve())

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('kwargs', [
    dict(sched='cosine', warmup_epochs=1, noise=0.),
    dict(sched='tanh', step_on_epochs=False, noise=0.2),
    dict(sched='step', decay_epochs=2, step_on_epochs=False, warmup_epochs=3),
    dict(sched='plateau', patience_epochs=0, decay_rate=0.5),
    dict(sched='plateau', patience_epochs=1, noise=0.3, warmup_epochs=1)], ids=str)
@pytest.mark.parametrize('start', [1, 3, 5])
def test_goes_on(pair, kwargs, start):
    def run(learn, start=0):
        fit = lambda l, spy: l.fit(EPOCHS, cbs=[TimmSchedule(kwargs, 'curve'), spy], start_epoch=start)
        return spied(learn, fit)[0]
    unbroken,later = pair
    unbroken.history,unbroken.n_fits,later.n_fits = [],4,4
    want = run(unbroken)
    assert len(np.unique(want[:, 0]))>2
    # an earlier fit's epochs do not count
    later.history = [dict(fit=3, epoch=0, curve=2.), *unbroken.history[:start]]
    np.testing.assert_array_equal(run(later, start), want[N*start:])

def test_going_on_without_history(dls):
    learn = make(dls)
    plateau = TimmSchedule(dict(sched='plateau'))
    with pytest.raises(ValueError, match='after 2 epochs: the history has 0 epochs'):
        spied(learn, lambda l, spy: l.fit(3, cbs=plateau, start_epoch=2))

@pytest.mark.parametrize('fit,formula,kwargs', [
    ('one_cycle', lambda lr: combined_cos(0.25, lr/25, lr, lr/1e5), dict(n_epoch=4)),
    ('flat_cos', lambda lr: combined_cos(0.75, lr, lr, lr/1e5), dict(n_epoch=4)),
    ('sgdr', lambda lr: combine_scheds([1/7, 2/7, 4/7], [SchedCos(lr, 0)]*3), dict(n_cycles=3, cycle_len=1))])
def test_fastai(learn, fit, formula, kwargs):
    got,pcts = spied(learn, lambda l, spy: getattr(l, f'fit_{fit}')(cbs=spy, **kwargs))
    want = np.array([[formula(lr)(p) for lr in base()] for p in pcts])
    same(got, want)
    np.testing.assert_array_equal(schedule_rates(learn, fit=fit, **kwargs), got)

def test_the_fits_own_schedule_wins(dls):
    "A learner's schedule steps aside for fit_one_cycle, fit_cosine and lr_find; predictions do not move it"
    step = dict(sched='step', decay_epochs=1)
    plain,learn = make(dls),make(dls, cbs=TimmSchedule(step))
    for fit in (lambda l, spy: l.fit_one_cycle(2, cbs=spy), lambda l, spy: l.fit_cosine(2, warmup_epochs=0.5, cbs=spy)):
        np.testing.assert_array_equal(spied(learn, fit)[0], spied(plain, fit)[0])
        assert learn.recorder.hps==plain.recorder.hps
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=6, show_plot=False)
        learn.validate(), learn.get_preds()
    want = timm_rates(step, base(), 3, N)
    same(spied(learn, lambda l, spy: l.fit(3, cbs=spy))[0], want)
    np.testing.assert_array_equal(schedule_rates(learn, 3), want)

def test_cosine_and_constant(learn):
    got,_ = spied(learn, lambda l, spy: l.fit_cosine(4, warmup_epochs=1, min_lr=1e-5, warmup_lr=1e-4, cbs=spy))
    cosine = dict(sched='cosine', num_epochs=3, warmup_epochs=1, warmup_prefix=True, min_lr=1e-5, warmup_lr=1e-4,
                  step_on_epochs=False)
    head = timm_rates(cosine, [1e-3], 4, N)
    same(got, head*base()/1e-3)
    assert (got<=base()).all() and (np.diff(got, axis=1)>=0).all() and got[N, -1]==1e-3
    got,_ = spied(learn, lambda l, spy: l.fit_constant(3, 2e-3, warmup_epochs=1, cbs=spy))
    same(got, np.array([*np.arange(N)/N]+[1]*2*N)[:, None]*base(2e-3))
    got,_ = spied(learn, lambda l, spy: l.fit_constant(1, [0.]*8+[1e-3], cbs=spy))
    same(got, np.tile([0.]*8+[1e-3], (N, 1)))

@pytest.mark.parametrize('kwargs,says', [
    (dict(n_epoch=0), 'n_epoch=0'),
    (dict(n_epoch=2.5), 'n_epoch=2.5'),
    (dict(n_epoch=2, warmup_epochs=2), 'warmup_epochs=2'),
    (dict(n_epoch=2, warmup_epochs='1'), "warmup_epochs='1'"),
    (dict(n_epoch=2, min_lr=1.), 'min_lr=1.0 is above'),
    (dict(n_epoch=2, warmup_lr=1.), 'warmup_lr=1.0 is above'),
    (dict(n_epoch=2, min_lr=-1.), 'min_lr=-1.0')])
def test_fit_cosine_refuses(learn, kwargs, says):
    with pytest.raises(ValueError, match=says): spied(learn, lambda l, spy: l.fit_cosine(**kwargs))

@pytest.mark.parametrize('bad,says', [
    # no such scheduler
    ('cosine', 'must be a dictionary'),
    ({'sched': 'cosin'}, "sched='cosin' is not known .did you mean 'cosine'.* tanh"),
    ({'sched': 'xyz'}, 'Allowed are .*cosine'),
    ({'sched': None}, 'sched=None'),
    ({'sched': ['cosine']}, 'must be a name'),
    # no such argument
    ({'warmup_epoch': 1}, "'warmup_epoch' is not known .did you mean 'warmup_epochs'.* Allowed are sched, num_epochs"),
    ({1: 2}, '1 is not known'),
    ({'optimizer': 1}, "'optimizer' is not known"),
    ({'updates_per_epoch': 3}, 'updates_per_epoch'),
    # no such value
    ({'min_lr': -1e-4}, 'min_lr=-0.0001 must be a number, 0 or more'),
    ({'warmup_epochs': '3'}, "warmup_epochs='3'"),
    ({'num_epochs': True}, 'num_epochs=True'),
    ({'num_epochs': 0}, "num_epochs.*t_initial > 0"),
    ({'min_lr': math.nan}, 'min_lr=nan'),
    ({'step_on_epochs': 1}, 'True or False'),
    ({'decay_milestones': 3}, 'decay_milestones=3 must be a list'),
    ({'decay_milestones': ['a']}, 'decay_milestones'),
    ({'noise': []}, r'noise=\[\]'),
    ({'noise': 0.1, 'noise_pct': 0.}, 'noise_pct=0.0'),
    ({'noise': 0.1, 'noise_pct': 5}, 'noise_pct=5'),
    ({'noise': 0.1, 'noise_seed': 0.5}, 'manual_seed'),
    # what the scheduler itself refuses
    ({'sched': 'step', 'decay_epochs': 0}, "'step' scheduler refuses"),
    ({'cycle_mul': 0}, "'cosine' scheduler refuses"),
    ({'sched': 'plateau', 'step_on_epochs': False}, 'per epoch'),
    ({'sched': 'plateau', 'plateau_mode': 'up'}, 'mode up'),
    ({'sched': 'plateau', 'decay_rate': 2.}, 'Factor')], ids=str)
def test_refuses(bad, says):
    with pytest.raises(ValueError, match=says) as e: check_scheduler_kwargs(bad)
    assert 'scheduler_kwargs' in str(e.value)
    with pytest.raises(ValueError): TimmSchedule(bad)

def test_what_only_the_fit_can_tell(learn):
    with pytest.raises(ValueError, match="monitor='acuracy' is not recorded .did you mean 'accuracy'"):
        spied(learn, lambda l, spy: l.fit(1, cbs=TimmSchedule({'sched': 'plateau'}, 'acuracy')))
    long = {'num_epochs': 20, 'warmup_epochs': 20, 'sched': 'wsd'}
    with pytest.raises(ValueError, match='20 epochs'): spied(learn, lambda l, spy: l.fit(20, cbs=TimmSchedule(long)))

def test_no_schedule(learn):
    for kwargs in (None, {'sched': 'none'}):
        got,_ = spied(learn, lambda l, spy: l.fit(1, cbs=[TimmSchedule(kwargs), spy]))
        same(got, np.tile(base(), (N, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_scheduler_kwargs({'sched': 'plateau'})             # timm's FutureWarning is no concern of the user

def test_a_picture_shows_what_is_trained_and_changes_nothing(dls):
    import matplotlib
    matplotlib.use('Agg')
    learn = make(dls, n_blocks=2, training_mode='full')
    before = [dict(g, params=None) for g in learn.opt.opt.param_groups]
    ax = plot_schedule(learn, 3, 'cosine', warmup_epochs=1)
    assert [l.get_label() for l in ax.get_lines()]==['head', 'block 7', 'block 6']
    assert (ax.get_xlabel(), ax.get_ylabel())==('epoch', 'learning rate')
    want = schedule_rates(learn, 3, 'cosine', warmup_epochs=1)[:, 6]
    np.testing.assert_array_equal(ax.get_lines()[2].get_ydata()[:-1], want)
    assert [dict(g, params=None) for g in learn.opt.opt.param_groups]==before and learn.history==[]
    matplotlib.pyplot.close('all')
    with pytest.raises(ValueError, match="did you mean 'cosine'"): plot_schedule(learn, 3, 'cosin')
    with pytest.raises(ValueError, match='n_epoch'): plot_schedule(learn)
