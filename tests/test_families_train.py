"One encoder of every module of timm learns two steps on small galaxies and predicts; a few without --slow"
import sys
from functools import lru_cache
from pathlib import Path
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from zoofast.all import *

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from families import build, per_module
sys.path.pop(0)

QUICK = {'cait', 'convnext', 'efficientnet', 'metaformer', 'swin_transformer_v2', 'vision_transformer'}
UNGROUPED = {'csatv2', 'metaformer', 'pit'}       # see test_families.py
MODULES = per_module()

@pytest.fixture(scope='module')
def galaxies(survey):
    "16 galaxies to train on and 4 to validate with; a function of the size that gives the data"
    df = survey[1][survey[1].morphology.isin(['ring', 'spiral'])].head(20).copy()
    df['split'] = ['train']*16 + ['valid']*4
    @lru_cache(None)
    def loaders(size):
        return GalaxyDataLoaders.from_catalog(df, 'morphology', size=size, batch_size=8, progress=False)
    return df,loaders

class Gradients(Callback):
    "Counts steps, keeps losses, and the names of parameters that had a finite gradient"
    def before_fit(self): self.losses,self.with_grad = [],set()
    def after_backward(self):
        self.losses.append(self.learn.loss.item())
        grads = {n: p.grad for n,p in self.learn.model.named_parameters() if p.grad is not None}
        self.with_grad |= {n for n,g in grads.items() if g.isfinite().all()}

def learner(galaxies, name, **kwargs):
    "With the smallest images that the encoder takes"
    for size in (64, 128, build(name).pretrained_cfg['input_size'][-1]):
        try: return galaxy_learner(galaxies(size), name, pretrained=False, **kwargs)
        except ValueError as e:
            if 'does not take' not in str(e): raise
    pytest.fail(f'{name} takes no size')

def test_enough_modules(): assert len(MODULES)>=90

@pytest.mark.parametrize('module', [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MODULES])
def test_two_steps_and_a_prediction(module, galaxies):
    name,(df,dls) = MODULES[module],galaxies
    if sum(p.numel() for p in build(name).parameters())>1e8: pytest.skip(f'{name} is too large to train in a test')
    if module in UNGROUPED:
        with pytest.raises(ValueError, match='layer_decay=1'): learner(dls, name)
    learn = learner(dls, name, layer_decay=1 if module in UNGROUPED else 0.75)
    before = {n: p.detach().clone() for n,p in learn.model.named_parameters()}
    seen = Gradients()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=seen)
    assert len(seen.losses)==2 and np.isfinite(seen.losses).all()
    trained = {n for n,p in learn.model.named_parameters() if p.requires_grad}
    assert trained==seen.with_grad, 'no gradient'
    for i,g in enumerate(learn.opt.param_lists): assert g and any(p.requires_grad for p in g), i
    moved = {n for n,p in learn.model.named_parameters() if not torch.equal(p, before[n])}
    for i,g in enumerate(learn.opt.param_lists):
        names = [n for n,p in learn.model.named_parameters() if any(p is o for o in g)]
        assert any(n in moved for n in names), f'group {i} did not learn'
    preds = predict_catalog(learn, df[df.split=='valid'], progress=False)
    probs = preds[[c for c in preds if c in learn.dls.task.columns[1:]]].to_numpy(float)
    assert probs.shape==(4, 2) and np.isfinite(probs).all()
    assert np.allclose(probs.sum(1), 1, atol=1e-5) and preds.error.isna().all()
