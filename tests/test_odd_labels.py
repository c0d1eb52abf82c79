"Labels and classes with spaces, dots and other signs: their columns are usable, and none is taken for another"
import json
import numpy as np, pandas as pd, pytest
from zoofast.all import Answers, CatalogError, Classification, GalaxyDataLoaders, MultiLabel, Regression, Schema
from zoofast.all import VoteCounts, galaxy_learner, load_bundle, make_report, predict_catalog
from zoofast.tasks.infer import score_predictions

KINDS = {'classification': Classification('Class 1.1'), 'multilabel': MultiLabel(['has bar?', 'ring (outer)']),
         'regression': Regression(['mag r', 'log M*/Msun']),
         'votes': VoteCounts(Schema({'Is it round?': ['yes, it is', 'no']}))}

COLUMNS = {'classification': ['Class_1_1_pred', 'Class_1_1_1_0', 'Class_1_1_a_b', 'Class_1_1_été'],
           'multilabel': ['has_bar__pred', 'has_bar__prob', 'ring__outer__pred', 'ring__outer__prob'],
           'regression': ['mag_r', 'log_M__Msun'],
           'votes': ['Is_it_round__p_asked', *(f'Is_it_round__{a}_{k}' for a in ('yes__it_is', 'no')
                     for k in ('concentration', 'fraction', 'fraction_lower', 'fraction_upper'))]}

@pytest.fixture(scope='module')
def catalog(survey):
    rng,n = np.random.default_rng(0),len(survey[1])
    return survey[1][['id_str', 'file_loc']].assign(**{
        'Class 1.1': np.resize(['a b', '1.0', 'été'], n), 'has bar?': np.resize(['no way', 'of course'], n),
        'ring (outer)': rng.permutation(np.resize([0, 1], n)), 'mag r': rng.normal(17, 1, n),
        'log M*/Msun': rng.normal(10, 1, n), 'Is it round?_yes, it is': rng.integers(1, 20, n),
        'Is it round?_no': rng.integers(1, 20, n)})

@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_columns_are_usable(kind, catalog, tmp_path):
    dls = GalaxyDataLoaders.from_catalog(catalog, task=KINDS[kind], size=32, valid=.3, progress=False)
    learn = galaxy_learner(dls, 'test_convnext', pretrained=False, save_dir=tmp_path/'run')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    if kind=='regression':
        assert {'rmse_mag_r', 'mae_log_M__Msun'}<=set(learn.history[0])
    if kind!='votes': learn.calibrate()
    bundle = learn.save_bundle(tmp_path/'bundle')
    model = load_bundle(bundle)
    assert learn.task.columns==model.task.columns==COLUMNS[kind]
    for out in ('p.csv', 'p.parquet'):
        made = predict_catalog(bundle, catalog, tmp_path/out, tta=2, progress=False)
        assert list(made)[2:-1][:len(COLUMNS[kind])]==COLUMNS[kind]
        read = pd.read_csv(tmp_path/out) if out=='p.csv' else pd.read_parquet(tmp_path/out)
        assert list(read)==list(made) and made.error.isna().all()
    assert all(c.replace('-', '_').isidentifier() for c in made)
    assert any(c.endswith('_std') for c in made)
    if kind!='votes': assert any(c.endswith(('_set', '_lower')) for c in predict_catalog(bundle, catalog, coverage=.5))
    if kind=='classification': assert set(made.Class_1_1_pred)<={'a b', '1.0', 'été'}         # the values stay
    assert score_predictions(made, catalog, model.task)['n']==len(catalog)
    assert len(Answers(made, catalog, model.task).galaxies())==len(catalog)
    if kind=='classification': assert Answers(made, catalog, 'Class 1.1').task.classes==['1.0', 'a b', 'été']
    assert make_report(learn, progress=False).stat().st_size>10_000

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('kind', KINDS)
def test_old_bundles_keep_their_columns(kind, catalog, tmp_path):
    dls = GalaxyDataLoaders.from_catalog(catalog, task=KINDS[kind], size=32, progress=False)
    bundle = galaxy_learner(dls, 'test_convnext', pretrained=False).save_bundle(tmp_path/'bundle')
    new = predict_catalog(bundle, catalog, progress=False)
    config = json.loads((bundle/'config.json').read_text())
    assert config['task'].pop('plain_columns')
    (bundle/'config.json').write_text(json.dumps(config))               # as it was written before
    old = predict_catalog(bundle, catalog, progress=False)
    assert list(old)!=list(new) and any(KINDS[kind].label_cols[0] in c for c in old)
    np.testing.assert_array_equal(old.select_dtypes('number'), new.select_dtypes('number'))
    Answers(old, catalog, load_bundle(bundle).task).galaxies()
    Answers(old, catalog, dls.task).galaxies()                           # an old table, today's task

def test_ordinary_labels_stay(survey):
    task = Classification('morphology').fit(survey[1])
    assert task.columns[0]=='morphology_pred' and 'plain_columns' not in task.config
    dr5 = VoteCounts('decals_dr5_ortho')
    assert 'smooth-or-featured-dr5_featured-or-disk_fraction' in dr5.columns
    assert dr5.columns==[c for c,_ in dr5._types()]

@pytest.mark.parametrize('kind,labels,clash', [
    ('multilabel', ['bar 1', 'bar.1'], "'bar 1_pred' and 'bar.1_pred'"),
    ('regression', ['m r', 'm.r'], "'m r' and 'm.r'"),
    ('classification', 'c', "'c_a b' and 'c_a.b'")])
def test_names_that_cannot_be_told_apart_are_refused_by_name(kind, labels, clash, survey):
    df = survey[1].copy()
    for i,c in enumerate([labels] if kind=='classification' else labels):
        values = {'classification': ['a b', 'a.b'], 'multilabel': [0, 1], 'regression': [1.5, 2.5]}[kind]
        df[c] = np.resize(values, len(df))
    with pytest.raises(CatalogError, match=clash.replace('.', r'\.')):
        {'classification': Classification, 'multilabel': MultiLabel, 'regression': Regression}[kind](labels).fit(df)
    schema = Schema({'q': ['a b', 'a.b']})
    votes = df.assign(**{'q_a b': 1, 'q_a.b': 2})
    with pytest.raises(CatalogError, match='q_a b'): VoteCounts(schema).fit(votes)
