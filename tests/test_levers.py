"Each lever of finetuning does what its name says"
import numpy as np, pytest, torch
from torch import nn
from zoofast.all import *
from zoofast.encoders.compute import has_bf16
from zoofast.training.optimizer import eval_frozen

@pytest.fixture(scope='module')
def dls(survey): return GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, batch_size=16, progress=False)

@pytest.fixture(scope='module')
def still(survey):
    return GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, batch_size=60, augment=None, progress=False)

LITE = 'tf_efficientnet_lite0'
def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): f(learn)
    return learn
def changed(before, after): return {k for k in before if not torch.equal(before[k], after[k])}
def learner(dls, **kw): return galaxy_learner(dls, LITE, **{'keep_best': False, **kw})

@pytest.mark.slow
def test_freeze_layers_by_type(dls):
    learn = learner(dls, learning_rate=1e-2)
    conv = {f'{n}.weight' for n,m in learn.model.named_modules() if isinstance(m, nn.Conv2d)}
    assert set(freeze_layers(learn, nn.Conv2d))==conv
    before = state(learn)
    quiet(learn, lambda l: l.fine_tune(1))                       # freezes and unfreezes; the layers stay frozen
    moved = changed(before, state(learn))
    assert not conv&moved
    assert moved=={n for n,p in learn.model.named_parameters()}-conv
    unfreeze_layers(learn)
    quiet(learn, lambda l: l.fit(1))
    assert conv<=changed(before, state(learn))

def test_freeze_layers_by_name(dls):
    learn = learner(dls, learning_rate=1e-2)
    freeze_layers(learn, ['blocks.[0-3]', 'conv_stem', '*.bias'])
    before = state(learn)
    quiet(learn, lambda l: l.fit(1))
    moved = changed(before, state(learn))
    held = lambda n: '.blocks.0.' in n or '.blocks.3.' in n or 'conv_stem' in n or n.endswith('.bias')
    assert moved and not any(held(n) for n in moved)
    assert any('.blocks.4.' in n for n in moved)

def test_nothing_is_differentiated_below_the_lowest_trainable_block(dls):
    learn = learner(dls, n_blocks=2)
    x,y = dls.one_batch()
    acts = {}
    def note(k): return lambda m, i, o: acts.__setitem__(k, o.requires_grad)
    hooks = [b.register_forward_hook(note(k)) for k,b in enumerate(learn.model.encoder.body.blocks)]
    learn.model.train()(x)
    for h in hooks: h.remove()
    assert acts=={k: k>=5 for k in range(7)}

def test_drop_path_of_frozen_blocks_is_off(dls):
    learn = galaxy_learner(dls, 'convnext_atto', pretrained=False, n_blocks=1, drop_path_rate=0.9)
    learn.model.train(); eval_frozen(learn.model)
    drops = {n: m.training for n,m in learn.model.named_modules() if type(m).__name__=='DropPath'}
    assert any(drops.values()) and all(t==('stages.3' in n) for n,t in drops.items())

@pytest.mark.slow
def test_l1_shrinks_weights(dls):
    def size(l1):
        learn = quiet(learner(dls, l1=l1, learning_rate=1e-3, weight_decay=0.), lambda l: l.fit(3))
        return sum(p.abs().sum().item() for g in learn.opt.groups for _,p in g['decay'])
    assert size(0.01)<0.98*size(0.)

def test_l1_is_the_gradient_of_its_penalty(still):
    plain = dict(opt='sgd', opt_kwargs=dict(momentum=0., nesterov=False), weight_decay=0., head_dropout_prob=0.,
                 learning_rate=1e-2, layer_decay=1., seed=1)
    def with_penalty(out, y): return nn.functional.cross_entropy(out, y)+0.01*sum(p.abs().sum() for p in penalized)
    learn = learner(still, l1=0.01, **plain)
    twin = learner(still, loss_func=with_penalty, **plain)
    head = twin.opt.groups[-1]
    penalized = [p for g in twin.opt.groups for part in ('decay', 'plain') for _,p in g[part]
                 if part=='decay' or (g is head and p.ndim>1)]
    quiet(learn, lambda l: l.fit(1)); quiet(twin, lambda l: l.fit(1))
    a,b = state(learn),state(twin)
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a if a[k].is_floating_point())

@pytest.mark.slow
def test_accumulated_batches_are_one_big_batch(survey):
    "Also where the last ones are smaller: 46 galaxies as 16+16+14"
    df = survey[1].assign(split=['train']*46+['valid']*14)
    def run(bs, **kw):
        dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=64, batch_size=bs, augment=None, progress=False)
        return state(quiet(learner(dls, opt='sgd', learning_rate=1e-2, head_dropout_prob=0., **kw), lambda l: l.fit(2)))
    a,b = run(46),run(16, accumulate=4)
    assert all(torch.allclose(a[k], b[k], atol=2e-5) for k in a if a[k].is_floating_point())
    assert not all(torch.allclose(a[k], c, atol=2e-5) for k,c in run(16).items() if c.is_floating_point())

def test_clipping(still):
    "Plain gradient descent moves by no more than the rate times the norm"
    assert len(still.train)==1
    learn = learner(still, clip_grad=0.1, opt='sgd', opt_kwargs=dict(momentum=0., nesterov=False), learning_rate=1.,
                    layer_decay=1., weight_decay=0.)
    before = state(learn)
    quiet(learn, lambda l: l.fit(1))
    moved = torch.cat([(v-before[k]).flatten() for k,v in state(learn).items() if v.is_floating_point()]).norm()
    assert moved==pytest.approx(0.1, rel=1e-3)

def test_second_derivatives(dls):
    learn = learner(dls, opt='adahessian', n_blocks=1)
    before = state(learn)
    quiet(learn, lambda l: l.fit(1))
    assert len(changed(before, state(learn)))>2 and np.isfinite(learn.history[0]['valid_loss'])

MIXED = [dict(mixup=0.4), dict(cutmix=1.), dict(mixup=0.4, label_smoothing=0.1, class_weights='balanced'),
         dict(loss_func='focal')]
@pytest.mark.slow
@pytest.mark.parametrize('kw', MIXED, ids=str)
def test_mixing_and_losses_train(dls, kw):
    learn = quiet(learner(dls, learning_rate=1e-3, **kw), lambda l: l.fine_tune(2))
    assert np.isfinite([h['valid_loss'] for h in learn.history]).all()

def test_views(dls):
    one,many = (quiet(learner(dls, training_mode='head_only', views=v), lambda l: l.fit(3)) for v in (0, 3))
    assert many._cached[1].train_ds.store.shape==(3*len(dls.train_ds), 1280) and changed(state(one), state(many))
    assert torch.equal(one._cached[1].valid_ds.store, many._cached[1].valid_ds.store)

@pytest.mark.slow
def test_mixed_precision_is_real_on_a_cpu(dls):
    "The encoder's convolutions and products run in bf16; weights and losses do not"
    for precision,want in (('bf16', torch.bfloat16), ('fp16', torch.float16), ('fp32', torch.float32)):
        learn = learner(dls, precision=precision)
        seen = set()
        layers = [m for m in learn.model.encoder.body.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        hooks = [m.register_forward_hook(lambda m, i, o: seen.add(o.dtype)) for m in layers]
        quiet(learn, lambda l: l.fit(1))
        for h in hooks: h.remove()
        assert seen=={want} and {p.dtype for p in learn.model.parameters()}=={torch.float32}
        assert (learn.scaler is not None)==(precision=='fp16')
        assert np.isfinite(learn.history[0]['valid_loss'])

def test_auto_precision_says_which(dls):
    assert learner(dls).params['precision']=='fp32'
    want = 'bf16' if has_bf16(torch.device('cpu')) else 'fp32'
    assert galaxy_learner(dls, 'convnext_atto', pretrained=False).params['precision']==want

@pytest.mark.slow
def test_second_stage_by_name(dls):
    for fit in ('one_cycle', 'cosine', 'flat_cos', 'constant'):
        learn = learner(dls)
        rates = []
        class Spy(Callback):
            def before_step(self):
                if self.learn.n_fits: rates.append(self.opt.hypers[-1]['lr'])
        learn.add_cb(Spy())
        quiet(learn, lambda l: l.fine_tune(2, fit=fit))
        assert (len(set(rates))==1)==(fit=='constant') and max(rates)<=5.0001e-4
    learn = learner(dls, scheduler_kwargs={'sched': 'step', 'decay_epochs': 1, 'decay_rate': 0.1})
    quiet(learn, lambda l: l.fine_tune(2))
    assert [h['lr'] for h in learn.history[1:]]==pytest.approx([5e-4, 5e-5])

@pytest.mark.slow
@pytest.mark.parametrize('fit', ['one_cycle', 'cosine', 'flat_cos', 'constant', 'scheduler_kwargs'])
def test_every_second_stage_takes_its_rates(dls, fit):
    for kw,want in ((dict(), 3e-3), (dict(training_mode='head_only'), 7e-3)):
        learn,rates = learner(dls, scheduler_kwargs={'sched': 'cosine'}, **kw),[]
        class Spy(Callback):
            def before_step(self):
                if self.learn.n_fits or kw: rates.append(self.opt.hypers[-1]['lr'])
        learn.add_cb(Spy())
        quiet(learn, lambda l: l.fine_tune(4, base_lr=3e-3, head_lr=7e-3, fit=fit))
        assert 0.5*want<max(rates)<=want*(1+1e-6)

@pytest.mark.slow
def test_lr_find_comes_first(dls):
    learn = learner(dls, precision='fp16', ema=0.9)
    before = state(learn)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=8, show_plot=False)
    assert not changed(before, state(learn)) and not learn.history
    quiet(learn, lambda l: l.fit(1))

def test_an_interrupted_fit_leaves_nothing_behind(dls):
    class Cut(Callback):
        def after_backward(self): raise KeyboardInterrupt
    learn = learner(dls, mixup=0.4, accumulate=3)
    loss = learn.loss_func
    with pytest.raises(KeyboardInterrupt): quiet(learn, lambda l: l.fit(1, cbs=Cut()))
    assert learn.loss_func is loss and learn.dls is dls
    quiet(learn, lambda l: l.fit(1))

@pytest.mark.slow
def test_lookahead_forgets(dls):
    learn = quiet(learner(dls, opt='lookahead_adamw', learning_rate=3e-2, layer_decay=1.), lambda l: l.fit(2))
    learn.unfreeze()
    before = state(learn)
    quiet(learn, lambda l: l.fit(4, 1e-12))
    assert max((state(learn)[k]-v).abs().max() for k,v in before.items() if v.is_floating_point())<1e-6

def test_dropout_below_frozen_blocks_is_off(dls):
    learn = galaxy_learner(dls, 'vit_tiny_patch16_224', pretrained=False, pos_drop_rate=0.5, n_blocks=1)
    learn.model.train(); eval_frozen(learn.model)
    body = learn.model.encoder.body
    assert not body.pos_drop.training and body.blocks[-1].training and learn.model.head[0].training

@pytest.mark.parametrize('cb,said', [(GradientAccumulation(8), 'accumulate='), (MixedPrecision(), 'precision=')])
def test_what_would_act_twice(dls, cb, said):
    with pytest.raises(ValueError, match=said): quiet(learner(dls, cbs=cb), lambda l: l.fit(1))

BAD = [
    (dict(training_mode='half'), "training_mode='half'.*'full' or 'head_only'"),
    (dict(opt='adamv'), "opt='adamv'.*adamw"),
    (dict(scheduler_kwargs={'sched': 'cosin'}), "scheduler_kwargs.*cosin.*cosine"),
    (dict(scheduler_kwargs={'sched': 'cosine', 'epochs': 3}), "scheduler_kwargs.*epochs.*num_epochs"),
    (dict(precision='fp8'), "precision='fp8'.*bf16"),
    (dict(learning_rate=-1), "learning_rate=-1"),
    (dict(learning_rate='fast'), "learning_rate='fast'"),
    (dict(layer_decay=1.5), "layer_decay=1.5"),
    (dict(layer_decay=-0.1), "layer_decay=-0.1"),
    (dict(n_blocks=9), "n_blocks=9: the encoder has 8 blocks"),
    (dict(n_blocks=-1), "n_blocks=-1"),
    (dict(weight_decay=-1), "weight_decay=-1"),
    (dict(l1=-1), "l1=-1"),
    (dict(clip_grad=0), "clip_grad=0"),
    (dict(accumulate=0), "accumulate=0"),
    (dict(ema=1.5), "ema=1.5"),
    (dict(patience=0), "patience=0"),
    (dict(views=-1), "views=-1"),
    (dict(mixup=-1), "mixup=-1"),
    (dict(mixup=1, cutmix=1), "mixup=1, cutmix=1"),
    (dict(monitor='acc'), "monitor='acc'"),
    (dict(head_dropout_prob=1), "head_dropout_prob=1"),
    (dict(bn_stats='no'), "bn_stats='no'"),
    (dict(blocks='medium'), "blocks='medium'"),
    (dict(loss_func='mse'), "loss_func='mse'"),
    (dict(class_weights='even'), "class_weights='even'"),
    (dict(class_weights={'ring': 2}), "class_weights"),
    (dict(label_smoothing=1), "label_smoothing=1"),
    (dict(opt_kwargs={'momentun': 0.9}), "opt_kwargs.*momentun"),
    (dict(ema=1), "ema=1"),
    (dict(n_blocks=True), "n_blocks=True"),
    (dict(keep_best='no'), "keep_best='no'"),
    (dict(weights=5), "weights=5"),
    (dict(save_dir=5), "save_dir=5"),
    (dict(metrics='accuracy'), "metrics"),
    (dict(opt_kwargs={'lr': 1}), "learning_rate="),
    (dict(mixup=0.5, loss_func=nn.CrossEntropyLoss()), "mixup"),
    (dict(resume=True), "save_dir"),
]
@pytest.mark.parametrize('kw,said', BAD, ids=[str(k) for k,_ in BAD])
def test_bad_input(dls, kw, said):
    with pytest.raises(ValueError, match=said):
        learn = galaxy_learner(dls, LITE, **kw)
        if 'resume' in kw: learn.fit(1)

def test_all_frozen(dls):
    learn = learner(dls)
    with pytest.raises(ValueError, match='nothing would be left to train'): freeze_layers(learn, nn.Module)
    assert all(p.requires_grad for p in learn.model.parameters())
    learn.model.requires_grad_(False)
    with pytest.raises(ValueError, match='all parameters are frozen'): learn.fit(1)
    learn.unfreeze()
    freeze_layers(learn, nn.Linear)
    with pytest.raises(ValueError, match='nothing would be left to train'): learn.freeze()

@pytest.mark.parametrize('call,said', [
    (lambda l: l.fine_tune(1, fit='linear'), "fit='linear'"),
    (lambda l: l.fine_tune(1, fit='scheduler_kwargs'), 'without scheduler_kwargs'),
    (lambda l: l.fine_tune(1.5), 'epochs=1.5'),
    (lambda l: l.fine_tune(1, base_lr=-1), 'base_lr=-1'),
    (lambda l: l.fit(1, lr=-1), 'lr=-1'),
    (lambda l: l.fit(1, lr='a'), "lr='a'"),
    (lambda l: l.fit(-1), 'n_epoch'),
], ids=range(7))
def test_bad_fits(dls, call, said):
    with pytest.raises(ValueError, match=said): quiet(learner(dls), call)
