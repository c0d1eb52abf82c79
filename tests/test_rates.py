"Learning rates, weight decay and groups are exactly what the documentation says, on encoders of every kind"
import pytest, timm, torch
from zoofast.encoders.encoder import Encoder, GalaxyNet
from zoofast.training.optimizer import LayerDecayOptimizer, group_table, make_groups
from zoofast.encoders.blocks import find_blocks

ENCODERS = {     # number of blocks: the stem and the stages (a vision transformer's stages are its blocks)
    'tf_efficientnet_lite0': 8,
    'resnet18': 5,
    'convnext_nano': 5,
    'vit_tiny_patch16_224': 13,
    'swin_tiny_patch4_window7_224': 5,
    'maxvit_rmlp_nano_rw_256': 5,
}
TOP = {          # parameters that follow the last stage, and work with it
    'tf_efficientnet_lite0': 'conv_head.weight',
    'convnext_nano': 'head.norm.weight',
    'vit_tiny_patch16_224': 'norm.weight',
    'swin_tiny_patch4_window7_224': 'norm.bias',
    'maxvit_rmlp_nano_rw_256': 'norm.weight',
    'resnet18': 'layer4.1.bn2.weight',
}
nets = {}

def net_of(name):
    encoder = Encoder(timm.create_model(name, num_classes=0), size=256 if '256' in name else 224)
    return GalaxyNet(encoder, 3)

@pytest.fixture(params=list(ENCODERS))
def name(request): return request.param

@pytest.fixture
def net(name):
    if name not in nets: nets[name] = net_of(name)
    return nets[name]

def where(opt):
    "Parameter -> numbers of the groups it is in"
    res = {}
    for i,ps in enumerate(opt.param_lists):
        for p in ps: res.setdefault(p, []).append(i)
    return res

def test_every_parameter_is_in_one_group(name, net):
    opt = LayerDecayOptimizer(make_groups(net))
    assert len(opt.hypers)==ENCODERS[name]+1
    assert {p: len(g) for p,g in where(opt).items()}=={p: 1 for p in net.parameters()}
    assert sorted(id(p) for pg in opt.opt.param_groups for p in pg['params'])==sorted(id(p) for p in net.parameters())
    table = group_table(opt, net)
    assert table.parameters.sum()==sum(p.numel() for p in net.parameters()) and table.block.iloc[-1]=='head'

@pytest.mark.parametrize('decay', [0.75, 1., 0.])
def test_rates(name, net, decay):
    opt = LayerDecayOptimizer(make_groups(net), lr=1e-4, layer_decay=decay)
    lrs = [h['lr'] for h in opt.hypers]
    assert lrs[-1]==lrs[-2]==1e-4
    for low,high in zip(lrs[:-2], lrs[1:-1]): assert low==pytest.approx(high*decay, rel=1e-12, abs=0)
    for pg,b in zip(opt.opt.param_groups, opt.block): assert pg['lr']==lrs[b]     # what torch really uses

def test_order_follows_the_forward_pass(name, net):
    "Blocks are numbered in the order in which the encoder runs them"
    body,found,seen = net.encoder.body,find_blocks(net.encoder.body),[]
    owner = {}
    for n,_ in body.named_parameters():
        if '.' not in n: continue                            # not the whole encoder, which ends last
        owner.setdefault(body.get_submodule(n.rpartition('.')[0]), []).append(found[n])
    hooks = [m.register_forward_hook(lambda m,*_: seen.extend(owner[m])) for m in owner]
    with torch.no_grad(): net.eval()(torch.rand(1, 3, net.encoder.size, net.encoder.size))
    for h in hooks: h.remove()
    assert seen==sorted(seen) and set(seen)==set(range(max(found.values())+1))

def test_what_follows_the_last_stage_is_in_the_top_block(name, net):
    found = find_blocks(net.encoder.body)
    assert found[TOP[name]]==max(found.values())==ENCODERS[name]-1
    assert find_blocks(net.encoder.body, 'fine')[TOP[name]]==max(find_blocks(net.encoder.body, 'fine').values())

def test_freeze_to_minus_two_is_head_and_top_block(name, net):
    opt = LayerDecayOptimizer(make_groups(net))
    opt.freeze_to(-2)
    groups = where(opt)
    assert {p for p in net.parameters() if p.requires_grad}=={p for p,g in groups.items() if g[0]>=len(opt.groups)-2}
    opt.unfreeze()
    assert all(p.requires_grad for p in net.parameters())

def test_weight_decay_spares_scales_offsets_and_the_head(name, net):
    opt = LayerDecayOptimizer(make_groups(net), weight_decay=0.05)
    wd = {p: pg['weight_decay'] for pg in opt.opt.param_groups for p in pg['params']}
    assert {wd[p] for p in net.head.parameters()}=={0.}
    spared = net.encoder.body.no_weight_decay() if hasattr(net.encoder.body, 'no_weight_decay') else set()
    for n,p in net.encoder.body.named_parameters():
        assert wd[p]==(0. if p.ndim<2 or n in spared or n.endswith('gamma') else 0.05), n
    opt.set_hyper('wd', 0.2)                               # a schedule or fit(wd=...) spares them too
    head = set(net.head.parameters())
    assert {pg['weight_decay'] for pg in opt.opt.param_groups if head & set(pg['params'])}=={0.}

@pytest.mark.slow(but=2)
def test_a_step_moves_each_weight_by_its_rate(name):
    "Plain gradient descent from equal gradients"
    net = net_of(name).double()
    opt = LayerDecayOptimizer(make_groups(net), torch.optim.SGD, lr=1e-2, weight_decay=0.)
    before = {p: p.detach().clone() for p in net.parameters()}
    for p in net.parameters(): p.grad = torch.ones_like(p)
    opt.step()
    n = len(opt.groups)-1
    for p,(g,) in where(opt).items():
        rate = 1e-2*(0.75**(n-1-g) if g<n else 1.)
        assert torch.allclose(before[p]-p.detach(), torch.tensor(rate, dtype=p.dtype), rtol=1e-9, atol=1e-12)
