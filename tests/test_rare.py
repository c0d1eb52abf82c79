"Find more like these: what is looked for, its ranking, and the threshold that says who is one"
import json
import numpy as np, pandas as pd, pytest, torch
from sklearn.metrics import average_precision_score
from zoofast.all import (Answers, GalaxyDataLoaders, ImageReader, Rare, galaxy_learner, load_bundle, make_report,
                         plot_precision_recall, predict_catalog, rank_galaxies, score_predictions)
from zoofast.core.errors import BundleError, CatalogError
from zoofast.data.check import check_catalog
from zoofast.data.loaders import sampling_weights
from zoofast.tasks.infer import same_task, score_outputs, task_from_config
from zoofast.tasks.ranking import RANKING_METRICS, first_k, part_interval, pick_threshold
from zoofast.tasks.task import Choice

NET = 'test_convnext'           # tiny, of random weights
METRICS = {m.__name__: m for m in RANKING_METRICS}

def outputs(score): return torch.tensor(np.stack([np.zeros(len(score)), score], 1))

def brute(score, y, k):
    "The metrics, threshold by threshold"
    P,found = y.sum(),[]
    for t in sorted(set(score), reverse=True):
        said = score>=t
        found.append(((said&y).sum()/P, (said&y).sum()/said.sum()))
    rng,first = np.random.default_rng(0),[]
    for _ in range(1000):                                    # of equal scores, chance decides
        order = np.lexsort((rng.random(len(y)), -score))[:k]
        first.append(y[order].sum()/P)
    best = lambda cols, enough: max([o for o in cols if enough(o)], key=lambda o: o[0], default=(0,))[0]
    return dict(purity_at_50_completeness=best([(p, c) for c,p in found], lambda o: o[1]>=.5),
                purity_at_90_completeness=best([(p, c) for c,p in found], lambda o: o[1]>=.9),
                completeness_at_90_purity=best(found, lambda o: o[1]>=.9),
                average_precision=average_precision_score(y, score)),np.mean(first)

@pytest.mark.parametrize('n, decimals', [(30, 1), (213, 3), (213, 0), (1200, 6)])
def test_metrics_are_what_they_say(n, decimals):
    rng = np.random.default_rng(n+decimals)
    y = rng.random(n)<.08
    y[:2] = True
    score = np.round(rng.normal(size=n)+1.5*y, decimals)
    want,first = brute(score, y, first_k(n, int(y.sum())))
    got = {k: m(outputs(score), torch.tensor(y).long()) for k,m in METRICS.items()}
    for k,v in want.items(): assert got[k]==pytest.approx(v, abs=1e-9), k
    assert got['recall_in_first_k']==pytest.approx(first, abs=.03)

def test_nothing_to_measure_is_nan():
    out = outputs(np.arange(5.))
    for m in RANKING_METRICS:
        assert np.isnan(m(out, torch.zeros(5).long())) and np.isnan(m(out, torch.ones(5).long()))
        assert np.isnan(m(out*float('nan'), torch.tensor([0, 0, 1, 0, 1])))

def test_scores_near_one_are_still_told_apart():
    "Probabilities of 1 - 1e-17 and 1 - 1e-20 are both 1 in float64"
    task,out = Rare('k', 'a', ['b', 'a']),outputs(np.array([40., 50., 60., 39.]))
    y = torch.tensor([0, 1, 1, 0])
    preds = task.to_frame(task.activation(out).numpy())
    assert (preds.k_a==1).all()
    score = score_predictions(preds, pd.DataFrame({'k': ['b', 'a', 'a', 'b']}), task)
    assert score['average_precision']==METRICS['average_precision'](out, y)==1
    task.fit_threshold(out, y, purity=1.)
    assert task.to_frame(task.activation(out).numpy()).k_pred.tolist()==['b', 'a', 'a', 'b']
    assert rank_galaxies(preds.assign(id_str=list('wxyz'))).id_str.tolist()==['y', 'x', 'w', 'z']

def test_intervals_hold_the_truth_as_often_as_they_say():
    "Of samples of one population; exact intervals hold it at least so often"
    rng,inside = np.random.default_rng(0),[]
    task = Rare('k', 1, [0, 1])
    many = rng.random(200_000)<.1
    truth = average_precision_score(many, rng.normal(size=200_000)+1.5*many)
    for _ in range(20):
        y = rng.random(300)<.1
        s = score_outputs(outputs(rng.normal(size=300)+1.5*y), torch.tensor(y).long(), task)
        inside.append(s['average_precision_lower']<=truth<=s['average_precision_upper'])
        assert s['positives']==y.sum() and s['first_k']==max(30, y.sum()) and s['n']==300
    assert np.mean(inside)>=.75
    from scipy.stats import binomtest
    for k,n in ((0, 7), (7, 7), (3, 12)):
        assert part_interval(k, n)==pytest.approx(tuple(binomtest(k, n).proportion_ci(method='exact')), abs=1e-9)

# what is looked for
DF = pd.DataFrame({'shape': ['smooth']*6+['spiral']*3+['merger']*2, 'ring': [1]*2+[0]*9, 'even': ['a', 'b']*5+['b'],
                   'flag': [False]*10+[True], 'odd': [1.]*3+[np.nan]+[0.]*7})
@pytest.mark.parametrize('label, positive, classes', [
    ('shape', 'merger', ['not merger', 'merger']), ('ring', None, [0, 1]), ('ring', '0', [1, 0]), ('ring', 0, [1, 0]),
    ('even', None, ['b', 'a']), ('flag', None, [False, True]), ('flag', 'True', [False, True]), ('odd', 1, [0, 1])])
def test_what_is_looked_for(label, positive, classes):
    task = Rare(label, positive).fit(DF)
    assert task.classes==classes and type(task.positive)==type(classes[1])
    y = task.encode(DF)
    text = lambda v: str(int(v) if isinstance(v, float) else v)
    assert y.tolist()==[-1 if v!=v else int(text(v)==str(classes[1])) for v in DF[label]]
    again = task_from_config(json.loads(json.dumps(task.config)))
    assert again.config==task.config and same_task(again, task)

@pytest.mark.parametrize('label, positive, said', [
    ('shape', None, "'merger' \\(2\\), 'smooth' \\(6\\), 'spiral' \\(3\\)"),
    ('shape', 'mergr', "did you mean 'merger'"), ('ring', 2, 'has no 2'), ('nothing', None, 'nothing')])
def test_what_cannot_be_looked_for(label, positive, said):
    with pytest.raises(CatalogError, match=said): Rare(label, positive).fit(DF)

def test_a_class_of_one_among_the_rest_is_no_mistake_and_a_lone_positive_is():
    df = pd.DataFrame({'id_str': list('abcdef'), 'file_loc': list('abcdef'), 'k': ['x', 'y', 'y', 'z', 'm', 'm']})
    bad = lambda task, df: check_catalog(df, task=task, open_images=False).bad
    reasons = lambda df: [o for o in bad(Rare('k', 'm'), df).reason if 'one galaxy' in o or 'only m' in o]
    assert not reasons(df)
    assert len(reasons(df.assign(k=['x', 'y', 'y', 'z', 'm', 'x'])))==1
    with pytest.raises(CatalogError, match='--positive'): bad(Rare('k'), df)           # before any image is read

def test_balanced_sampling_is_of_two_classes():
    task = Rare('shape', 'merger').fit(DF)
    w = sampling_weights(DF, task, 'balanced').numpy()
    assert w[DF['shape']=='merger'].sum()==pytest.approx(w[DF['shape']!='merger'].sum())

# the threshold
def test_every_purity_and_completeness_that_can_be_had_is_had():
    rng = np.random.default_rng(3)
    y = rng.random(150)<.15
    score = np.round(rng.normal(size=150)+2*y, 1)
    steps = [(((score>=t)&y).sum()/(score>=t).sum(), ((score>=t)&y).sum()/y.sum()) for t in set(score)]
    for want in np.linspace(.05, 1, 39):
        at,c = pick_threshold(score, y, completeness=want)
        assert c['found']/c['positives']>=want and c['found']/c['taken']==max(p for p,r in steps if r>=want-1e-12)
        assert ((score>=at).sum(), (y&(score>=at)).sum())==(c['taken'], c['found'])
        if max(p for p,_ in steps)<want: continue
        at,c = pick_threshold(score, y, purity=want)
        assert c['found']/c['taken']>=want and c['found']/c['positives']==max(r for p,r in steps if p>=want-1e-12)
        assert ((score>=at).sum(), (y&(score>=at)).sum())==(c['taken'], c['found'])

def test_a_purity_that_cannot_be_reached_says_what_can_be():
    score,y = np.array([4., 3, 2, 1]),np.array([0, 1, 1, 0])
    with pytest.raises(ValueError, match='purest sample is the first 3, with purity 0.667; ask for 0.666 or less'):
        pick_threshold(score, y, purity=.9)
    pick_threshold(score, y, purity=.666)
    with pytest.raises(ValueError, match='none of the 4 galaxies is lens'):
        pick_threshold(score, 0*y, completeness=.9, what='lens')
    for bad in (dict(), dict(purity=.9, completeness=.9)):
        with pytest.raises(ValueError, match='one of the two'): pick_threshold(score, y, **bad)
    for v in (0, 1.1, 'much', True, float('nan')):
        with pytest.raises(ValueError, match='purity='): pick_threshold(score, y, purity=v)

def survey_table(n=300, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.random(n)<.1
    out = outputs(rng.normal(size=n)-3+3*y)
    return out,torch.tensor(y).long(),pd.DataFrame({'k': np.where(y, 'lens', 'other')})

def test_predictions_follow_the_threshold_and_a_temperature_does_not_move_it():
    out,y,truth = survey_table()
    task = Rare('k', 'lens').fit(truth)
    said = task.fit_threshold(out, y, completeness=.9)
    for t in (1., .3, 7.):
        task.temperature = t
        p = task.activation(out)
        preds = task.to_frame(p.numpy())
        assert (preds.k_pred=='lens').sum()==said['taken']==int(task.decodes(p).sum())
        assert ((p[:,1]>=task.threshold).long()==task.decodes(p)).all()
        c, = task.compare_choices(preds, truth)
        assert c.said.sum()==said['taken'] and isinstance(c, Choice)
        score = score_predictions(preds, truth, task)
        assert (score['purity'], score['completeness'])==(said['purity'], said['completeness'])
        assert score['purity_lower']==pytest.approx(said['purity_lower'])
        assert task.choose_threshold(preds, truth, completeness=.9)['taken']==said['taken']    # after the fact
    assert f"{said['found']} of {said['positives']}" in task.says_threshold
    task.forget_calibration()
    assert task.threshold is None and task.temperature==1 and 'chosen' not in task.config

def test_a_table_is_decided_anew_where_there_are_predictions():
    out,y,truth = survey_table()
    task = Rare('k', 'lens').fit(truth)
    p = task.activation(out).numpy()
    p[5] = np.nan
    preds = task.to_frame(p)
    task.choose_threshold(preds, truth, purity=.5)
    new = task.decide(preds)
    pd.testing.assert_frame_equal(new, task.to_frame(p))
    assert new.k_pred.isna().sum()==1 and (new.k_pred!=preds.k_pred).sum()>1

CHOSEN = dict(log_odds=.5, asked={'purity': .9}, galaxies=100, positives=10, taken=8, found=6)
@pytest.mark.parametrize('change', [
    dict(log_odds='high'), dict(log_odds=1e9), dict(log_odds=None), dict(log_odds=True), dict(asked={}), dict(asked=[]),
    dict(asked={'purity': 2}), dict(asked={'luck': .5}), dict(asked={'purity': .9, 'completeness': .9}), dict(found=11),
    dict(found=9), dict(found=-1), dict(taken=0), dict(taken=101), dict(positives=0), dict(galaxies='many'),
    dict(galaxies=1.5), dict(more=1), dict(positives=[1]*1000)])
def test_a_threshold_from_a_stranger_is_refused_by_name(change):
    config = dict(kind='rare', label='k', classes=['b', 'a'], positive='a')
    assert task_from_config({**config, 'chosen': CHOSEN}).config['chosen']==CHOSEN
    with pytest.raises(ValueError, match='chosen'): task_from_config({**config, 'chosen': {**CHOSEN, **change}})
    for other in ('yes', 5, [], [CHOSEN], {'log_odds': 1}):
        with pytest.raises(ValueError, match='chosen'): task_from_config({**config, 'chosen': other})

@pytest.mark.parametrize('change', [dict(classes=['a']), dict(classes=['a', 'b', 'c']), dict(positive='b'),
                                    dict(positive=['a']), dict(classes=['a', 'a']), dict(classes={'a': 1})])
def test_classes_from_a_stranger(change):
    with pytest.raises(ValueError):
        task_from_config({**dict(kind='rare', label='k', classes=['b', 'a'], positive='a'), **change})

@pytest.mark.slow
def test_a_ranking_is_compared_with_the_probe_by_its_headline():
    "Not by accuracy, of which a model that finds nobody has most"
    from zoofast.tasks.worth import compare_with_probe
    task,(out,_,truth) = Rare('k', 'lens', ['other', 'lens']),survey_table()
    good = task.to_frame(task.activation(out).numpy())
    bad = task.to_frame(task.activation(outputs(np.random.default_rng(1).normal(size=300)-9)).numpy())
    worth = compare_with_probe(task, good, bad, truth)
    assert (worth.metric, worth.verdict)==('average_precision', 'better') and worth.better==worth.model-worth.probe>.1
    assert compare_with_probe(task, bad, good, truth).verdict=='worse'
    same = compare_with_probe(task, good, good, truth)
    assert (same.verdict, same.p)==('equal', 1)

@pytest.mark.parametrize('k', [0, 1, 2])
def test_few_that_are_looked_for_prove_nothing(k):
    "One of them moves from the head to the middle: that may be chance, as its other model's place may"
    from zoofast.tasks.worth import compare_with_probe
    truth = pd.DataFrame(dict(id_str=[*map(str, range(40))], k=['lens']*k+['other']*(40-k)))
    task = Rare('k', 'lens', ['other', 'lens'])
    rng = np.random.default_rng(0)
    def answers(first):
        p = rng.uniform(.1, .5, 40)
        p[:k] = first
        return task.to_frame(np.stack([1-p, p], 1))
    worth = compare_with_probe(task, answers(.3), answers(.9), truth)
    if k: assert worth.verdict=='equal' and worth.better<-.5
    else: assert worth is None

# ranking
def test_the_head_of_a_table_in_pieces_is_that_of_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    p = np.round(rng.random(25_000), 3)
    ids,said = [str(i) for i in range(len(p))],np.where(p>.5, 'a', 'b')
    preds = pd.DataFrame({'id_str': ids, 'k_pred': said, 'k_b': 1-p, 'k_a': p})
    preds.loc[7, ['k_pred', 'k_b', 'k_a']] = None
    want = preds.dropna().sort_values('k_a', ascending=False, kind='stable').head(40).id_str.tolist()
    (tmp_path/'shards').mkdir()
    for i in range(5): preds[i*5000:(i+1)*5000].to_parquet(tmp_path/'shards'/f'part-{i:06d}.parquet', index=False)
    preds.to_csv(tmp_path/'p.csv', index=False)
    for source in (preds, tmp_path/'shards', tmp_path/'p.csv', str(tmp_path/'p.csv')):
        best = rank_galaxies(source, 40)
        assert best.id_str.tolist()==want and best['rank'].tolist()==list(range(1, 41))
    assert rank_galaxies(preds, 3, by='b').k_b.tolist()==sorted(1-p)[::-1][:3]
    assert len(rank_galaxies(preds, 10**6))==len(p)-1

def test_by_what_must_be_plain():
    many = pd.DataFrame({'k_pred': ['a'], 'k_a': [.5], 'k_b': [.3], 'k_c': [.2]})
    with pytest.raises(CatalogError, match='--by.*k_a, k_b, k_c'): rank_galaxies(many)
    assert rank_galaxies(many, by='b').k_b.tolist()==[.3]
    with pytest.raises(CatalogError, match='no galaxy'): rank_galaxies(many.assign(k_a=np.nan), by='k_a')

# all of it
@pytest.fixture(scope='module')
def loaders(survey): return GalaxyDataLoaders.from_catalog(survey[1], task=Rare('morphology', 'merger'),
                                                           reader=ImageReader(32), batch_size=16, progress=False)
def trained(dls, **kw):
    learn = galaxy_learner(dls, NET, pretrained=False, **kw)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    return learn

@pytest.mark.slow
def test_it_trains_predicts_is_kept_reported_and_drawn(loaders, survey, tmp_path):
    df = survey[1]
    learn = trained(loaders, save_dir=tmp_path/'run')
    assert set(METRICS)<=set(learn.history[-1])
    assert learn.loss_func.func.weight[1]>learn.loss_func.func.weight[0]               # what is rare weighs more
    said = learn.choose_threshold(completeness=1.)
    assert said['completeness']==1
    learn.calibrate()
    assert learn.choose_threshold(completeness=1.)['taken']==said['taken']
    preds = predict_catalog(learn, df, progress=False)
    assert list(preds)[2:5]==['morphology_pred', 'morphology_not_merger', 'morphology_merger']
    valid = learn.dls.catalog[learn.dls.catalog.split=='valid'].id_str
    assert (preds[preds.id_str.isin(valid)].morphology_pred=='merger').sum()==said['taken']
    learn.save_bundle(tmp_path/'run'/'bundle')
    kept = load_bundle(tmp_path/'run'/'bundle')
    assert kept.task.threshold==learn.task.threshold
    pd.testing.assert_frame_equal(predict_catalog(kept, df, progress=False), preds, rtol=1e-4, atol=1e-5)
    card = (tmp_path/'run'/'bundle'/'README.md').read_text()
    assert '95 % interval' in card and 'average precision' in card and 'completeness of 1' in card
    scores = Answers(preds, df, learn.task).scores()
    assert scores.loc['average_precision', 'lower']<=scores.loc['average_precision', 'value']
    assert 'positives' not in scores.index and 'are merger' in scores.attrs['about']
    page = make_report(learn, progress=False).read_text(encoding='utf-8')
    assert 'recall in the first k' in page and 'from a probability of' in page and 'threshold:' in page
    ax = plot_precision_recall(preds, df, learn.task)
    assert any('taken' in o.get_text() for o in ax.get_legend().get_texts())
    again = kept.to_learner(loaders)
    assert again.task.threshold is None                                                # it is trained on
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.task.threshold is None and kept.task.threshold is not None
    config = json.loads((tmp_path/'run'/'bundle'/'config.json').read_text())
    config['task']['chosen']['log_odds'] = 'x'
    (tmp_path/'run'/'bundle'/'config.json').write_text(json.dumps(config))
    with pytest.raises(BundleError, match='chosen'): load_bundle(tmp_path/'run'/'bundle')

def test_losses(loaders):
    "Weighted alike by default; another loss is as it is asked for"
    from zoofast.tasks.losses import make_loss
    task = loaders.task
    assert make_loss(task, counts=[40, 10]).func.weight.tolist()==[.625, 2.5]
    assert make_loss(task, 'cross_entropy', counts=[40, 10]).func.weight is None
    assert make_loss(task, class_weights=[1, 2], counts=[40, 10]).func.weight.tolist()==[1, 2]

@pytest.mark.slow
def test_from_the_shell(survey, tmp_path, run_zoofast):
    folder,df = survey
    env = dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    words = ['finetune', folder/'catalog.csv', '--label', 'morphology', '--task', 'rare', '--encoder', NET,
             '--random-weights', '--size', 32, '--epochs', 1, '--save-dir']
    res = run_zoofast(*words, 'run', '--positive', 'merger', '--completeness', '.95', cwd=tmp_path, env=env)
    assert res.returncode==0, res.stderr
    assert 'chosen for a completeness of 0.95' in res.stderr and 'average precision' in res.stdout+res.stderr
    assert (tmp_path/'run'/'report.html').exists()
    res = run_zoofast('predict', 'run', folder/'catalog.csv', '--out', 'p.csv', '--top', 5, cwd=tmp_path, env=env)
    assert res.returncode==0, res.stderr
    best = rank_galaxies(tmp_path/'p.csv', 5)
    rows = [o.split() for o in res.stdout.splitlines()]
    listed = [o[:2] for o in rows if o and o[0].isdigit() and 'rows' not in o]
    assert listed==[[str(i+1), o] for i,o in enumerate(best.id_str)]
    df = df.assign(split=['train' if m=='merger' or i%2 else 'valid' for i,m in enumerate(df.morphology)])
    df.to_csv(tmp_path/'none.csv', index=False)
    none = run_zoofast(words[0], 'none.csv', *words[2:], 'none', '--positive', 'merger', '--purity', .9, cwd=tmp_path,
                       env=env)
    assert none.returncode==2 and 'validation galaxies is merger' in none.stderr and not (tmp_path/'none').exists()
    res = run_zoofast(*words, 'pure', '--positive', 'merger', '--purity', 1, cwd=tmp_path, env=env)
    kept = (tmp_path/'pure'/'bundle'/'config.json').exists()
    assert kept and (res.returncode==0 or res.returncode==2 and 'without a threshold' in res.stderr)

@pytest.mark.slow
@pytest.mark.parametrize('more, said', [
    (['--task', 'rare'], '--positive'), (['--positive', 'merger'], '--task rare'), (['--purity', .9], '--task rare'),
    (['--task', 'rare', '--positive', 'mergr'], "did you mean 'merger'"),
    (['--task', 'rare', '--positive', 'merger', '--purity', .9, '--completeness', .9], 'leave one out'),
    (['--task', 'rare', '--positive', 'merger', '--purity', 1.5], '--purity 1.5')])
def test_mistakes_in_the_shell(survey, tmp_path, run_zoofast, more, said):
    words = ['finetune', survey[0]/'catalog.csv', '--label', 'morphology', '--encoder', NET, '--random-weights',
             '--size', 32, '--save-dir', 'run', *more]
    res = run_zoofast(*words, cwd=tmp_path, env=dict(CUDA_VISIBLE_DEVICES=''))
    assert res.returncode==2 and said in res.stderr and 'Traceback' not in res.stderr
