"""Training on real files: what is frozen stays, what is seeded repeats, few galaxies train, a bundle predicts the same
elsewhere"""
import os, subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from zoofast.all import *

@pytest.fixture(scope='module')
def dls(survey): return GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, batch_size=16, progress=False)

def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): f(learn)
    return learn
def changed(before, after): return {k for k in before if not torch.equal(before[k], after[k])}

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('fit', [
    lambda l: l.fit(2),
    lambda l: l.fit_one_cycle(2),
    lambda l: l.fine_tune(2),
    lambda l: (l.unfreeze(), l.fit_flat_cos(1))])
def test_head_only_changes_the_head_alone(dls, fit):
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0', training_mode='head_only', learning_rate=1e-2)
    before = state(learn)
    quiet(learn, fit)
    assert changed(before, state(learn))=={'head.1.weight', 'head.1.bias'}

@pytest.mark.slow
@pytest.mark.parametrize('encoder', ['tf_efficientnet_lite0', 'resnet18', 'convnext_atto', 'vit_tiny_patch16_224'])
def test_n_blocks_changes_the_top_block_alone(dls, encoder):
    learn = galaxy_learner(dls, encoder, pretrained=False, n_blocks=1, learning_rate=1e-2, keep_best=False)
    blocks = find_blocks(learn.model.encoder.body)
    top = {f'encoder.body.{n}' for n,b in blocks.items() if b==max(blocks.values())}
    before = state(learn)
    quiet(learn, lambda l: l.fine_tune(1))
    moved = changed(before, state(learn))
    buffers = {n for n,_ in learn.model.named_buffers()}
    assert moved-buffers<=top|{'head.1.weight', 'head.1.bias'} and moved&top
    prefixes = {n.rpartition('.')[0] for n in top}
    assert all(n.rpartition('.')[0] in prefixes for n in moved&buffers)

def test_head_only_is_as_good_as_an_eval_mode_encoder(dls):
    "The cached features are those of the encoder in evaluation mode, in the order of the loader"
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0', training_mode='head_only', learning_rate=1e-2)
    quiet(learn, lambda l: l.fit(5))
    loss,acc,*_ = learn.validate()
    preds = predict_catalog(learn, dls.catalog[dls.catalog.split=='valid'], progress=False)
    assert acc==pytest.approx(score_predictions(preds, dls.catalog[dls.catalog.split=='valid'], dls.task)['accuracy'])
    assert loss==pytest.approx(learn.best_epoch['valid_loss'], abs=1e-4)

def test_ten_galaxies_and_a_batch_of_64(survey):
    df = survey[1][survey[1].morphology.isin(['ring', 'spiral'])].head(10)
    dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=64, batch_size=64, progress=False)
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0')
    before = state(learn)
    quiet(learn, lambda l: l.fine_tune(1))
    moved = changed(before, state(learn))
    assert {'head.1.weight', 'encoder.body.conv_stem.weight', 'encoder.body.blocks.6.0.conv_pw.weight'}<=moved

@pytest.mark.slow
def test_a_seed_repeats_a_run_bit_for_bit(dls):
    def weights(seed):
        learn = galaxy_learner(dls, 'tf_efficientnet_lite0', seed=seed)
        return state(quiet(learn, lambda l: l.fine_tune(2)))
    a = weights(5)
    torch.rand(3); np.random.rand(3)
    assert not changed(a, weights(5)) and changed(a, weights(6))

def test_a_second_fit_goes_on_with_other_random_numbers(dls):
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0')
    quiet(learn, lambda l: (l.fit(1), l.fit(1)))
    assert learn.n_fits==2 and [h['fit'] for h in learn.history]==[0, 1]

@pytest.mark.slow
def test_a_bundle_elsewhere_offline_without_unpickling(dls, survey, tmp_path):
    learn = quiet(galaxy_learner(dls, 'tf_efficientnet_lite0'), lambda l: l.fine_tune(1))
    learn.save_bundle(tmp_path/'b')
    here = predict_catalog(learn, survey[1], progress=False)
    code = f'''
import sys
loaded = []
sys.addaudithook(lambda event, args: loaded.append((event, args)) if event=="pickle.find_class" else None)
import torch
torch.load = None
from zoofast.predict.table import predict_catalog
del loaded[:]                       # what libraries do while they are imported is not loading
predict_catalog({str(tmp_path/'b')!r}, {str(survey[0]/'catalog.csv')!r}, {str(tmp_path/'p.parquet')!r}, progress=False)
assert not loaded, loaded
assert 'fastai' not in sys.modules
'''
    subprocess.run([sys.executable, '-c', code], env={**os.environ, 'HF_HUB_OFFLINE': '1'}, check=True)
    there = pd.read_parquet(tmp_path/'p.parquet')
    cols = dls.task.columns[1:]
    assert there.id_str.tolist()==survey[1].id_str.tolist()
    assert np.abs(there[cols].to_numpy()-here[cols].to_numpy()).max()<1e-6

def test_fastai_callbacks_work(dls, tmp_path):
    cbs = [SaveModelCallback(monitor='accuracy'), GradientClip(1.), MixUp()]
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0', save_dir=tmp_path, cbs=cbs)
    quiet(learn, lambda l: l.fine_tune(1))
    assert len(learn.history)==2 and (tmp_path/'models').is_dir()

def test_one_galaxy_left_over(survey):
    "17 galaxies to train in batches of 8: batch normalisation never sees a batch of one"
    df = split_catalog(survey[1].head(22), valid=0.2)
    df['split'] = ['train']*17+['valid']*5
    dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=64, batch_size=8, progress=False)
    assert [len(y) for _,y in dls.train]==[8, 9]
    quiet(galaxy_learner(dls, 'tf_efficientnet_lite0'), lambda l: l.fit(1))
