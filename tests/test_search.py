"Searches: the sampler gets the settings, processes share a study and none is counted twice, whoever is killed"
import math, os, signal, subprocess, sys, time
import numpy as np, pytest
optuna = pytest.importorskip('optuna')
from zoofast.sweep.search import is_behind, open_study, trials_by_place, search, trials_table
from zoofast.sweep.settings import read_settings

PARAMETERS = dict(
    learning_rate=dict(distribution='log_uniform_values', min=1e-6, max=1e-1),
    layer_decay=dict(min=0., max=1.),
    model_name=dict(values=['a', 'b', 'c', 'd']),
    batch_size=dict(values=[16, 32, 64]))
USUAL = dict(metric=dict(name='valid_loss', goal='minimize'), parameters=PARAMETERS)
def settings(method='random', **kw): return read_settings({'method': method, **USUAL, **kw})

def loss(values, trial=None):
    "An objective whose optimum is known: 0, at a rate of 2e-4, a decay of 0.7, the model b and batches of 32"
    rate = math.log10(values['learning_rate']/2e-4)**2
    decay = 4*(values['layer_decay']-0.7)**2
    model = 0.3*(values['model_name']!='b')
    batch = 0.1*abs(math.log2(values['batch_size']/32))
    return rate+decay+model+batch

def best(method, n, seed, **kw):
    study = open_study(s := settings(method))
    search(study, s, loss, n, seed, **kw)
    assert len(study.trials)==n
    return study.best_value

@pytest.mark.slow
def test_bayes_beats_random_at_equal_trials():
    bayes,random = (np.array([best(m, 40, seed) for seed in range(20)]) for m in ('bayes', 'random'))
    assert (bayes<random).sum()>=15 and bayes.mean()<0.7*random.mean(), (bayes.round(3), random.round(3))

def test_the_gaussian_process_is_used():
    def last(sampler):
        study = open_study(s := settings('bayes'))
        search(study, s, loss, 12, 1, sampler=sampler)
        return study.trials[11].user_attrs['settings']
    assert last('gp')!=last('tpe')
    with pytest.raises(ValueError, match='tpe and gp'): best('bayes', 3, 1, sampler='cma')

def test_maximize():
    s = settings('bayes', metric=dict(name='accuracy', goal='maximize'))
    study = open_study(s)
    search(study, s, lambda v, t: -loss(v), 40, 1)
    assert study.best_value>-0.3

@pytest.mark.slow
def test_the_same_seed_gives_the_same_search_also_when_it_was_interrupted(tmp_path):
    def run(url, ns, method, seed=1):
        s = settings(method)
        for n in ns: search(open_study(s, url), s, loss, n, seed)
        return [t.user_attrs['settings'] for t in open_study(s, url).trials]
    for method in ('bayes', 'random'):
        whole = run(f'sqlite:///{tmp_path}/{method}.db', [16], method)
        assert run(f'sqlite:///{tmp_path}/{method}2.db', [3, 11, 16], method)==whole
        assert run(f'sqlite:///{tmp_path}/{method}3.db', [16], method, seed=2)!=whole

def test_values_belong_to_the_place_that_is_taken_not_to_the_one_that_was_free():
    "Two processes that begin together both see the first place free; the second gets the next, and other values"
    from zoofast.sweep.search import _fill, _sampler
    s = settings('bayes')
    study = open_study(s)
    _fill(study, s, 2, 1)
    def first_of_a_process():
        study.sampler = _sampler('bayes', 'tpe', 1)
        return study.ask().suggest_float('x', 0, 1)
    assert first_of_a_process()!=first_of_a_process()

def test_a_grid_is_gone_through_once_and_a_null_is_a_value():
    s = settings('grid', parameters=dict(
        model_name=dict(values=['a', 'b']),
        n_blocks=dict(values=[None, 1]),
        layer_decay=dict(distribution='q_uniform', min=0.5, max=1, q=0.25),
        num_experiments=dict(values=[1, 2]),
        augment=dict(values=['galaxy', {'noise': 0}])))
    study,seen = open_study(s),[]
    search(study, s, lambda v, t: seen.append(v) or 0., len(s.grid))
    assert seen==[{p.name: g[p.name] for p in s.parameters} for g in s.grid] and len(seen)==48

def test_a_trial_that_fails_has_a_reason_and_the_search_goes_on():
    def some(values, trial):
        if trial.user_attrs['place'] in (1, 3): raise ValueError('training has diverged: the loss is nan')
        if trial.user_attrs['place']==4: return math.nan
        return loss(values)
    study = open_study(s := settings())
    search(study, s, some, 6)
    own,dead = trials_by_place(study)
    diverged = 'training has diverged: the loss is nan'
    reasons = [own[i].user_attrs.get('reason') for i in range(6)]
    assert reasons==[None, diverged, None, diverged, 'valid_loss is nan', None]
    assert len(study.trials)==6 and not dead

def test_a_search_whose_trials_all_fail_stops():
    def broken(values, trial): raise OSError('no such file: x.jpg')
    study = open_study(s := settings())
    with pytest.raises(ValueError, match='the first 3 trials all failed: no such file'): search(study, s, broken, 20)
    assert len(study.trials)<=20 and sum(t.state.is_finished() for t in study.trials)==3

def test_a_mistake_in_the_program_is_no_failed_trial():
    with pytest.raises(TypeError): search(open_study(s := settings()), s, lambda v, t: v+1, 5)

def test_whole_numbers_stay_whole_beside_trials_that_have_no_value_yet():
    parameters = dict(batch_size=dict(values=[16, 32]), head_dropout_prob=dict(min=0., max=0.5))
    s = read_settings(dict(method='random', parameters=parameters))
    study = open_study(s)
    search(study, s, lambda v, t: v['batch_size'], 1)
    study.enqueue_trial({}, user_attrs={'place': 1, 'tries': 1})
    t = trials_table(study, s)
    assert t.state.tolist()==['finished', 'waiting']
    assert t.batch_size[0] in (16, 32) and t.batch_size.isna().tolist()==[False, True]
    drawn = study.trials[0].user_attrs['settings']['batch_size']
    assert t[['batch_size']].to_csv(index=False)==f'batch_size\n{drawn}\n""\n'

def test_target_ends_the_search():
    study = open_study(s := settings(metric=dict(name='valid_loss', goal='minimize', target=1.)))
    search(study, s, loss, 100)
    assert len([t for t in study.trials if t.state.is_finished()])<100 and study.best_value<=1

def test_pruning_follows_the_epochs():
    def epochs(values, trial):
        for e in range(4):
            trial.report(loss(values)+1-0.2*e, e)
            if trial.should_prune(): raise optuna.TrialPruned
        return loss(values)
    study = open_study(s := settings('bayes', early_terminate=dict(type='hyperband', min_iter=1, eta=2)))
    search(study, s, epochs, 20, 1)
    stopped = [t for t in study.trials if t.state.name=='PRUNED']
    assert 3<=len(stopped)<=17 and {len(t.intermediate_values) for t in stopped}<={1, 2, 4}
    finished = [t.value for t in study.trials if t.state.name=='COMPLETE']
    assert min(finished)==min(loss(t.user_attrs['settings']) for t in study.trials)

def test_a_trial_that_is_not_behind_goes_on():
    early = dict(bands=[2], eta=2, strict=False)
    assert not is_behind([0.9], [[0.9], [0.1, 0.1]], early)
    assert is_behind([0.9, 0.8], [[0.9, 0.8], [0.1, 0.1], [0.2, 0.2]], early)
    mine,others = [0.15, 0.8],[[0.1, 0.1], [0.2, 0.2]]
    assert not is_behind(mine, [mine, *others], early)                   # its best epoch is good enough ...
    assert is_behind(mine, [mine, *others], dict(early, strict=True))    # ... unless this very epoch counts

# --- databases and processes

@pytest.mark.parametrize('url,says', [
    ('not an address', 'no address of a database'),
    ('postgresql://me:secret@127.0.0.1:9/x', 'cannot be used'),
    ('sqlite:////no/such/folder/s.db', 'cannot be used')])
def test_a_database_that_cannot_be_reached_is_named(url, says):
    with pytest.raises(ValueError, match=says) as e: open_study(settings(), url)
    assert 'secret' not in str(e.value) and '\n' not in str(e.value)

def test_another_search_is_not_mixed_in(tmp_path):
    url = f'sqlite:///{tmp_path}/s.db'
    search(open_study(settings(), url, about=dict(catalogue='abc')), settings(), loss, 2)
    with pytest.raises(ValueError, match="begun with catalogue 'abc', not 'xyz'"):
        open_study(settings(), url, about=dict(catalogue='xyz'))
    with pytest.raises(ValueError, match='begun with method'):
        open_study(settings('bayes'), url, about=dict(catalogue='abc'))
    narrower = settings(parameters={**PARAMETERS, 'layer_decay': dict(min=0., max=0.5)})
    with pytest.raises(ValueError, match='begun with parameters.*layer_decay'):
        open_study(narrower, url, about=dict(catalogue='abc'))

WORKER = """
import os, sys, time
from filelock import FileLock
from zoofast.sweep.search import open_study, search
from zoofast.sweep.settings import read_settings
sys.path.insert(0, sys.argv[3])
from test_search import settings, loss
folder,n = sys.argv[1],int(sys.argv[2])
def slow(values, trial):
    with open(f'{folder}/log', 'a') as f: f.write(f"{trial.user_attrs['place']} {os.getpid()} begun\\n")
    time.sleep(float(sys.argv[4]))
    with open(f'{folder}/log', 'a') as f: f.write(f"{trial.user_attrs['place']} {os.getpid()} done\\n")
    return loss(values)
s = settings(sys.argv[5])
lock = FileLock(f'{folder}/lock') if sys.argv[6]=='lock' else None
search(open_study(s, f'sqlite:///{folder}/s.db', alive=5), s, slow, n, lock=lock, poll=0.2)
"""

def start(folder, n, seconds=0.4, method='random', lock='lock'):
    here = os.path.dirname(__file__)
    command = [sys.executable, '-c', WORKER, str(folder), str(n), here, str(seconds), method, lock]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

def log(folder): return [o.split() for o in (folder/'log').read_text().splitlines()] if (folder/'log').exists() else []

def wait_for(what, seconds=100):
    until = time.time()+seconds
    while not what():
        assert time.time()<until, 'it took too long'
        time.sleep(0.1)

@pytest.mark.slow
@pytest.mark.parametrize('method', ['random', 'bayes'])
def test_a_killed_process_leaves_no_trial_undone_and_none_is_done_twice(tmp_path, method):
    n = 10
    ps = [start(tmp_path, n, method=method) for _ in range(2)]
    first = str(ps[0].pid)
    def some_are_done():
        done = [o for o in log(tmp_path) if o[2]=='done']
        return len(done)>=3 and first in {o[1] for o in log(tmp_path)}
    def in_the_middle_of_a_trial(): return [o for o in log(tmp_path) if o[1]==first][-1][2]=='begun'
    wait_for(some_are_done)
    wait_for(in_the_middle_of_a_trial)
    ps[0].send_signal(signal.SIGKILL)
    assert ps[1].wait(120)==0, ps[1].stderr.read()
    done = [int(o[0]) for o in log(tmp_path) if o[2]=='done']
    assert sorted(done)==list(range(n))
    study = open_study(settings(method), f'sqlite:///{tmp_path}/s.db')
    own,dead = trials_by_place(study)
    assert sorted(own)==list(range(n)) and all(t.state.name=='COMPLETE' for t in own.values())
    assert len({str(t.user_attrs['settings']) for t in own.values()})==n     # no two processes draw the same values
    assert len(dead)==1 and sum(t.state.name=='COMPLETE' for t in study.trials)==n
    place,(killed,) = next(iter(dead.items()))
    assert own[place].user_attrs['settings']==killed.user_attrs['settings'] and own[place].user_attrs['tries']==2

@pytest.mark.slow
def test_processes_that_begin_together_do_as_many_trials_as_were_asked_for(tmp_path):
    ps = [start(tmp_path, 7, 0.2) for _ in range(3)]
    assert [p.wait(120) for p in ps]==[0]*3, [p.stderr.read() for p in ps]
    assert sorted(int(o[0]) for o in log(tmp_path) if o[2]=='done')==list(range(7))
    study = open_study(settings(), f'sqlite:///{tmp_path}/s.db')
    assert sum(t.state.name=='COMPLETE' for t in study.trials)==7

def test_a_trial_that_kills_its_process_is_given_up(tmp_path):
    "As when memory runs out: after four times the search goes on without it"
    url,s = f'sqlite:///{tmp_path}/s.db',settings()
    study = open_study(s, url)
    for _ in range(4):
        def killed_at_first(values, trial):
            if trial.user_attrs['place']==0: raise KeyboardInterrupt
            return loss(values)
        with pytest.raises(KeyboardInterrupt): search(study, s, killed_at_first, 3)
    search(study, s, loss, 3)
    own,dead = trials_by_place(study)
    assert len(dead[0])==4 and 'killed 4 times' in own[0].user_attrs['reason']
    assert [own[i].state.name for i in range(3)]==['FAIL', 'COMPLETE', 'COMPLETE']
