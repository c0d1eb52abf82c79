"""Sweeps as a user runs them: one command or several processes, what is left on disk, the page in a browser, and what
is said about mistakes"""
import json, os, re, warnings
from pathlib import Path
import numpy as np, pandas as pd, pytest, yaml
optuna = pytest.importorskip('optuna')

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = dict(method='random', metric=dict(name='valid_loss', goal='minimize'), parameters=dict(
    model_name=dict(value='tf_efficientnet_lite0'),
    head_lr=dict(distribution='log_uniform_values', min=1e-4, max=1e-2),
    training_mode=dict(value='head_only'),
    num_experiments=dict(values=[1, 2])))

def write(folder, settings=SETTINGS, **kw):
    (folder/'settings.yaml').write_text(yaml.safe_dump({**settings, **kw}, sort_keys=False))
    return folder/'settings.yaml'

def said(err): return [o for o in err.replace('\r', '\n').split('\n') if o.startswith('zoofast:')]

def table(folder): return pd.read_csv(folder/'trials.csv')

# --- one search, from beginning to end

@pytest.fixture(scope='module')
def done(run_zoofast, survey, tmp_path_factory):
    "A search of three trials, then asked for the same again, then for one more and the best"
    d = tmp_path_factory.mktemp('sweep')
    args = ['sweep', write(d), '--catalog', survey[0]/'catalog.csv', '--label', 'morphology', '--size', 48,
            '--epochs', 1, '--freeze-epochs', 0, '--save-dir', d/'run']
    first = run_zoofast(*args, '--trials', 3)
    again = run_zoofast(*args, '--trials', 3)
    more = run_zoofast(*args, '--trials', 4, '--best')
    for res in (first, again, more): assert res.returncode==0, res.stderr
    return d/'run',first,again,more

@pytest.mark.slow
def test_a_search_tells_what_it_found(done):
    folder,first,again,more = done
    assert 'trial 1 of 3: valid_loss' in first.stderr and 'best so far' in first.stderr
    assert 'best setting: valid_loss' in first.stdout
    assert 'trial ' not in again.stderr and '3 trials: 3 finished' in again.stdout
    assert 'trial 4 of 4' in more.stderr and 'trial 3 of' not in more.stderr
    t = table(folder)
    assert t.trial.tolist()==[1, 2, 3, 4] and (t.state=='finished').all() and t.head_lr.between(1e-4, 1e-2).all()
    assert 'Traceback' not in first.stderr and 'Warning' not in first.stderr+more.stderr

@pytest.mark.slow
def test_each_trial_has_its_folder_and_no_checkpoints_are_left(done):
    folder = done[0]
    assert sorted(o.name for o in (folder/'trials').iterdir())==['0001', '0002', '0003', '0004']
    assert not list((folder/'trials').rglob('*.pt')) and not list((folder/'trials').rglob('best.safetensors'))

@pytest.mark.slow
def test_the_best_setting_is_trained_again_and_predicts(done, run_zoofast, survey, tmp_path):
    folder = done[0]
    assert 'validation galaxies: accuracy' in done[3].stdout
    res = run_zoofast('predict', folder/'best', survey[0]/'catalog.csv', '--out', tmp_path/'p.csv')
    assert res.returncode==0, res.stderr
    p,df = pd.read_csv(tmp_path/'p.csv', dtype={'id_str': str}),survey[1]
    assert p.id_str.tolist()==df.id_str.astype(str).tolist()
    assert p.error.isna().all() and set(p.morphology_pred)<=set(df.morphology)
    h,t = pd.read_csv(folder/'best'/'bundle'/'history.csv'),table(folder)
    means = t.groupby('head_lr').valid_loss.mean()
    best = t.valid_loss[t.head_lr==means.idxmin()].min()
    assert np.isclose(h.valid_loss.min(), best, atol=1e-6)          # the same training, to the same end

@pytest.mark.slow
def test_processes_share_the_trials(run_zoofast, survey, tmp_path):
    "`--jobs 2`: each place once"
    args = ['--catalog', survey[0]/'catalog.csv', '--label', 'morphology', '--size', 48, '--epochs', 1,
            '--freeze-epochs', 0, '--save-dir', tmp_path/'run', '--trials', 6, '--jobs', 2]
    res = run_zoofast('sweep', write(tmp_path), *args)
    assert res.returncode==0, res.stderr
    assert sorted(re.findall(r'\[[12]\] trial (\d+) of 6', res.stderr))==list('123456')
    assert '6 trials: 6 finished' in res.stdout
    study = optuna.load_study(study_name='sweep', storage=f"sqlite:///{tmp_path/'run'/'study.db'}")
    assert sorted(t.user_attrs['place'] for t in study.trials if t.state.name=='COMPLETE')==list(range(6))
    assert table(tmp_path/'run').trial.tolist()==[1, 2, 3, 4, 5, 6]

# --- the page

EVIL = '<script>alert(1)</script>'

@pytest.fixture(scope='module')
def page_file(tmp_path_factory):
    "The page of a search whose trials take no time; some fail, some are stopped"
    from zoofast.sweep.search import open_study, search, trials_table
    from zoofast.sweep.settings import read_settings
    from zoofast.sweep.page import write_page
    encoders = ['tf_efficientnet_lite0', 'convnext_nano.in12k_ft_in1k', 'hf_hub:mwalmsley/zoobot-encoder-convnext_nano',
                'local-dir:/home/a b/models/$ours_v2']
    parameters = dict(
        model_name=dict(values=encoders),
        batch_size=dict(values=[16, 32]),
        learning_rate=dict(distribution='log_uniform_values', min=1e-5, max=1e-2),
        layer_decay=dict(min=0.4, max=1.),
        num_experiments=dict(values=[1, 2, 3]))
    s = read_settings(dict(name=EVIL, description='a & b <img src=x onerror=alert(2)>', method='random',
                           metric=dict(name='valid_loss', goal='minimize'),
                           early_terminate=dict(type='hyperband', min_iter=1, eta=2), parameters=parameters))
    def trial(v, t):
        if v['learning_rate']>5e-3: raise ValueError('<i>no</i>: training has diverged')
        t.set_user_attr('seconds', 10.+30*encoders.index(v['model_name'])+v['num_experiments'])
        loss = 0.3+abs(np.log10(v['learning_rate']/3e-4))*0.2
        t.report(loss, 0)
        if t.should_prune(): raise optuna.TrialPruned
        return loss
    study = open_study(s)
    search(study, s, trial, 40)
    return write_page(study, s, trials_table(study, s), tmp_path_factory.mktemp('page')/'sweep.html')

@pytest.mark.slow
@pytest.mark.parametrize('width', [375, 1400])
def test_the_page_reads_well(opened, page_file, width):
    """Nothing is fetched or complained about, nothing is wider than the screen, texts from the settings are texts,
    encoders are called by their names"""
    page,wrong = opened(page_file, width, dark=width==375)
    assert not wrong and page.locator('h1').inner_text()==f'Sweep: {EVIL}'
    assert 'a & b <img' in page.locator('body').inner_text()
    assert page.evaluate('document.documentElement.scrollWidth')<=width
    assert page.locator('svg').count()==9
    texts = page.locator('svg text').all_text_contents()
    for name in ('tf_efficientnet_lite0', 'convnext_nano.in12k_ft_in1k', 'model_name', 'learning_rate',
                 'seconds of training', 'stopped early', 'failed'):
        assert any(o.strip()==name for o in texts), name
    assert any('hf_hub:mwalmsley/zoobot-encoder-convnext_nano: 0.3' in o for o in texts)
    assert any(o.endswith('$ours_v2') for o in texts)
    boxes = '''[...document.querySelectorAll('svg')].flatMap(s => {
        const a = s.getBoundingClientRect();
        return [...s.querySelectorAll('text')].map(t => {
            const b = t.getBoundingClientRect();
            return [b.left-a.left, a.right-b.right, b.top-a.top, a.bottom-b.bottom, b.height]})})'''
    for box in page.evaluate(boxes):
        assert min(box[:4])>-3 and box[4]>5, box                # no label is clipped, or too small to read
    ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert ink==page.evaluate('getComputedStyle(document.body).color')
    if out := os.environ.get('ZOOFAST_PICTURES'): page.screenshot(path=f'{out}/sweep_{width}.png', full_page=True)

def test_the_table_is_sorted_by_what_is_clicked(opened, page_file):
    page,wrong = opened(page_file)
    def column(i):
        cells = page.locator(f'#trials td:nth-child({i})')
        return [float(o) for o in cells.evaluate_all("all => all.map(o => o.dataset.k).filter(o => o!=='')")]
    assert column(1)==list(range(1, 41))
    page.locator('#trials th').nth(2).click()
    up = column(3)
    page.locator('#trials th').nth(2).press('Enter')
    assert up==sorted(up) and column(3)==up[::-1] and len(set(up))>5 and not wrong
    assert '<i>no</i>: training has diverged' in page.locator('#trials').inner_text()

def test_a_page_of_nothing_and_of_failures_only(tmp_path):
    from zoofast.sweep.search import open_study, search, trials_table
    from zoofast.sweep.settings import read_settings
    from zoofast.sweep.page import write_page
    s = read_settings(dict(method='random', parameters=dict(learning_rate=dict(min=1e-4, max=1e-3))))
    study = open_study(s)
    write_page(study, s, trials_table(study, s), tmp_path/'none.html')
    search(study, s, lambda v, t: (_ for _ in ()).throw(ValueError(f'{v}')), 2)
    assert 'learning_rate' in write_page(study, s, trials_table(study, s), tmp_path/'bad.html').read_text()

# --- files as people have them, and mistakes

@pytest.fixture
def here(monkeypatch, capfd, tmp_path):
    "`here('sweep', ...)`: the command in this process, whose libraries are loaded already: exit code, stdout, stderr"
    from zoofast.cli.main import app
    def _run(*args):
        monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)        # the command sets its own
        capfd.readouterr()
        try: app([*map(str, args)], prog_name='zoofast')
        except SystemExit as e: return (e.code or 0,*capfd.readouterr())
    return _run

@pytest.fixture(scope='module')
def tiny(survey, tmp_path_factory):
    "Two small encoders in folders"
    from zoofast.all import GalaxyDataLoaders, galaxy_learner
    d = tmp_path_factory.mktemp('encoders')
    dls = GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=48, progress=False)
    small = ('test_efficientnet', 'test_resnet')
    folders = [galaxy_learner(dls, o, pretrained=False).save_encoder(d/o) for o in small]
    return [f'local-dir:{o}' for o in folders]

AS_PEOPLE_HAVE_THEM = {
    'grid': """
program: train.py
method: grid
metric: {name: valid_loss, goal: minimize}
parameters:
  model_name: {values: [A, B]}
  learning_rate: {values: [0.002, 1e-4]}
  batch_size: {values: [8, 16]}
""",
    'bayes': """
program: train.py
name: tuning
method: bayes
metric: {name: valid_loss, goal: minimize}
parameters:
  model_name: {value: A}
  learning_rate: {distribution: uniform, min: 0.0001, max: 0.01}
""",
    'seeds': """
program: fine_tune.py
method: grid
parameters:
  model_name: {values: [A, B]}
  num_experiments: {values: [1, 2, 3]}
""",
    'keys': """
program: train.py
entity: somebody
project: galaxies
description: from the group's wiki
method: random
metric: {name: accuracy, goal: maximize}
run_cap: 3
command: ["${env}", "${interpreter}", "${program}", "${args}"]
parameters:
  model_name: {values: [A, B], distribution: categorical}
  batch_size: {distribution: q_log_uniform_values, q: 8, min: 8, max: 32}
  weight_decay: {min: 0.01, max: 0.3}
""",
}

@pytest.mark.slow
@pytest.mark.parametrize('kind,n', dict(grid=8, bayes=4, seeds=6, keys=3).items())
def test_files_as_people_have_them(here, tiny, survey, tmp_path, kind, n):
    path = tmp_path/'sweep.yaml'
    path.write_text(re.sub(r'\bA\b', tiny[0], re.sub(r'\bB\b', tiny[1], AS_PEOPLE_HAVE_THEM[kind])))
    args = ['--catalog', survey[0]/'catalog.csv', '--label', 'morphology', '--size', 48, '--epochs', 1,
            '--freeze-epochs', 0, '--save-dir', tmp_path/'run', *(['--trials', 4] if kind=='bayes' else [])]
    code,out,err = here('sweep', path, *args)
    assert code==0 and f'{n} trials: {n} finished' in out and 'Warning' not in err, err
    t = table(tmp_path/'run')
    if kind=='grid':
        assert len(t[['model_name', 'learning_rate', 'batch_size']].drop_duplicates())==8
        assert set(t.model_name)==set(tiny)
    if kind=='bayes': assert t.learning_rate.nunique()==4 and t.learning_rate.between(1e-4, 1e-2).all()
    if kind=='keys': assert set(t.batch_size)<={8, 16, 24, 32} and t.accuracy.notna().all()
    if kind=='seeds':
        assert t.groupby('model_name').num_experiments.apply(sorted).tolist()==[[1, 2, 3]]*2
        assert (t.groupby('model_name').valid_loss.nunique()==3).all()               # seeds that are really other ones
        assert 'mean of 3 seeds' in out

def also(**parameters): return dict(parameters={**SETTINGS['parameters'], **parameters})

MISTAKES = [
    (dict(parameters=dict(learning_rat=dict(value=1e-3))), [], ["'learning_rat'", "did you mean 'learning_rate'"]),
    (also(lr=dict(value=1e-3)), [], ["'lr'", 'learning_rate']),
    (also(learning_rate=dict(min=1, max=0.1)), [], ['learning_rate', 'min 1', 'max 0.1']),
    (dict(method='bayse'), [], ["'bayse'", "did you mean 'bayes'"]),
    (also(learning_rate=dict(distribution='loguniform', min=1, max=2)), [],
     ["'loguniform'", "did you mean 'log_uniform'"]),
    (dict(method='bayes', metric=None), [], ['metric', 'valid_loss']),
    (dict(metric=dict(name='acuracy', goal='maximize')), [], ["'acuracy'", "did you mean 'accuracy'"]),
    (dict(metric=dict(name='accuracy')), [], ['worst accuracy', 'goal: maximize']),
    (dict(parameters=dict(model_name=dict(values=['resnet18', 'resnet81']))), [], ["'resnet81'", 'did you mean']),
    (dict(parameters=dict(learning_rate=dict(value=1e-3))), [], ['model_name is missing']),
    (dict(early_terminate=dict(type='median', min_iter=1)), [], ["'median'", 'hyperband']),
    (dict(programme='x'), [], ["'programme'", "did you mean 'program'"]),
    ({}, ['--storage', 'postgresql://me:secret@127.0.0.1:9/x'], ['storage', '127.0.0.1:9']),
    ({}, ['--storage', 'sqlite:////no/such/folder/s.db'], ['storage', '/no/such/folder/s.db']),
    ({}, ['--storage', 'somewhere'], ["'somewhere'", 'no address']),
    ({}, ['--encoder', 'resnet18'], ['encoder', 'leave out one']),
    ({}, ['--trials', '0'], ['trials']),
    ({}, ['--jobs', '0'], ['--jobs 0']),
    ({}, ['--sampler', 'cma'], ['tpe or gp']),
    ({}, ['--label', 'morphologie'], ["morphologie", 'morphology']),
]

@pytest.mark.slow(but=7)
@pytest.mark.parametrize('change,args,says', MISTAKES, ids=[' '.join(o[2]) for o in MISTAKES])
def test_mistakes_are_one_sentence(here, survey, tmp_path, change, args, says):
    raw = {k: v for k,v in {**SETTINGS, **change}.items() if v is not None}
    label = [] if '--label' in args else ['--label', 'morphology']
    code,out,err = here('sweep', write(tmp_path, raw), '--catalog', survey[0]/'catalog.csv', *label, '--size', 48,
                        '--save-dir', tmp_path/'run', *args)
    assert code==2 and len(said(err))==1 and all(o in said(err)[0] for o in says), err
    assert 'secret' not in err and not out and 'Traceback' not in err, err
    assert not (tmp_path/'run'/'trials').exists()

def test_a_file_that_is_not_there_or_not_yaml(here, survey, tmp_path):
    args = ['--catalog', survey[0]/'catalog.csv', '--label', 'morphology', '--save-dir', tmp_path/'run']
    (tmp_path/'bad.yaml').write_text('method: [random\nparameters: x')
    for name,says in (('none.yaml', 'none.yaml cannot be read'), ('bad.yaml', 'bad.yaml is not YAML: line')):
        code,_,err = here('sweep', tmp_path/name, *args)
        assert code==2 and len(said(err))==1 and says in said(err)[0], err

# --- finetune --settings: what an agent of W&B starts

@pytest.mark.slow
def test_finetune_takes_a_file_of_settings(run_zoofast, survey, tmp_path):
    "A whole run of a process of its own, as W&B's agent starts it"
    values = dict(model_name='tf_efficientnet_lite0', training_mode='head_only', epochs=1, freeze_epochs=0, size=48,
                  batch_size=8)
    (tmp_path/'settings.yaml').write_text(yaml.safe_dump(values))
    res = run_zoofast('finetune', survey[0]/'catalog.csv', '--label', 'morphology', '--save-dir', tmp_path/'run',
                      '--settings', tmp_path/'settings.yaml',
                      env={'WANDB_SWEEP_ID': 'abc', 'WANDB_RUN_ID': 'run7', 'WANDB_MODE': 'disabled'})
    assert res.returncode==0 and 'validation galaxies: accuracy' in res.stdout, res.stderr
    config = json.loads((tmp_path/'run'/'abc'/'run7'/'bundle'/'config.json').read_text())['params']
    want = dict(encoder='tf_efficientnet_lite0', training_mode='head_only', batch_size=8, size=48)
    assert {k: config[k] for k in want}==want

def test_finetune_names_what_is_wrong_in_its_settings(here, survey, tmp_path):
    args = ['finetune', survey[0]/'catalog.csv', '--label', 'morphology', '--save-dir', tmp_path/'run', '--settings']
    for given,says in (('{"batchsize": 8}', "did you mean 'batch_size'"), ('{"batch_size": 8}', '--encoder')):
        code,_,err = here(*args, given)
        assert code==2 and len(said(err))==1 and says in said(err)[0], err

def test_settings_yaml_is_a_sweep_of_wandb_too():
    """W&B's own client reads the file; the arguments that its agent would make of one run are what
    `finetune --settings` takes"""
    w = pytest.importorskip('wandb.sdk.launch.sweeps.utils')
    from zoofast.sweep.settings import read_settings
    from zoofast.cli.finetune import run_settings
    config = w.load_sweep_config(str(ROOT/'settings.yaml'))
    values = {p.name: p.at(0.3) for p in read_settings(config).parameters}
    args = w.create_sweep_command_args({'args': {k: {'value': v} for k,v in values.items()}})
    words = w.create_sweep_command(config['command'])
    assert words[3:5]==['zoofast.cli', 'finetune'] and words[-2:]==['--settings', '${args_json}']
    want = {('encoder' if k=='model_name' else k): v for k,v in values.items()}
    assert run_settings(args['args_json'][0], 'runs')==want
