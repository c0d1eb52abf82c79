"Calibration and sets: each learner's own, saved and loaded, on the command line, and what cannot be calibrated"
import json
import numpy as np, pandas as pd, pytest, torch
from zoofast.bundles.bundle import load_bundle
from zoofast.tasks.calibration import WithSets, fit_calibration
from zoofast.core.errors import CatalogError
from zoofast.data.loaders import GalaxyDataLoaders
from zoofast.training.finetune import galaxy_learner
from zoofast.predict.table import predict_catalog
from zoofast.tasks.classes import Classification, MultiLabel
from zoofast.tasks.regression import Regression
from zoofast.tasks.votes import VoteCounts
import zoofast.bundles.save      # noqa: F401, gives the learner its save_bundle

def loaders(df, *args, **kwargs):
    return GalaxyDataLoaders.from_catalog(df, *args, size=32, augment="none", progress=False, **kwargs)

def fitted(dls, **kwargs):
    learn = galaxy_learner(dls, 'test_efficientnet', pretrained=False, **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    return learn

@pytest.fixture(scope='module')
def df(survey):
    ring = survey[1].morphology.eq('ring').astype(int)
    bar = survey[1].has_bar.eq(True).astype(int)
    return survey[1].assign(z=lambda d: d.radius_arcsec*10, ring=ring, bar=bar)

@pytest.mark.slow(but=1)
@pytest.mark.filterwarnings('ignore:the temperature')
@pytest.mark.parametrize('labels', ['morphology', 'z', ['ring', 'bar']])
def test_saved_and_loaded(df, tmp_path, labels):
    learn = fitted(loaders(df, labels))
    said = learn.calibrate()
    assert said['n']==len(learn.dls.valid_ds) and 'scores' not in said
    learn.save_bundle(tmp_path/'b')
    here,there = (predict_catalog(o, df, coverage=.8, tta=2, progress=False) for o in (learn, tmp_path/'b'))
    pd.testing.assert_frame_equal(here, there, check_exact=False, rtol=1e-6)
    by_label = {'morphology': ['morphology_set'], 'z': ['z_lower', 'z_upper']}
    names = by_label.get(labels if isinstance(labels, str) else '', ['ring_set', 'bar_set'])
    assert set(names)<=set(here) and list(here)[-1]=='error'
    model = load_bundle(tmp_path/'b')
    certain = [c for c in here if c not in names and not c.endswith('_std')]
    assert list(predict_catalog(model, df[:3], progress=False))==certain
    again = model.to_learner(loaders(df, task=model.task))
    assert getattr(again.task, 'temperature', 1)==1 and again.calibration is None

@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:the temperature')
def test_a_temperature_is_a_learners_own(df):
    dls = loaders(df, 'morphology')
    a = fitted(dls)
    plain = predict_catalog(a, df[:5], progress=False)
    a.calibrate()
    t,model,cal = a.task.temperature,a.to_model(),predict_catalog(a, df[:5], progress=False)
    assert t!=1 and not np.allclose(cal.morphology_ring, plain.morphology_ring)
    assert cal.morphology_pred.tolist()==plain.morphology_pred.tolist()
    b = fitted(dls)
    assert b.task.temperature==dls.task.temperature==1 and a.task.temperature==model.task.temperature==t
    pd.testing.assert_frame_equal(predict_catalog(model, df[:5], progress=False), cal)
    with a.no_bar(), a.no_logging(): a.fit(1)
    assert a.task.temperature==1 and a.calibration is None and model.task.temperature==t

@pytest.mark.slow
def test_what_cannot_be_calibrated(df):
    votes = loaders(df, task=VoteCounts('decals_dr5_ortho'))
    with pytest.raises(ValueError, match='intervals of their own'): fitted(votes).calibrate()
    few = fitted(loaders(df, 'z', valid=.1))
    with pytest.raises(ValueError, match='at least 10'): few.calibrate()
    with pytest.raises(ValueError, match='not calibrated'): predict_catalog(few, df, coverage=.9, progress=False)

NOT_FITTED = ['abc', [1, 2], 5, None, {}, {'scores': {'z': 'abc'}}, {'scores': {'z': [[1]]*20}},
              {'scores': {'z': [-1.]*20}}, {'scores': {'z': [float('nan')]*20}}, {'scores': {'other': [1.]*20}}]
@pytest.mark.parametrize('calibration', NOT_FITTED)
def test_a_calibration_that_nobody_fitted(calibration):
    with pytest.raises(ValueError, match='coverage='): WithSets(Regression('z', mean=[0], std=[1]), calibration)

def test_names_that_clash():
    numbers = pd.DataFrame({'z': [1., 2], 'z_std': [1., 2]})
    with pytest.raises(CatalogError, match="'z_std'"): Regression(['z', 'z_std']).fit(numbers)
    with pytest.raises(CatalogError, match="'k_a_std'"): Classification('k').fit(pd.DataFrame({'k': ['a', 'a_std']*2}))
    task = Regression(['z', 'z_lower'], mean=[0, 0], std=[1, 1])
    scores = {c: [1.]*20 for c in ('z', 'z_lower')}
    with pytest.raises(ValueError, match="'z_lower'"): WithSets(task, {'scores': scores}, .5)

@pytest.mark.filterwarnings('ignore:the temperature')
def test_sets_hold_what_they_promise():
    "Over many draws, a part of the truths that is at least what was asked for, and little more"
    rng,inside = torch.Generator().manual_seed(1),[]
    for _ in range(40):
        out = torch.randn(400, 4, generator=rng, dtype=torch.double)*2
        y = torch.multinomial((out/1.5).softmax(1), 1, generator=rng)[:,0]
        task = Classification('k', list('abcd'))
        calibrated = WithSets(task, fit_calibration(task, out[:200], y[:200]), .9)
        sets = calibrated.to_frame(task.activation(out[200:]).numpy()).k_set
        inside.append(np.mean([task.classes[t] in s.split('|') for s,t in zip(sets, y[200:].tolist())]))
    assert .89<np.mean(inside)<.92

@pytest.mark.slow
def test_on_the_command_line(df, tmp_path, run_zoofast):
    df[['id_str', 'file_loc', 'z', 'morphology']].to_csv(tmp_path/'c.csv', index=False)
    common = ['--encoder', 'test_efficientnet', '--random-weights', '--size', '32', '--epochs', '1']
    res = run_zoofast('finetune', tmp_path/'c.csv', '--label', 'z', '--calibrate',
                      '--save-dir', tmp_path/'run', *common)
    assert res.returncode==0 and 'calibrated on 12 validation galaxies' in res.stderr, res.stderr
    res = run_zoofast('predict', tmp_path/'run', tmp_path/'c.csv', '--out', tmp_path/'p.csv', '--coverage', '0.8')
    assert res.returncode==0 and {'z_lower', 'z_upper'}<=set(pd.read_csv(tmp_path/'p.csv')), res.stderr
    res = run_zoofast('finetune', tmp_path/'c.csv', '--label', 'morphology', '--calibrate', '--valid', '0.1',
                      '--save-dir', tmp_path/'few', *common)
    assert res.returncode==2 and 'at least 10 validation galaxies' in res.stderr, res.stderr
    assert 'epoch' not in res.stderr, res.stderr
    unasked = {'questions': {'a': ['b', 'c']}, 'asked_after': ['a']}
    for bad,said in (({'name': 'x'}, 'write it like'), (unasked, 'asked_after')):
        (tmp_path/'tree.json').write_text(json.dumps(bad))
        res = run_zoofast('check', tmp_path/'c.csv', '--schema', tmp_path/'tree.json')
        assert res.returncode==2 and said in res.stderr and 'Traceback' not in res.stderr

def test_validation_loss_does_not_depend_on_the_batch(df):
    "Also where answers are missing"
    d = df.assign(g=df.g_r.where(np.arange(len(df))%3>0), split=['train']*40+['valid']*20)
    losses = []
    for bs in (2, 5, 20):
        learn = galaxy_learner(loaders(d, ['z', 'g'], batch_size=bs), 'test_efficientnet', pretrained=False)
        with learn.no_bar(), learn.no_logging(): losses.append(float(learn.validate()[0]))
    assert np.ptp(losses)<1e-5, losses

def test_votes_of_many_samples_take_little_memory():
    import tracemalloc
    task,rng = VoteCounts('decals_dr5_ortho', n_votes=500),np.random.default_rng(0)
    samples = rng.gamma(2, 5, (4, 300, 34))+.3
    tracemalloc.start()
    table = task.to_frame(samples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak<400e6                                            # 160 MB each of half a dozen arrays at once, otherwise
    some = task.to_frame(samples[:,150:155])
    pd.testing.assert_frame_equal(table[150:155].reset_index(drop=True), some)
    for c in task.label_cols:
        assert (table[f'{c}_fraction_lower']<=table[f'{c}_fraction']).all()
        assert (table[f'{c}_fraction']<=table[f'{c}_fraction_upper']).all()

def test_numbers_in_the_card_count_labels_with_gaps(df):
    some = df.bar.astype(float).where(np.arange(len(df))%4>0)
    d = df.assign(bar=some, n=df.n_arms.astype(float), split=['train']*40+['valid']*20)
    t = MultiLabel(['ring', 'bar']).fit(d)
    got = t.summarise(d)['labels']['bar']
    assert got['missing']==15 and got['0']+got['1']==45
    c = Classification('n').fit(d)
    assert sum(sum(v.values()) for v in c.summarise(d)['classes'].values())==60
