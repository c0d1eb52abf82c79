"The head is fitted to its end before the encoder moves, and the model is compared with it"
import re, warnings
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from zoofast.all import *
from zoofast.tasks.losses import make_loss
from zoofast.training.linear import fit_head
from zoofast.training.probe import NotWorthIt, can_fit_head, doubtful_labels

LITE = 'tf_efficientnet_lite0'
@pytest.fixture(scope='module')
def dls(survey): return loaders(survey, label_cols='morphology')

def loaders(survey, n=60, **kw):
    df = survey[1].head(n).assign(split=['train']*(n-24)+['valid']*14+['test']*10)
    df = df.assign(bright=df.mag_r, ring=(df.morphology=='ring').astype(int))
    df['spiral'] = (df.morphology=='spiral').astype(int)
    return GalaxyDataLoaders.from_catalog(df, size=32, batch_size=16, progress=False, **kw)

def silent(learn, f):
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=NotWorthIt)
        f(learn)
    return learn
def probe(dls, **kw):
    return silent(galaxy_learner(dls, LITE, training_mode='head_only', **kw), lambda l: l.fine_tune(0))
def state(learn): return {k: v.clone() for k,v in learn.net.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)

TASKS = dict(classes=dict(label_cols='morphology'), labels=dict(label_cols=['ring', 'spiral']),
             numbers=dict(task=Regression(['bright'])), absolute=dict(task=Regression(['bright'], loss='mae')),
             fractions=dict(task=Regression(['ring'], unit_interval=True)))

@pytest.mark.slow
@pytest.mark.parametrize('name', TASKS)
def test_the_head_of_every_task_is_at_its_minimum(name, survey):
    "Its loss with the penalty rises in every direction that was tried, and a constant answer is worse"
    dls = loaders(survey, **TASKS[name])
    learn = probe(dls)
    ds,head = learn._cached[1].train_ds,learn.probe.head
    std = ds.store.std(0, correction=0)
    def loss(w, b):
        out = torch.nn.functional.linear(ds.store, w, b)
        return float(learn.loss_func(out, ds.y)+head.strength/2*((w*std)**2).sum())
    best = loss(head.weight, head.bias)
    g = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2):
        for _ in range(10):
            w,b = (torch.randn(o.shape, generator=g)*size for o in (head.weight, head.bias))
            assert loss(head.weight+w, head.bias+b)>best-1e-5
    assert best<loss(0*head.weight, learn.task.bias if learn.task.bias is not None else 0*head.bias)
    assert torch.equal(learn.net.head[1].weight, head.weight)

@pytest.mark.slow
def test_votes_are_fitted_by_their_likelihood():
    from zoofast.tasks.votes import VoteCounts
    task = VoteCounts('decals_dr5_ortho')
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=g)
    y = torch.poisson(torch.exp(1+x[:,:1]*torch.randn(1, task.n_out, generator=g)), generator=g)
    head = fit_head(x, y, task.loss_func, task.n_out)
    assert task.loss_func(head(x), y)<task.loss_func(torch.zeros(60, task.n_out), y)
    assert min(head.losses, key=head.losses.get)==head.strength and torch.isfinite(head.outside).all()

@pytest.mark.parametrize('size,kw,says', [
    (16, {}, '5 epochs on 36 galaxies in batches of 16 are 15 steps.*batch_size=8 .* 25 of them, and training_mode='),
    (9, {}, 'batches of 9 are 20 steps'),
    (8, dict(accumulate=2), 'batches of 8 are 15 steps, few to learn from; more epochs'),
    (8, {}, None), (16, dict(training_mode='head_only'), None)])
def test_few_steps_are_said_at_the_start(size, kw, says, survey, tmp_path):
    class Stop(Callback):
        def before_fit(self): raise KeyboardInterrupt
    df = survey[1].head(50).assign(split=['train']*36+['valid']*14)
    dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=32, batch_size=size, progress=False)
    learn = galaxy_learner(dls, 'test_vit', pretrained=False, save_dir=tmp_path/'run', cbs=Stop(), **kw)
    with warnings.catch_warnings(record=True) as seen, pytest.raises(KeyboardInterrupt):
        warnings.simplefilter('always')
        silent(learn, lambda l: l.fine_tune(5))
    said = [str(o.message) for o in seen if 'few to learn' in str(o.message)]
    assert len(said)==bool(says)
    if says: assert re.search(says, said[0]) and said[0] in (tmp_path/'run/log.txt').read_text()

@pytest.mark.slow
def test_the_model_is_compared_with_what_a_probe_alone_reaches(dls):
    learn = silent(galaxy_learner(dls, LITE), lambda l: l.fine_tune(1))
    assert [r['trained'] for r in learn.history]==['head', 'all']
    valid = dls.catalog[dls.catalog.split!='train']
    of = (valid.split=='valid').to_numpy()
    said = score_predictions(learn.probe.predictions(dls.task, valid)[of], valid[of], dls.task)
    assert said['accuracy']==pytest.approx(probe(dls).history[0]['accuracy'])
    assert np.isfinite(probe(dls).history[0]['train_loss']) and learn.probe.outputs.isfinite().all()
    assert learn.worth.galaxies==14 and learn.worth.probe==pytest.approx(said['accuracy'])
    model = score_predictions(predict_catalog(learn, valid[of], progress=False), valid[of], dls.task)
    assert learn.worth.model==pytest.approx(model['accuracy'])

@pytest.mark.slow
def test_test_galaxies_are_answered_as_the_frozen_model_would(dls):
    learn = probe(dls)
    rows = dls.catalog[dls.catalog.split!='train'].reset_index(drop=True)
    a,b = learn.probe.predictions(dls.task, rows),predict_catalog(learn, rows, progress=False)
    for c in dls.task.columns[1:]: np.testing.assert_allclose(a[c], b[c], atol=2e-3)
    assert list(a.id_str)==list(b.id_str)

@pytest.mark.slow
def test_a_seed_repeats_it_bit_for_bit(dls):
    a,b = (silent(galaxy_learner(dls, LITE, seed=7), lambda l: l.fine_tune(1)) for _ in range(2))
    assert same(state(a), state(b)) and a.history==b.history
    assert not torch.equal(probe(dls, seed=1).probe.head.weight, probe(dls, seed=2).probe.head.weight)

class Killed(Exception): pass
class Kill(Callback):
    "Ends the process, as it were, after so many epochs"
    order = 61
    def __init__(self, after): self.after = after
    def after_epoch(self):
        if len(self.learn.history)==self.after: raise Killed('killed')

@pytest.mark.slow
@pytest.mark.parametrize('after', [1, 2])
def test_a_resumed_run_has_the_probe_that_it_had(after, dls, tmp_path):
    whole = silent(galaxy_learner(dls, LITE, save_dir=tmp_path/'a'), lambda l: l.fine_tune(2))
    with pytest.raises(Killed):
        silent(galaxy_learner(dls, LITE, save_dir=tmp_path/'b', cbs=Kill(after)), lambda l: l.fine_tune(2))
    again = silent(galaxy_learner(dls, LITE, save_dir=tmp_path/'b', resume=True), lambda l: l.fine_tune(2))
    assert again.history==whole.history and same(state(again), state(whole)) and again.worth==whole.worth
    assert torch.equal(again.probe.outputs, whole.probe.outputs)
    assert torch.equal(again.probe.head.outside, whole.probe.head.outside)

class Looks(Callback):
    "A callback of a user's, who wants to see images"
    def before_batch(self): pass

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('kw,fit', [(dict(l1=1e-4), {}), (dict(mixup=.4), {}), (dict(cache_features=False), {}),
                                    (dict(cbs=Looks()), {}), ({}, dict(head_lr=1e-2)), ({}, {})], ids=str)
def test_in_finetuning_the_head_takes_steps(kw, fit, dls):
    "and the probe stands beside it, where features stand for images and the loss is all there is"
    learn = silent(galaxy_learner(dls, LITE, **kw), lambda l: l.fine_tune(0, freeze_epochs=2, **fit))
    assert len(learn.recorder.losses)==2*len(dls.train)
    assert (learn.probe is None)==(learn.worth is None)==bool(kw)

@pytest.mark.slow
@pytest.mark.parametrize('fit,steps', [({}, 0), (dict(head_lr=1e-2), 2)], ids=str)
def test_the_head_alone_is_the_probe_unless_it_gets_a_rate(fit, steps, dls):
    learn = galaxy_learner(dls, LITE, training_mode='head_only')
    silent(learn, lambda l: l.fine_tune(1, freeze_epochs=1, **fit))
    assert len(learn.recorder.losses)==steps*len(dls.train) and len(learn.history)==2
    assert torch.equal(learn.net.head[1].weight, learn.probe.head.weight)==(not steps)

@pytest.mark.slow
def test_an_encoder_that_has_learnt_the_labels_is_not_probed_again(dls):
    learn = galaxy_learner(dls, LITE)
    learn.freeze()
    assert can_fit_head(learn)
    silent(learn, lambda l: l.fine_tune(1))
    first = learn.probe
    learn.freeze()
    assert not can_fit_head(learn)
    silent(learn, lambda l: l.fine_tune(1))
    assert learn.probe is first

@pytest.mark.slow
def test_class_weights_and_sampling_count(survey):
    plain,weighted = (probe(loaders(survey, label_cols='ring'), class_weights=w) for w in (None, {0: 1, 1: 50}))
    drawn = probe(loaders(survey, label_cols='ring', sampling='balanced'))
    def ring(learn): return learn.task.activation(learn.probe.outputs)[:,1].mean()
    assert ring(weighted)>ring(plain)+.1 and ring(drawn)>ring(plain)

@pytest.mark.slow
def test_a_rare_class_is_told_of_with_what_weights_would_do(survey):
    learn = probe(loaders(survey, label_cols='ring'))
    counts = torch.bincount(learn.dls.train_ds.y)
    assert (learn.probe.balanced is not None)==bool(counts.min()<.25*counts.sum())
    loss = make_loss(learn.dls.task, class_weights='balanced', counts=counts.tolist())
    ds = learn._cached[1].train_ds
    want = fit_head(ds.store, ds.y, loss, 2, ds.views, strength=learn.probe.head.strength)
    valid = learn._cached[1].valid_ds.store
    torch.testing.assert_close(learn.probe.balanced[:14], want(valid), atol=1e-3, rtol=1e-3)

def test_planted_wrong_labels_are_found(survey):
    df = survey[1].copy()
    df['shape'] = np.where(df.morphology=='edge_on', 'edge on', 'face on')
    wrong = df.index[[3, 11, 40]]
    df.loc[wrong, 'shape'] = df.loc[wrong, 'shape'].map({'edge on': 'face on', 'face on': 'edge on'})
    dls = GalaxyDataLoaders.from_catalog(df, 'shape', size=64, batch_size=16, progress=False)
    found = doubtful_labels(probe(dls))
    assert list(found.columns)==['id_str', 'file_loc', 'label', 'given', 'likely', 'doubt']
    planted = set(df.id_str[wrong])
    assert set(found.id_str) & planted and len(set(found.id_str)-planted)<=3, found
    with pytest.raises(ValueError, match='no head was fitted'): doubtful_labels(galaxy_learner(dls, LITE))

@pytest.mark.slow
def test_the_command_line_says_once_that_it_was_made_worse(tmp_path, run_zoofast):
    "In the words of the shell, with the scores, which an encoder of random weights has lost in one epoch"
    simulate_survey(tmp_path, n=200, size=32, fits=False, progress=False)
    done = run_zoofast('finetune', tmp_path/'catalog.csv', '--label', 'morphology', '--encoder', 'test_efficientnet',
                       '--random-weights', '--size', 32, '--epochs', 1, '--no-report', '--save-dir', tmp_path/'run')
    assert done.returncode==0, done.stderr
    said = [o for o in (done.stdout+done.stderr).splitlines() if 'finetuning made it worse' in o]
    assert len(said)==1 and said[0] in done.stdout and 'training_mode=' not in said[0], done.stdout+done.stderr
    assert 'finetuning made it worse, and --training-mode head_only keeps the probe' in said[0]

@pytest.mark.slow
def test_the_command_line_says_it_all(survey, tmp_path, run_zoofast):
    "finetune compares with the probe, the report and the card repeat it, check lists labels to look at"
    folder = survey[0]
    done = run_zoofast('finetune', folder/'catalog.csv', '--label', 'morphology', '--encoder', LITE, '--size', 32,
                       '--epochs', 1, '--test', .2, '--save-dir', tmp_path/'run')
    assert done.returncode==0, done.stderr
    for what in ('validation galaxies', 'test galaxies'):
        assert any(what in l and 'linear probe' in l for l in done.stdout.splitlines()), done.stdout
    page = (tmp_path/'run'/'report.html').read_text()
    assert page.count('linear probe')>=2 and 'Labels to look at again' in page
    assert 'linear probe' in (tmp_path/'run'/'bundle'/'README.md').read_text()
    assert {'galaxies', 'model', 'probe', 'p'}<=set(load_bundle(tmp_path/'run').config['probe'])
    checked = run_zoofast('check', folder/'catalog.csv', '--label', 'morphology', '--encoder', LITE, '--size', 32,
                          '--write', tmp_path/'odd.csv')
    assert checked.returncode==0 and 'all 60 rows' in checked.stdout, checked.stderr
    assert set(pd.read_csv(tmp_path/'odd.csv').kind)<={'bad', 'suspect', 'doubtful'}
    refused = run_zoofast('check', folder/'catalog.csv', '--encoder', LITE)
    assert refused.returncode==2 and '--label' in refused.stderr
