"""Files of settings: everything of W&B's format, each mistake by its key, and values that follow the distributions they
name"""
import inspect, json, warnings
import numpy as np, pytest, yaml
from scipy import stats
from zoofast.sweep.settings import DISTRIBUTIONS, REPEATS, Parameter, parameter_name, read_settings, run_parameters
from zoofast.training.parameters import PARAMETERS

rates = dict(learning_rate=dict(min=1e-5, max=1e-2))
def one(p, method='random', name='learning_rate', **kw):
    return read_settings(dict(method=method, parameters={name: p}, **kw))

# --- the parameters are those of the training

def test_limits_are_those_of_the_learner(survey):
    "What is let through here is not refused there for its limits, and what is refused here is refused there"
    from zoofast.training.finetune import _check, galaxy_learner
    from zoofast.training.parameters import rows_of
    others = ('timm_kwargs', 'encoder', 'dls')
    base = {k: p.default for k,p in inspect.signature(galaxy_learner).parameters.items() if k not in others}
    for row in rows_of('galaxy_learner'):
        if row.kind not in ('number', 'whole'): continue
        least,most = row.low if row.low is not None else row.above,row.high if row.high is not None else row.below
        for v in [least-1, *([most*1.5] if most is not None else [])]:
            with pytest.raises(ValueError, match=row.name): _check(base | {row.name: v})
            with pytest.raises(ValueError, match=row.name): one(dict(value=v), name=row.name)
        highest = [row.high] if row.high is not None else []
        for v in [row.low or 0.5, *highest] if row.kind=='number' else [row.low or 1]:
            _check(base | {row.name: v})
            one(dict(value=v), name=row.name)

# --- distributions

CONTINUOUS = {
    'uniform': (dict(min=-1., max=3.), stats.uniform(-1, 4)),
    'log_uniform': (dict(min=-11.5, max=-6.9), stats.loguniform(np.exp(-11.5), np.exp(-6.9))),
    'log_uniform_values': (dict(min=1e-5, max=1e-1), stats.loguniform(1e-5, 1e-1)),
    'inv_log_uniform': (dict(min=-1, max=2), stats.loguniform(np.exp(-2), np.exp(1))),
    'inv_log_uniform_values': (dict(min=0.01, max=10), stats.loguniform(0.01, 10)),
    'normal': (dict(mu=2, sigma=0.5), stats.norm(2, 0.5)),
    'log_normal': (dict(mu=1, sigma=0.7), stats.lognorm(s=0.7, scale=np.exp(1))),
    'beta': (dict(a=2, b=5), stats.beta(2, 5)),
}

@pytest.mark.parametrize('kind', CONTINUOUS)
def test_continuous_distributions(kind):
    spec,true = CONTINUOUS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        s = one(dict(distribution=kind, **spec), name='scheduler_kwargs.x')
    x = [s.random(i)['scheduler_kwargs.x'] for i in range(4000)]
    assert stats.kstest(x, true.cdf).pvalue>1e-3, (kind, np.quantile(x, [0, 0.25, 0.5, 0.75, 1]))

@pytest.mark.parametrize('kind', CONTINUOUS)
def test_rounded_distributions(kind):
    "Each multiple of q as often as the unrounded number lies next to it"
    spec,true = CONTINUOUS[kind]
    if 'q_'+kind not in DISTRIBUTIONS: pytest.skip('not in the format')
    q = {'log_uniform': 1e-4, 'log_uniform_values': 0.01, 'beta': 0.1}.get(kind, 0.5)
    p = Parameter('x', 'q_'+kind, {**spec, 'q': q})
    x = np.array([p.at(u) for u in np.random.default_rng(0).random(4000)])
    k = np.round(x/q).astype(int)
    assert np.allclose(x, k*q, atol=1e-9)
    ks = np.arange(k.min(), k.max()+1)
    if p.limits: expected = np.array([true.cdf((o+0.5)*q)-true.cdf((o-0.5)*q) for o in ks])
    else: expected = np.diff([0, *true.cdf((ks[:-1]+0.5)*q), 1])
    expected[0] += 1-expected.sum() if p.limits else 0            # below min, where the multiple would leave the range
    many = expected>5/4000
    seen = np.array([(k==o).sum() for o in ks])
    got = [*seen[many], seen[~many].sum()+1e-9]
    want = [*4000*expected[many], 4000*expected[~many].sum()+1e-9]
    assert stats.chisquare(got, want).pvalue>1e-3

def test_counted_distributions():
    n = 6000
    with_p = one(dict(values=[0.1, 0.2, 0.3], probabilities=[0.6, 0.3, 0.1]))
    x = np.array([with_p.random(i)['learning_rate'] for i in range(n)])
    assert stats.chisquare([(x==v).sum() for v in (0.1, 0.2, 0.3)], [0.6*n, 0.3*n, 0.1*n]).pvalue>1e-3
    ints = one(dict(min=2, max=5), name='batch_size')
    x = np.array([ints.random(i)['batch_size'] for i in range(n)])
    assert ints.parameters[0].distribution=='int_uniform'
    assert stats.chisquare([(x==v).sum() for v in range(2, 6)]).pvalue>1e-3

def test_rounding_stays_within_the_limits():
    "W&B's formula alone would give a batch size of 0 here"
    p = one(dict(distribution='q_uniform', min=20, max=260, q=50), name='batch_size').parameters[0]
    assert p.values==[50, 100, 150, 200, 250] and {p.at(u) for u in np.linspace(0, 1, 500)}=={50, 100, 150, 200, 250}
    with pytest.raises(ValueError, match='no multiple of q 50'):
        one(dict(distribution='q_uniform', min=60, max=90, q=50), name='batch_size')

def test_every_distribution_is_read():
    given = dict(min=0.1, max=0.9, mu=0., sigma=1., a=1., b=1., q=0.1, value=0.5, values=[0.1, 0.2],
                 probabilities=[0.5, 0.5])
    for d,keys in DISTRIBUTIONS.items():
        spec = {k: given[k] for k in keys} | (dict(min=1, max=4) if d=='int_uniform' else {})
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            nested = {'parameters': {'x': dict(distribution=d, **spec)}}
            s = read_settings(dict(method='random', parameters={'scheduler_kwargs': nested}))
        v = s.random(3)['scheduler_kwargs.x']
        assert isinstance(v, (int, float)) and s.random(3)==s.random(3), d

# --- files as people have them

def read(tmp_path, text):
    (tmp_path/'sweep.yaml').write_text(text)
    return read_settings(tmp_path/'sweep.yaml')

def test_a_grid_with_repeats(tmp_path):
    s = read(tmp_path, """
program: fine_tune.py
entity: someone
project: planets
method: grid
parameters:
    learning_rate:
        values: [0.002, 0.008]
    model_name:
        values: ['convnext_tiny', "resnet18"]
    batch_size:
        values: [32]
    num_experiments:
        values: [1,2,3]
""")
    assert len(s.grid)==12 and s.metric=='valid_loss' and s.goal=='minimize'
    assert [g['num_experiments'] for g in s.grid[:3]]==[1, 2, 3]
    assert len({tuple(g.values()) for g in s.grid})==12
    assert [run_parameters(g)['seed'] for g in s.grid[:3]]==[43, 44, 45]

def test_bayes_with_numbers_that_yaml_reads_as_text(tmp_path):
    s = read(tmp_path, """
method: bayes
metric: {name: valid_loss, goal: minimize}
early_terminate: {type: hyperband, min_iter: 1, eta: 3}
parameters:
    learning_rate:
        distribution: uniform
        min: 1e-5
        max: 1e-2
""")
    assert s.parameters[0].spec==dict(min=1e-5, max=1e-2) and s.early_terminate['bands'][:4]==[1, 3, 9, 27]

def test_keys_that_are_not_known_are_named(tmp_path):
    with pytest.raises(ValueError, match="'pool' is not known"):
        read(tmp_path, "method: grid\nparameters:\n  pool:\n    values: ['concat', 'avg']\n")
    with pytest.raises(ValueError, match="img_size.*here it is size"):
        read(tmp_path, "method: grid\nparameters:\n  img_size:\n    values: [128]\n")
    with pytest.raises(ValueError, match="line 4"): read(tmp_path, "method: grid\nparameters:\n  - a: [\n")

def random(**parameters): return dict(method='random', parameters=parameters)
def early(**kwargs):
    return dict(method='random', parameters=rates, metric=dict(name='valid_loss'), early_terminate=kwargs)

WRONG = [     # what is in the file, and what the error says
    # the method
    (dict(method='bayse', parameters=rates), ["method: 'bayse'", "did you mean 'bayes'"]),
    (dict(method='bayes', parameters=rates), ['metric: method bayes']),
    (dict(method='custom', parameters=rates), ["method: 'custom'"]),
    (dict(parameters=rates), ['method is missing']),
    # the parameters
    (dict(method='random'), ['parameters: there are none']),
    (random(learning_rat=rates['learning_rate']), ["'learning_rat'", "did you mean 'learning_rate'"]),
    (random(learning_rate=dict(min=1, max=0.1)), ['learning_rate', 'min 1', 'max 0.1']),
    (random(learning_rate=dict(min=1, max=1)), ['learning_rate', 'min 1']),
    (random(learning_rate=dict(distribution='loguniform', min=1, max=2)),
     ["'loguniform'", "did you mean 'log_uniform'"]),
    (random(learning_rate=dict(values=[1e-3, 1e-4], probabilities=[0.5, 0.6])), ['learning_rate', 'sum to 1.1']),
    (random(learning_rate=dict(values=[1e-3, 1e-4], probabilities=[1.0])), ['learning_rate', 'as long as values']),
    (random(batch_size=dict(distribution='uniform', min=8, max=64)), ['batch_size', 'whole numbers']),
    (random(batch_size=dict(values=[16, 1])), ['batch_size', '1 must be from 2 to 1000000']),
    (random(layer_decay=dict(min=0.5, max=1.5)), ['layer_decay', 'max 1.5', 'from 0 to 1']),
    (random(model_name=dict(min=1, max=2)), ['model_name', 'use values']),
    (random(model_name=dict(value='resnet18'), encoder=dict(value='resnet50')),
     ['encoder and model_name are the same']),
    (random(valid=dict(values=[0.1, 0.2])), ["'valid'", 'the same for all trials']),
    (random(learning_rate=dict(parameters=dict(a=dict(value=1)))), ['learning_rate has no parameters of its own']),
    (random(learning_rate=[1e-3, 1e-4]), ['write values: [0.001, 0.0001]']),
    (dict(method='grid', parameters=rates), ['learning_rate', 'method grid', 'uniform']),
    # the metric, and when a trial ends early
    (dict(method='random', parameters=rates, metric=dict(name='accuracy', goal='maximise')),
     ["'maximise'", "did you mean 'maximize'"]),
    (dict(method='random', parameters=rates, metric=dict(goal='maximize')), ['metric: name is missing']),
    (early(type='hyperband'), ['give min_iter, or max_iter and s']),
    (early(type='median'), ["type 'median'"]),
    (early(type='hyperband', min_iter=1, strict='no way'), ['strict', 'true or false']),
    (early(type='hyperband', min_iters=1), ["did you mean 'min_iter'"]),
    # the rest
    (dict(method='random', parameters=rates, run_cap='many'), ['run_cap']),
    (dict(method='random', parameters=rates, comand=[]), ["did you mean 'command'"]),
    (dict(method='random', parameters=rates, scheduler=dict(engine='ax')), ['scheduler', 'W&B only']),
]

@pytest.mark.parametrize('raw,says', WRONG, ids=[' '.join(s) for _,s in WRONG])
def test_mistakes_are_named(raw, says):
    with pytest.raises(ValueError) as e: read_settings(raw)
    assert all(s in str(e.value) for s in says) and '\n' not in str(e.value), str(e.value)

def test_log_uniform_says_that_it_takes_exponents():
    with pytest.warns(UserWarning, match='values go from 1 to 1.001'):
        one(dict(distribution='log_uniform', min=1e-5, max=1e-3))

def test_settings_load_neither_torch_nor_fastai():
    import subprocess, sys
    code = '''import sys, zoofast.sweep.settings as s
s.read_settings(dict(method='random', parameters=dict(learning_rate=dict(distribution='normal')))).random(1)
assert not {'torch', 'fastai', 'pandas', 'timm'} & set(sys.modules)'''
    subprocess.run([sys.executable, '-c', code], check=True)

# --- one run

def test_a_run_from_text_file_and_dict(tmp_path):
    values = dict(model_name='resnet18', learning_rate=1e-4, scheduler_kwargs=dict(sched='cosine', warmup_epochs=1))
    (tmp_path/'run.yaml').write_text(yaml.safe_dump(values))
    (tmp_path/'run.json').write_text(json.dumps(values))
    want = dict(encoder='resnet18', learning_rate=1e-4, scheduler_kwargs=dict(sched='cosine', warmup_epochs=1))
    for o in (values, json.dumps(values), tmp_path/'run.yaml', str(tmp_path/'run.json')): assert run_parameters(o)==want
    with pytest.raises(ValueError, match='cannot be read'): run_parameters(tmp_path/'none.yaml')

def test_names():
    assert all(parameter_name(k)==k for k in (*(p.name for p in PARAMETERS.values() if p.can_be_tried), *REPEATS))
