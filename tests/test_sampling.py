"Rare classes are drawn as often as others, in resumed runs and on features too"
import warnings
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from test_fastai import learner, silent
from test_in_hand import sums
from zoofast.all import CatalogError, GalaxyDataLoaders

def rare(survey, sampling='balanced'):
    df = survey[1].assign(ring=(survey[1].morphology=='ring').astype(int))
    df['w'] = np.where(df.ring==1, 3., 1.)
    return GalaxyDataLoaders.from_catalog(df, 'ring', size=32, batch_size=16, sampling=sampling, progress=False)

class Count(Callback):
    "Notes the targets of the batches"
    def before_fit(self): self.seen = []
    def after_pred(self):
        if self.training: self.seen += self.yb[0].tolist()

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('frozen', [False, True], ids=['images', 'features'])
@pytest.mark.parametrize('sampling,share', [(None, None), ('balanced', .5), ('w', 'w')])
def test_what_an_epoch_draws(sampling, share, frozen, survey):
    dls = rare(survey, sampling)
    p = dls.train_ds.y.float().mean().item()
    expected = {None: p, .5: .5, 'w': 3*p/(3*p+1-p)}[share]
    learn,count = learner(dls),Count()
    if frozen: learn.freeze()
    with silent(learn): learn.fit(12, lr=1e-5, cbs=count)
    assert len(count.seen)==12*len(dls.train_ds)
    assert np.mean(count.seen)==pytest.approx(expected, abs=.001 if share is None else .08)

@pytest.mark.parametrize('sampling', ['balanced', 'w'])
def test_weights_are_made_without_a_word(sampling, survey):
    then = torch.is_warn_always_enabled()
    torch.set_warn_always(True)                  # a warning that torch gives once may have been given by now
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            rare(survey, sampling)
    finally: torch.set_warn_always(then)

def test_a_resumed_run_draws_the_same(survey, tmp_path):
    class PowerCut(Callback):
        def after_step(self):
            if self.epoch==1: raise KeyboardInterrupt
    whole = learner(rare(survey), save_dir=tmp_path/'whole')
    with silent(whole): whole.fit(3)
    with pytest.raises(KeyboardInterrupt):
        cut = learner(rare(survey), save_dir=tmp_path/'cut', cbs=PowerCut())
        with silent(cut): cut.fit(3)
    again = learner(rare(survey), save_dir=tmp_path/'cut', resume=True)
    with silent(again): again.fit(3)
    assert torch.equal(sums(again), sums(whole)) and again.history==whole.history
    other = learner(rare(survey, None), save_dir=tmp_path/'cut', resume=True)
    with silent(other), pytest.raises(ValueError, match='sampling'): other.fit(3)

def test_mistakes(survey):
    with pytest.raises(CatalogError, match='no_such'): rare(survey, 'no_such')
    with pytest.raises(ValueError, match='column of weights'):
        GalaxyDataLoaders.from_catalog(survey[1], 'mag_r', sampling='balanced')
