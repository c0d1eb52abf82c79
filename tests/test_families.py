"""Every family of timm: blocks in the order of the forward pass, each parameter in one of them, the stem lowest, what
follows the last stage on top"""
import re, sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
import pytest
from torch import nn
from zoofast.encoders.blocks import find_blocks
from zoofast.training.optimizer import make_groups

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from families import build, families, forward_order
sys.path.pop(0)

FAMILIES = families()
# modules without group_matcher; a timm that has one will say so here
REFUSED = {'csatv2', 'metaformer', 'pit'}
# may be used by blocks above their own, such as a class token that joins late
TOKENS = re.compile(r'(.*\.)?(\w+_token\d?|pos_embed\w*|crpe\d)(\.|$)')
# pos_embed2 is a later stage's
STEM = re.compile(r'((cls|reg|dist)_token(1|_\d)?|pos_embed(1|_\w+)?|patch_embed1?|stem|conv_stem)(\.|$)')
TOP = re.compile(r'(norm|fc_norm|norm_head|conv_head|final_conv|final_layer|last_conv|pre_logits|neck|attn_pool|head|'
                 r'msfa|pre_classifier)(\.|$)')
# norms of each stage's own pooled features: nothing but the head follows them
SIDE = {'efficientvim': r'norm\.'}
OWN_TOP = {'selecsls'}                                # timm counts its four last convolutions, called head, as a block

@pytest.fixture(params=list(FAMILIES.items()), ids=lambda o: f'{o[0][0]}-{o[1]}')
def family(request): return request.param[0][0],request.param[1]

@lru_cache(None)
def body_of(name): return build(name)

@lru_cache(None)
def order_of(name): return forward_order(body_of(name))

@lru_cache(None)
def blocks_of(name, blocks):
    try: return find_blocks(body_of(name), blocks)
    except ValueError as e: return str(e)

def grouped(family, blocks='coarse'):
    found = blocks_of(family[1], blocks)
    if isinstance(found, str): pytest.skip('timm cannot group it: see test_those_that_timm_cannot_group')
    return found

@pytest.mark.slow
def test_enough_families_are_grouped():
    n = sum(isinstance(blocks_of(o, b), dict) for o in FAMILIES.values() for b in ('coarse', 'fine'))/2
    assert n>=180 and len(FAMILIES)-n<20

@pytest.mark.slow(but=24)
@pytest.mark.parametrize('blocks', ['coarse', 'fine'])
def test_each_parameter_is_in_one_block(family, blocks):
    found = grouped(family, blocks)
    body,head = body_of(family[1]),nn.Linear(2, 2)
    assert set(found.values())==set(range(max(found.values())+1)) and max(found.values())>0
    groups = make_groups(SimpleNamespace(encoder=SimpleNamespace(body=body), head=head), blocks)
    named = [(n, i) for i,g in enumerate(groups[:-1]) for part in g.values() for n,_ in part]
    assert len(named)==len(list(body.parameters()))
    assert dict(named)==found=={n: found[n] for n,_ in body.named_parameters()}
    assert [id(p) for part in groups[-1].values() for _,p in part]==[id(p) for p in head.parameters()]

@pytest.mark.slow(but=19)
def test_order_is_that_of_the_forward_pass(family):
    "No parameter is used before one of a lower block; a token may be lower than the block that it joins"
    coarse,fine = grouped(family),grouped(family, 'fine')
    order,shape = order_of(family[1])
    assert len(shape)==2 and len(order)>0.8*len(coarse)
    for found in (coarse, fine):
        later = max(found.values())
        for n in reversed([n for n in order if not re.match(SIDE.get(family[0], '$'), n)]):
            assert found[n]<=later, f'{n} of block {found[n]} is used before a parameter of block {later}'
            if not TOKENS.match(n): later = found[n]

@pytest.mark.slow(but=3)
@pytest.mark.parametrize('blocks', ['coarse', 'fine'])
def test_the_stem_is_lowest(family, blocks):
    found = grouped(family, blocks)
    assert {found[n] for n in found if STEM.match(n)}<={0}
    assert found[order_of(family[1])[0][0]]==0

@pytest.mark.parametrize('blocks', ['coarse', 'fine'])
def test_what_follows_the_last_stage_is_in_the_top_block(family, blocks):
    "And that block holds more than norms and a neck"
    found = grouped(family, blocks)
    top = {n for n in found if found[n]==max(found.values())}
    assert {n for n in found if TOP.match(n)}<=top
    shapes = dict(body_of(family[1]).named_parameters())
    assert any(shapes[n].ndim>1 and (family[0] in OWN_TOP or not TOP.match(n)) for n in top)
    assert not any(all(shapes[n].ndim<2 for n in found if found[n]==b) for b in set(found.values()))

def test_fine_blocks_are_parts_of_coarse_ones(family):
    coarse,fine = grouped(family),grouped(family, 'fine')
    of = {}
    for n,b in fine.items(): of.setdefault(b, set()).add(coarse[n])
    assert all(len(o)==1 for o in of.values())
    up = [min(of[b]) for b in sorted(of)]
    assert up==sorted(up) and max(fine.values())>=max(coarse.values())

def test_those_that_timm_cannot_group():
    "An error says so and what to do; with layer_decay=1 the encoder is one group"
    refused = {m for (m,_),n in FAMILIES.items() if isinstance(blocks_of(n, 'coarse'), str)}
    assert refused==REFUSED
    for (m,_),n in FAMILIES.items():
        if m not in refused: continue
        net = SimpleNamespace(encoder=SimpleNamespace(body=body_of(n)), head=nn.Linear(2, 2))
        for blocks in ('coarse', 'fine'):
            with pytest.raises(ValueError, match='timm knows no order of the blocks of .*layer_decay=1'):
                make_groups(net, blocks)
        n_params = [sum(len(o) for o in g.values()) for g in make_groups(net, layer_decay=1)]
        assert n_params==[len(list(body_of(n).parameters())), 2]
