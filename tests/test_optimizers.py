"""Every optimizer of timm and torch on the groups of an encoder: it trains at the rates of its blocks, or says why it
cannot"""
from copy import deepcopy
import pytest, timm.optim, torch
from torch import nn
from zoofast.all import *
from zoofast.encoders.encoder import GalaxyNet
from zoofast.training.optimizer import LayerDecayOptimizer, make_groups, make_optimizer


BARRED = ('bnb', 'fused')                  # of bitsandbytes and apex: packages of their own, for GPUs
# minutes and gigabytes a step without the package opt_einsum
KRON = not torch.backends.opt_einsum.is_available() and ('kron',)
TIMM = [n for n in timm.optim.list_optimizers() if not n.startswith(BARRED+(KRON or ())) and n!='adahessian']
NET = []

def make(opt, **kwargs):
    "A small encoder with the gradients of one batch, and an optimizer of its groups"
    if not NET:
        torch.manual_seed(0)
        NET.append(GalaxyNet(create_encoder('test_resnet', 64, 3, False), 3, 0.))
        torch.nn.functional.cross_entropy(NET[0](torch.rand(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    net = deepcopy(NET[0])
    for p,o in zip(net.parameters(), NET[0].parameters()): p.slope = o.grad
    return net,LayerDecayOptimizer(make_groups(net), opt, lr=1e-3, layer_decay=0.5, weight_decay=0.05, **kwargs)

def step(net, opt, n=3):
    "Steps with these gradients, where they are wanted; the weights after them"
    for _ in range(n):
        for p in net.parameters(): p.grad = p.slope.clone() if p.requires_grad else None
        opt.step()
    return {k: v.detach().clone() for k,v in net.named_parameters()}

def trains(name, **kwargs):
    "Steps with everything trained, then with the head alone; the rates and weight decays are those of the groups"
    net,opt = make(name, **kwargs)
    start = {k: v.detach().clone() for k,v in net.named_parameters()}
    n = len(opt.groups)
    opt.set_hyper('lr', 1e-2)
    opt.set_hyper('mom', 0.85)
    assert [h['lr'] for h in opt.hypers]==pytest.approx([1e-2*0.5**(n-2-i) for i in range(n-1)]+[1e-2])
    assert [pg['weight_decay'] for pg in opt.opt.param_groups]==[0.05*d for d in opt.decaying]
    assert sum(opt.decaying)==n-1
    all_trained = step(net, opt)
    assert all(v.isfinite().all() for v in all_trained.values())
    assert {k.partition('.')[0] for k in start if not torch.equal(start[k], all_trained[k])}=={'encoder', 'head'}
    opt.freeze_to(-1)
    head_trained = step(net, opt)
    moved = {k for k in start if not torch.equal(head_trained[k], all_trained[k])}
    assert moved and all(k.startswith('head.') for k in moved)
    return opt

@pytest.mark.slow(but=19)
@pytest.mark.parametrize('name', TIMM)
def test_names_of_timm_train(name): trains(name)

@pytest.mark.parametrize('name', ['asgd', 'ASGD'])
def test_names_of_torch_train(name): trains(name)

@pytest.mark.parametrize('name', ['lookahead_adamw', 'lookahead_sgd', 'Lookahead_Lion'])
def test_lookahead_trains(name): assert type(trains(name).opt).__name__=='Lookahead'

FUNCTIONS = {
    'SGD': torch.optim.SGD,
    'ASGD': torch.optim.ASGD,
    'lambda': lambda pgs, lr: torch.optim.NAdam(pgs, lr=lr, decoupled_weight_decay=True),
}
@pytest.mark.parametrize('opt', FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_of_groups_trains(opt): trains(opt)

@pytest.mark.parametrize('name,kwargs', [
    ('adamw', dict(betas=(0.8, 0.9))),
    ('sgd', dict(momentum=0.5, nesterov=False)),
    ('rmsprop', dict(alpha=0.9, centered=True)),
    ('adan', dict(betas=[0.9, 0.9, 0.9])),
    ('lion', dict(betas=(0.95, 0.98))),
    ('adafactor', dict(betas=(0.9, 0.99))),
    ('adagrad', dict(lr_decay=0.1)),
    ('lamb', dict(max_grad_norm=None)),
    ('muon', dict(ns_steps=3)),
    ('adamw', dict(fused=False))])
def test_arguments_reach_the_optimizer(name, kwargs):
    opt = make(name, **kwargs)[1].opt
    for k,v in kwargs.items():
        if k=='betas' and name=='adafactor': k,v = 'beta1',v[0]          # all it uses
        got = opt.param_groups[0][k]
        assert got==v or list(got)==list(v)

IMPOSSIBLE = ['lbfgs', 'LBFGS', 'sparseadam', 'rprop', 'lookahead_lbfgs',
              *([] if torch.cuda.is_available() else ['bnbadamw8bit', 'fusedadam']),
              *(['kron', 'kronw'] if KRON else [])]
@pytest.mark.parametrize('name', IMPOSSIBLE)
def test_what_cannot_work_says_so(name):
    with pytest.raises(ValueError, match=f"opt='{name}' cannot be used"): make(name)

@pytest.mark.parametrize('name,near', [
    ('adamm', 'adam'),
    ('lookahead_adamm', 'adam'),
    ('asgdd', 'asgd'),
    ('foo_adamw', 'adamw'),
    ('', 'list_optimizers'),
    ('optimizer', ''),
    ('lookahead_', 'list_optimizers'),
    (5, 'list_optimizers'),
    (None, '')])
def test_unknown_names_are_told_near_ones(name, near):
    with pytest.raises(ValueError, match=f'opt={name!r} is not known.*{near}'): make(name)

@pytest.mark.parametrize('name,kwargs,says', [
    # arguments that it does not have
    ('adamw', dict(momentum=0.9), "adamw has no argument 'momentum'; it has betas, eps"),
    ('sgd', dict(betas=(0.9, 0.99)), "sgd has no argument 'betas'; it has momentum"),
    ('lion', dict(eps=1e-8), "'eps'"),
    ('lion', dict(fused=True), "'fused'"),
    ('lookahead_sgd', dict(k=3), "'k'"),
    ('adamw', dict(wd=1), "'wd'"),
    ('adamw', dict(params=[]), "'params'"),
    ('asgd', dict(eta=1), 'lambd'),
    # values that they cannot have
    ('sgd', dict(momentum=-1), 'momentum=-1'),
    ('sgd', dict(momentum=1.5), 'momentum=1.5'),
    ('sgd', dict(momentum='0.9'), "momentum='0.9'"),
    ('sgd', dict(momentum=float('nan')), 'momentum=nan'),
    ('sgdp', dict(momentum=-1), 'momentum=-1'),
    ('adamw', dict(betas=(0.9, 1.)), 'betas='),
    ('adamw', dict(betas=0.9), 'betas='),
    ('adamw', dict(betas=(0.9,)), '2 numbers'),
    ('adan', dict(betas=(0.9, 0.9)), '3 numbers'),
    ('adamp', dict(betas=(-1, 0.9)), 'betas='),
    ('radamlegacy', dict(betas='x'), 'betas='),
    ('adamw', dict(eps=-1), 'eps=-1'),
    ('lars', dict(eps='x'), "eps='x'"),
    ('rmsprop', dict(alpha=-1), 'alpha'),
    ('adadelta', dict(rho=2), 'rho'),
    ('rmsprop', dict(alpha=float('inf')), 'alpha=inf'),
    ('adamw', dict(fused=True, foreach=True), 'foreach')], ids=str)
def test_wrong_arguments_are_named(name, kwargs, says):
    with pytest.raises(ValueError, match=says): make(name, **kwargs)

@pytest.mark.parametrize('name', ['sgd', 'momentum', 'adam', 'adamw', 'lookahead_adamw'])
def test_fused_where_the_device_has_it(name):
    "torch says only at the first step that a device has no such kernel"
    assert all(pg['fused'] for pg in make(name)[1].opt.param_groups)
    assert not any(pg['fused'] for pg in make(name, foreach=False)[1].opt.param_groups)
    elsewhere = [dict(params=[nn.Parameter(torch.zeros(2, device='meta'))], lr=1e-3, weight_decay=0.)]
    assert not make_optimizer(name, elsewhere, 1e-3).param_groups[0]['fused']
    assert list(elsewhere[0])==['params', 'lr', 'weight_decay']

@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw'])
def test_fused_is_the_same(name):
    a,b = (step(*make(name, fused=fused), n=1) for fused in (True, False))
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
