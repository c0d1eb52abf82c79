"Each task: trained on simulated galaxies, saved, loaded in a new process, and the same predictions before and after"
import subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from scipy.stats import dirichlet_multinomial
from zoofast.core.errors import CatalogError
from zoofast.data.check import check_catalog
from zoofast.catalog.split import split_catalog
from zoofast.data.loaders import GalaxyDataLoaders
from zoofast.images.reader import ImageReader
from zoofast.training.finetune import galaxy_learner
from zoofast.predict.table import predict_catalog
from zoofast.tasks.schema import Schema
from zoofast.tasks.classes import Classification, MultiLabel
from zoofast.tasks.regression import Regression
from zoofast.tasks.votes import VoteCounts
from zoofast.tasks.infer import infer_task, score_predictions, task_from_config
from zoofast.tasks.votes import DirichletMultinomialLoss, dirichlet_multinomial_log_prob
import zoofast.bundles.save      # noqa: F401, gives the learner its save_bundle

READER = ImageReader(32)

@pytest.fixture(scope='module')
def df(survey):
    "Simulated galaxies with labels of every type, with gaps"
    d = survey[1].reset_index(drop=True).copy()
    rng = np.random.default_rng(0)
    ring,bar = d.morphology.eq('ring'),d.has_bar.eq(True) | (d.index%7==0)
    d['ring_text'] = np.where(ring, 'ring', 'no ring')
    d['ring_12'] = ring+1
    d['ring_pm'] = np.where(ring, 1, -1)
    d['ring_bool'] = ring
    d['bar'] = bar.astype(float)
    d.loc[rng.random(len(d))<.2, 'bar'] = np.nan
    d['bar_text'] = np.where(bar, 'yes', 'no')
    d['mass'] = 1e10*(1+rng.random(len(d)))
    d.loc[rng.random(len(d))<.2, 'mass'] = np.nan
    d['share'] = d.bulge_fraction
    return d

TASKS = {
    'text': lambda: Classification('ring_text'),
    'one and two': lambda: Classification('ring_12'),
    'minus and plus': lambda: Classification('ring_pm'),
    'booleans': lambda: Classification('ring_bool'),
    'several labels': lambda: MultiLabel(['ring_pm', 'bar', 'bar_text', 'ring_bool']),
    'a number': lambda: Regression('radius_arcsec', loss='huber'),
    'numbers with gaps': lambda: Regression(['radius_arcsec', 'mass', 'mag_r'], loss='mae'),
    'a fraction': lambda: Regression('share', unit_interval=True),
    'votes': lambda: VoteCounts('decals_dr5_ortho'),
}

def loaders(df, task, **kwargs):
    return GalaxyDataLoaders.from_catalog(df, task=task, reader=READER, batch_size=16, progress=False, **kwargs)

def learner(dls, **kwargs):
    return galaxy_learner(dls, 'test_efficientnet', pretrained=False, **kwargs)

@pytest.fixture(scope='module')
def trained(df, tmp_path_factory):
    "Every task trained and saved; predictions of the learner, and those of a new process that loads the bundles"
    folder,learners,before = tmp_path_factory.mktemp('trained'),{},{}
    rows = df.iloc[:49].assign(split=['train']*33+['valid']*16)        # a last batch of one, with 16 in a batch
    rows[['id_str', 'file_loc']].to_csv(folder/'rows.csv', index=False)
    for name,make in TASKS.items():
        task = make()
        learners[name] = learn = learner(loaders(rows, task), learning_rate=1e-3)
        assert task.config==make().config, "the user's own task stays as it is"
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
        learn.save_bundle(folder/name)
        before[name] = predict_catalog(learn, rows, batch_size=16, progress=False)
    code = f'''
import sys
from zoofast.predict.table import predict_catalog
folder,rows = {str(folder)!r},{str(folder/"rows.csv")!r}
for name in {list(TASKS)!r}:
    predict_catalog(folder+"/"+name, rows, out=folder+"/"+name+".parquet", batch_size=49, progress=False)
assert "fastai" not in sys.modules
'''
    subprocess.run([sys.executable, '-c', code], check=True)
    after = {name: pd.read_parquet(folder/f'{name}.parquet') for name in TASKS}
    histories = {name: pd.read_csv(folder/name/'history.csv') for name in TASKS}
    return learners,{name: (before[name], after[name], histories[name]) for name in TASKS}

@pytest.mark.slow
@pytest.mark.parametrize('name', list(TASKS))
def test_train_save_load_predict(trained, name):
    learn,(before,after,history) = trained[0][name],trained[1][name]
    assert np.isfinite(history[['train_loss', 'valid_loss']]).all(axis=None)
    logged = set(history)-{'call', 'fit', 'epoch', 'trained', 'lr', 'train_loss', 'valid_loss'}
    assert logged=={m.name for m in learn.dls.task.metrics}
    assert list(before)==list(after)==['id_str', 'file_loc', *learn.dls.task.columns, 'error'] and len(after)==49
    for c in learn.dls.task.columns:
        if before[c].dtype.kind=='f': np.testing.assert_allclose(after[c], before[c], rtol=1e-6, atol=1e-6, err_msg=c)
        else: assert before[c].tolist()==after[c].tolist(), c

def test_predictions_are_in_the_catalogues_units_and_types(df):
    columns = {'text': 'ring_text', 'one and two': 'ring_12', 'minus and plus': 'ring_pm', 'booleans': 'ring_bool'}
    for name,col in columns.items():
        dls = loaders(df[:40], TASKS[name]())
        preds = predict_catalog(learner(dls), df[:10], progress=False)
        assert preds[f'{col}_pred'].dtype.kind==pd.Series(df[col].tolist()).dtype.kind
        assert set(preds[f'{col}_pred'])<=set(df[col])
    preds = predict_catalog(learner(loaders(df, TASKS['numbers with gaps']())), df[:10], progress=False)
    assert preds.mass.between(1e9, 1e11).all()

def test_a_model_learns_numbers(df):
    "In their own units, as well as least squares on the truth that the image shows"
    bright = [float(READER(f).float().mean()) for f in df.file_loc]
    d = df.assign(bright=bright, shifted=lambda d: d.bright*1e-3+1000)
    dls = loaders(d, Regression(['bright', 'shifted']), augment=None)
    learn = learner(dls, learning_rate=3e-3, layer_decay=1, head_dropout_prob=0)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(15)
    assert learn.best_epoch['r2']>.4, learn.history
    got = score_predictions(predict_catalog(learn, d, progress=False), d, learn.dls.task)
    assert got['rmse_bright']<.8*d.bright.std() and got['rmse_shifted']<.8*d.shifted.std()

def test_missing_answers_do_not_count(df):
    "What stands beside a gap does: the galaxy is trained on, and a gap gives no gradient"
    d = df[:32].assign(split=['train']*24+['valid']*8)
    for task in (MultiLabel(['ring_pm', 'bar']), Regression(['mass', 'mag_r'])):
        task.fit(d)
        y = task.encode(d)
        gaps = y.isnan()
        assert gaps.any() and len(check_catalog(d, task=task, open_images=False).ok)==32
        out = torch.randn(y.shape, requires_grad=True)
        loss = task.loss_func(out, y)
        loss.backward()
        assert out.grad[gaps].eq(0).all() and out.grad[~gaps].ne(0).all()
        other = out.detach().clone()
        other[gaps] += 100
        assert task.loss_func(other, y)==loss

@pytest.mark.parametrize('task, col, value, said', [
    (Regression('z'), 'z', np.inf, 'infinite'),
    (Regression('z'), 'z', 'about 3', 'no number'),
    (Regression('z', unit_interval=True), 'z', 1.2, 'not between 0 and 1'),
    (VoteCounts(Schema({'z': ['a', 'b']})), 'z_a', -1, 'fewer than 0'),
    (VoteCounts(Schema({'z': ['a', 'b']})), 'z_b', 'two', 'no number'),
    (VoteCounts(Schema({'z': ['a', 'b']})), ['z_a', 'z_b'], 0, 'no votes')])
def test_bad_labels_are_named_row_by_row(df, task, col, value, said):
    rng = np.random.default_rng(0)
    d = df[:20].assign(z=rng.random(20), z_a=rng.integers(1, 9, 20), z_b=rng.integers(1, 9, 20))
    d = d.astype({'z': object, 'z_a': object, 'z_b': object})
    d.loc[d.index[7], col] = value
    check = check_catalog(d, task=task, open_images=False)
    assert check.bad.id_str.tolist()==[d.id_str.iloc[7]] and said in check.bad.reason[0]
    with pytest.raises(CatalogError, match=said): loaders(d, task)
    with pytest.warns(UserWarning, match=said): dls = loaders(d, task, on_bad='skip')
    assert len(dls.catalog)==19

SEVERAL = [Regression('z'), Regression(['z', 'y', 'x']), VoteCounts('decals_dr5_ortho'), MultiLabel(['a', 'b', 'c'])]
@pytest.mark.parametrize('task', SEVERAL)
def test_splits_of_every_task(df, task):
    "Validation has its share, and numbers and labels spread alike over both parts"
    n,rng = 400,np.random.default_rng(0)
    d = pd.concat([df]*(n//len(df)+1), ignore_index=True)[:n]
    d = d.assign(id_str=[str(i) for i in range(n)], file_loc=[f'/{i}.jpg' for i in range(n)])
    d = d.assign(**{c: rng.normal(size=n) for c in 'zyx'}, **{c: rng.integers(0, 2, n) for c in 'abc'})
    s = split_catalog(d, task.stratify)
    assert .15<=s.split.eq('valid').mean()<=.25
    for c in task.stratify[:3]: assert abs(s[c][s.split=='valid'].mean()-s[c].mean())<.25*s[c].std()+1e-9, c
    assert split_catalog(d.sample(frac=1, random_state=1), task.stratify).sort_index().split.equals(s.split)

def test_fit_looks_at_training_galaxies_only(df):
    d = df[:40].assign(z=np.arange(40.), split=['train']*20+['valid']*20)
    assert loaders(d, Regression('z')).task.mean==[9.5]
    v = df[:40].assign(split=['train']*20+['valid']*20)
    v.loc[v.index[20:], VoteCounts('decals_dr5_ortho').label_cols] *= 10
    assert loaders(v, VoteCounts('decals_dr5_ortho')).task.n_votes=={'smooth-or-featured-dr5': 40, 'merging-dr5': 40}

def test_the_task_that_columns_ask_for(df):
    asked = [
        ('ring_text', 'classification'),
        ('bar', 'classification'),
        ('mass', 'regression'),
        (['mass', 'mag_r'], 'regression'),
        (['bar', 'ring_pm', 'ring_text'], 'multilabel')]
    for cols,kind in asked: assert infer_task(df, cols).kind==kind
    with pytest.raises(CatalogError, match="'n_arms' has"): infer_task(df, ['bar', 'n_arms'])
    with pytest.raises(ValueError, match='not those of task'):
        GalaxyDataLoaders.from_catalog(df, 'bar', task=Classification('ring_pm'))
    with pytest.raises(ValueError, match='use Classification'): GalaxyDataLoaders.from_catalog(df, task='votes')
    with pytest.raises(CatalogError, match="task=Regression"): infer_task(df.assign(t=range(len(df))), 't')

def test_losses_by_name_are_for_classes(df):
    dls = loaders(df[:40], VoteCounts('decals_dr5_ortho'))
    for kw in (dict(loss_func='focal'), dict(class_weights='balanced'), dict(label_smoothing=.1)):
        with pytest.raises(ValueError, match='VoteCounts has a loss of its own'): learner(dls, **kw)
    with pytest.raises(ValueError, match='mixup.*cannot be mixed'): learner(dls, mixup=.4)

@pytest.mark.parametrize('name', ['several labels', 'numbers with gaps'])
def test_mixup_mixes_targets(df, name):
    learn = learner(loaders(df[:40], TASKS[name]()), mixup=.4)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1)
    assert np.isfinite(learn.history[0]['train_loss'])

def test_samples_make_a_spread(df):
    for name in TASKS:
        dls = loaders(df[:40], TASKS[name]())
        preds = predict_catalog(learner(dls), df[:6], tta=4, mc_dropout=3, progress=False)
        std = [c for c in preds if c.endswith('_std')]
        assert std and (preds[std].to_numpy()>=0).all() and preds[std].to_numpy().max()>0, name

def test_scores_keep_the_digits_of_large_numbers(df):
    "A Julian date, or a mass beside its error: the metrics of training and those of a table are the same"
    d = df.assign(jd=2_460_000.5+np.linspace(0, 1, len(df)))
    task = Regression('jd').fit(d)
    preds = pd.DataFrame({'jd': d.jd+.01})
    assert score_predictions(preds, d, task)['mae']==pytest.approx(.01, rel=1e-3)

@pytest.mark.parametrize('scale', [1e300, 1e-300])
def test_numbers_beyond_float64_are_named(df, scale):
    d = df.assign(far=scale*(1+np.arange(len(df))))
    with pytest.raises(CatalogError, match="column 'far'.*too large or too small"): Regression(['mag_r', 'far']).fit(d)

def test_scores_leave_out_labels_that_training_would_refuse(df):
    cols = VoteCounts('decals_dr5_ortho').label_cols
    task = VoteCounts('decals_dr5_ortho').fit(df)
    preds = task.to_frame(np.full((len(df), task.n_out), 2.))
    odd = df.copy()
    odd.loc[odd.index[3], cols[0]] = -5
    odd.loc[odd.index[4], cols] = 0
    got = score_predictions(preds, odd, task)
    without = score_predictions(preds.drop([3, 4]), df.drop(index=df.index[[3, 4]]), task)
    assert got==without and np.isfinite(got['log_likelihood'])

# The likelihood, against scipy

def test_likelihood_of_real_votes(data_dir):
    "scipy's, on 1,618 galaxies' real votes, question by question; gradients are finite, also where nobody voted"
    v = pd.read_csv(data_dir/'votes/gz_decals_panoptes_full_tree_1618.csv')
    cols = [c for c in v if c!='subject_id' and not c.endswith('_total-votes')]
    questions = {}
    for c in cols: questions.setdefault(c.split('_')[0], []).append(c.split('_')[1])
    schema,rng = Schema(questions),np.random.default_rng(0)
    k = torch.tensor(v[schema.columns].to_numpy())
    normal = rng.normal(0, 3, (len(v), len(schema.columns)))
    out = torch.tensor(normal, dtype=torch.float32, requires_grad=True)
    a = (.3+100*out.detach().double().sigmoid()).numpy()
    total,zero = np.zeros(len(v)),0
    for g in schema.groups:
        n = k[:,g].sum(1).numpy().astype(int)
        votes = k[:,g].numpy().astype(int)
        want = np.array([dirichlet_multinomial.logpmf(ki, ai, ni) for ki,ai,ni in zip(votes, a[:,g], n)])
        got = dirichlet_multinomial_log_prob(torch.tensor(a[:,g]).float(), k[:,g].float()).numpy()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-9)
        zero += (n==0).sum()
        total += want
    assert zero>1000
    loss = DirichletMultinomialLoss([len(g) for g in schema.groups], reduction='none')(out, k.float())
    np.testing.assert_allclose(loss.detach().numpy(), -total, rtol=1e-4)
    loss.sum().backward()
    assert out.grad.isfinite().all()
    for g in schema.groups: assert out.grad[k[:,g].sum(1)==0][:,g].eq(0).all()

def test_tasks_from_json_that_no_task_wrote():
    configs = [
        {'kind': 'votes', 'schema': 'nope'},
        {'kind': 'votes', 'schema': {'questions': {'a': ['b']}}},
        {'kind': 'regression', 'labels': ['a'], 'mean': [0], 'std': [0]},
        {'kind': 'regression', 'labels': ['a'], 'mean': [0, 1], 'std': [1, 1]},
        {'kind': 'multilabel', 'labels': ['a'], 'values': {'a': [1, 1]}},
        {'kind': 'multilabel', 'labels': []},
        {'kind': 'classification', 'label': 'a', 'classes': [1, 2], 'temperature': 0},
        {'kind': 'votes', 'schema': 'gz_rings', 'min_concentration': 0},
        {'kind': 'votes', 'schema': 'gz_rings', 'n_votes': {'shape': 40}},
        {'kind': 'regression', 'labels': ['a'], 'extra': 1},
        {'labels': ['a']}]
    for config in configs:
        with pytest.raises(ValueError): task_from_config(config)
