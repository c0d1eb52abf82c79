"Sweeps as a user runs them: one command, and what it leaves on disk"
from pathlib import Path
import pandas as pd, pytest, yaml
optuna = pytest.importorskip('optuna')

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = dict(method='random', metric=dict(name='valid_loss', goal='minimize'), parameters=dict(
    model_name=dict(value='tf_efficientnet_lite0'), head_lr=dict(distribution='log_uniform_values', min=1e-4, max=1e-2), training_mode=dict(value='head_only'), num_experiments=dict(values=[1, 2])))

def write(folder, settings=SETTINGS, **kw):
    (folder/'settings.yaml').write_text(yaml.safe_dump({**settings, **kw}, sort_keys=False))
    return folder/'settings.yaml'

def table(folder): return pd.read_csv(folder/'trials.csv')

# --- one search, from beginning to end ----------------------------------------------------------------------------

@pytest.fixture(scope='module')
def done(run_zoofast, survey, tmp_path_factory):
    "A search of three trials, then asked for the same again, then for one more and the best"
    d = tmp_path_factory.mktemp('sweep')
    args = ['sweep', write(d), '--catalog', survey[0]/'catalog.csv', '--label', 'morphology', '--size', 48, '--epochs', 1, '--freeze-epochs', 0, '--save-dir', d/'run']
    first = run_zoofast(*args, '--trials', 3)
    again = run_zoofast(*args, '--trials', 3)
    more = run_zoofast(*args, '--trials', 4, '--best')
    for res in (first, again, more): assert res.returncode==0, res.stderr
    return d/'run',first,again,more

def test_a_search_tells_what_it_found(done):
    folder,first,again,more = done
    assert 'trial 1 of 3: valid_loss' in first.stderr and 'best so far' in first.stderr and 'best setting: valid_loss' in first.stdout
    assert 'trial ' not in again.stderr and '3 trials: 3 finished' in again.stdout
    assert 'trial 4 of 4' in more.stderr and 'trial 3 of' not in more.stderr
    t = table(folder)
    assert t.trial.tolist()==[1, 2, 3, 4] and (t.state=='finished').all() and t.head_lr.between(1e-4, 1e-2).all()
    assert 'Traceback' not in first.stderr and 'Warning' not in first.stderr+more.stderr

def test_each_trial_has_its_folder_and_no_checkpoints_are_left(done):
    folder = done[0]
    assert sorted(o.name for o in (folder/'trials').iterdir())==['0001', '0002', '0003', '0004']
    assert not list((folder/'trials').rglob('*.pt')) and not list((folder/'trials').rglob('best.safetensors'))

def test_texts_on_the_page_are_escaped(tmp_path):
    from zoofast.search import open_study, search, trials_table
    from zoofast.settings import read_settings
    from zoofast.sweep_page import write_page
    s = read_settings(dict(method='random', name='<script>alert(1)</script>', description='a & b', parameters=dict(model_name=dict(values=['<b>x</b>', 'y']), learning_rate=dict(min=1e-4, max=1e-3))))
    study = open_study(s)
    search(study, s, lambda v, t: v['learning_rate'] if t.user_attrs['place'] else (_ for _ in ()).throw(ValueError('<i>no</i>')), 4)
    html = write_page(study, s, trials_table(study, s), tmp_path/'p.html').read_text()
    assert '<script>alert' not in html and '&lt;script&gt;alert' in html and '<i>no' not in html and '<b>x' not in html and 'a &amp; b' in html

def test_a_page_of_nothing_and_of_failures_only(tmp_path):
    from zoofast.search import open_study, search, trials_table
    from zoofast.settings import read_settings
    from zoofast.sweep_page import write_page
    s = read_settings(dict(method='random', parameters=dict(learning_rate=dict(min=1e-4, max=1e-3))))
    study = open_study(s)
    write_page(study, s, trials_table(study, s), tmp_path/'none.html')
    search(study, s, lambda v, t: (_ for _ in ()).throw(ValueError(f'{v}')), 2)
    assert 'learning_rate' in write_page(study, s, trials_table(study, s), tmp_path/'bad.html').read_text()

def test_settings_yaml_is_a_sweep_of_wandb_too():
    "W&B's own client reads the file; the arguments that its agent would make of one run are what `finetune --settings` takes"
    w = pytest.importorskip('wandb.sdk.launch.sweeps.utils')
    from zoofast.settings import read_settings
    from zoofast.terminal import run_settings
    config = w.load_sweep_config(str(ROOT/'settings.yaml'))
    values = {p.name: p.at(0.3) for p in read_settings(config).parameters}
    args = w.create_sweep_command_args({'args': {k: {'value': v} for k,v in values.items()}})
    words = w.create_sweep_command(config['command'])
    assert words[3:5]==['zoofast.cli', 'finetune'] and words[-2:]==['--settings', '${args_json}']
    assert run_settings(args['args_json'][0], 'runs')=={('encoder' if k=='model_name' else k): v for k,v in values.items()}
