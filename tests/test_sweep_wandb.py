"""Sweeps on W&B: W&B's own client makes the sweep and runs the agents, against a stand-in of its server on loopback
(stub_wandb.py).

Not shown here: which values W&B's server would choose, which trainings its hyperband would end, and what its pages look
like."""
import json, os, shutil, subprocess, sys
from pathlib import Path
import pandas as pd, pytest, yaml
pytest.importorskip('wandb')
from stub_wandb import StubWandb
from zoofast.training.runs import list_runs, read_run_config, read_state

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = dict(
    method='bayes',
    project='rings',
    metric=dict(name='valid_loss', goal='minimize'),
    early_terminate=dict(type='hyperband', min_iter=1),
    parameters=dict(
        model_name=dict(value='tf_efficientnet_lite0'),
        head_lr=dict(distribution='log_uniform_values', min='1e-4', max='1e-2'),
        training_mode=dict(value='head_only'),
        num_experiments=dict(values=[1, 2])))

@pytest.fixture
def stub():
    s = StubWandb()
    yield s
    s.close()

def online(stub, tmp_path):
    "The environment in which W&B's client speaks to the stub"
    folders = ('WANDB_CONFIG_DIR', 'WANDB_CACHE_DIR', 'WANDB_DATA_DIR', 'WANDB_ARTIFACT_DIR')
    url = stub if isinstance(stub, str) else stub.url
    return {**{k: str(tmp_path/'home') for k in folders},
            'NETRC': str(tmp_path/'netrc'),
            'WANDB_BASE_URL': url,
            'WANDB_API_KEY': '0'*40,
            'OMP_NUM_THREADS': '1'}

def write(folder, settings=SETTINGS, **kw):
    (folder/'settings.yaml').write_text(yaml.safe_dump({**settings, **kw}, sort_keys=False))
    return folder/'settings.yaml'

def asked(survey, tmp_path, *more, **kw):
    return ['sweep', write(tmp_path, **kw), '--catalog', survey[0]/'catalog.csv', '--label', 'morphology', '--size', 48,
            '--epochs', 2, '--freeze-epochs', 0, '--save-dir', tmp_path/'runs', *more]
def values(head_lr, **kw):
    return dict(model_name='tf_efficientnet_lite0', training_mode='head_only', head_lr=head_lr, num_experiments=1, **kw)
def losses(run): return [r['valid_loss'] for r in run.rows if 'valid_loss' in r]
def said(res): return [l for l in res.stderr.splitlines() if l.startswith('zoofast:')]

@pytest.mark.slow
def test_a_sweep_on_wandb(run_zoofast, survey, stub, tmp_path):
    "The sweep has what the file says; each training is one of its runs, and tells of the metric after each epoch"
    stub.values = [values(1e-3), {**values(3e-3), 'num_experiments': 2}]
    res = run_zoofast(*asked(survey, tmp_path, '--trials', 2, '--wandb'), env=online(stub, tmp_path), cwd=tmp_path)
    assert res.returncode==0, res.stderr+res.stdout
    sweep, = stub.sweeps
    assert sweep['parameters']['head_lr']==dict(distribution='log_uniform_values', min=1e-4, max=1e-2)
    assert sweep['metric']==SETTINGS['metric'] and sweep['method']=='bayes'
    assert sweep['run_cap']==2 and sweep['early_terminate']==dict(type='hyperband', min_iter=1, strict=True)
    assert sweep['command'][-2:]==['--settings', '${args_json}']
    assert list(stub.runs)==['run1', 'run2']
    folder = tmp_path/'runs'/'swp1'
    for name,r in stub.runs.items():
        history = pd.read_csv(folder/name/'history.csv')
        assert (r.sweep, r.project, r.exit)==('swp1', 'rings', 0)
        assert losses(r)==history.valid_loss.tolist() and len(history)==2
        assert r.summary['valid_loss']==history.valid_loss.min() and r.config['learning_rate']['value']==5e-4
        assert (folder/name/'bundle'/'config.json').is_file()
        assert json.loads((folder/name/'wandb.json').read_text())['id']==name
    assert stub.runs['run2'].config['head_lr']['value']==3e-3
    assert [a['artifactTypeName'] for a in stub.artifacts].count('model')==2
    one,two = (read_run_config(folder/o) for o in ('run1', 'run2'))
    assert one['seed']!=two['seed'] and one['data']['checksum']==two['data']['checksum'], 'another seed, the same split'
    assert '2 finished' in res.stdout and 'wandb agent me/rings/swp1' in res.stderr
    assert 'epoch' not in res.stdout.split('sweep me/')[0]
    best = list_runs(folder, 'valid_loss').run[0]
    assert f'best run here: {folder/best}' in res.stdout and not (tmp_path/'wandb').exists()

@pytest.mark.slow
def test_a_training_that_the_server_ends(run_zoofast, survey, stub, tmp_path):
    "As hyperband would: the agent ends the process after an epoch, and the next one trains"
    stub.values,stub.stops = [values(1e-8, epochs=500), values(1e-3)],{'run1'}
    res = run_zoofast('sweep', write(tmp_path), '--catalog', survey[0]/'catalog.csv', '--label', 'morphology',
                      '--size', 48, '--freeze-epochs', 0, '--save-dir', tmp_path/'runs', '--trials', 2, '--wandb',
                      env=online(stub, tmp_path), cwd=tmp_path)
    assert res.returncode==0, res.stderr+res.stdout
    assert 1<=len(losses(stub.runs['run1']))<500 and len(losses(stub.runs['run2']))==5
    folder = tmp_path/'runs'/'swp1'
    assert [read_state(folder/o)['state'] for o in ('run1', 'run2')]==['interrupted', 'finished']
    assert '1 interrupted' in res.stdout

@pytest.mark.slow
def test_trainings_that_fail_are_no_success(run_zoofast, survey, stub, tmp_path):
    stub.values = [values(1e-3, layer_decay=7)]*2
    res = run_zoofast(*asked(survey, tmp_path, '--trials', 2, '--wandb'), env=online(stub, tmp_path), cwd=tmp_path)
    assert res.returncode==2 and 'layer_decay: 7' in res.stderr
    assert 'zoofast: --wandb: no training of the sweep me/rings/swp1 ended well' in res.stderr

@pytest.mark.slow
@pytest.mark.parametrize('env,says', [
    ({'WANDB_BASE_URL': 'http://127.0.0.1:9'}, '127.0.0.1:9 cannot be reached'),
    ({'WANDB_API_KEY': None}, 'there is no API key')])
def test_no_server_and_no_key_are_one_sentence(survey, tmp_path, env, says):
    "Before anything is trained or made"
    given = {**os.environ, 'PYTHONPATH': str(ROOT), **online('http://127.0.0.1:9', tmp_path), 'HOME': str(tmp_path)}
    full = {k: v for k,v in {**given, **env}.items() if v is not None}
    command = [sys.executable, '-m', 'zoofast.cli', *map(str, asked(survey, tmp_path, '--wandb'))]
    res = subprocess.run(command, env=full, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=tmp_path)
    assert res.returncode==2 and len(said(res))==1, res.stderr
    assert says in said(res)[0] and said(res)[0].startswith('zoofast: --wandb:'), res.stderr
    assert not (tmp_path/'runs').exists() and res.stderr.strip()==said(res)[0] and not res.stdout

@pytest.mark.slow
def test_a_server_that_refuses_the_sweep(run_zoofast, survey, stub, tmp_path):
    stub.refuse = 'this project is closed'
    res = run_zoofast(*asked(survey, tmp_path, '--wandb'), env=online(stub, tmp_path), cwd=tmp_path)
    assert res.returncode==2 and len(said(res))==1, res.stderr
    assert 'W&B does not take the sweep' in said(res)[0] and 'this project is closed' in said(res)[0], res.stderr

@pytest.mark.slow
@pytest.mark.parametrize('more,says', [
    (['--best'], '--best'),
    (['--storage', 'sqlite:///x.db'], '--storage'),
    (['--sampler', 'gp'], '--sampler'),
    (['--device', 'cpu'], 'CUDA_VISIBLE_DEVICES')])
def test_options_that_mean_nothing_there(run_zoofast, survey, tmp_path, more, says):
    res = run_zoofast(*asked(survey, tmp_path, '--wandb', *more), cwd=tmp_path)
    assert res.returncode==2 and len(said(res))==1 and says in said(res)[0]

@pytest.mark.slow
def test_a_search_here_never_goes_online(run_zoofast, survey, stub, tmp_path):
    "The file's command, which has --wandb online, is for W&B's agents alone"
    command = yaml.safe_load((ROOT/'settings.yaml').read_text())['command']
    assert command[command.index('--wandb')+1]=='online'
    res = run_zoofast(*asked(survey, tmp_path, '--trials', 1, command=command), env=online(stub, tmp_path),
                      cwd=tmp_path)
    assert res.returncode==0, res.stderr
    assert not stub.calls and not list((tmp_path/'runs').rglob('wandb*'))

@pytest.mark.slow
def test_settings_yaml_as_it_is(survey, stub, tmp_path):
    "`wandb sweep settings.yaml` and `wandb agent`, as W&B's own page says, beside a catalogue with a column ring"
    df = pd.read_csv(survey[0]/'catalog.csv', dtype={'id_str': str})
    df = df.assign(ring=(df.morphology==df.morphology[0]).astype(int), file_loc=[survey[0]/o for o in df.file_loc])
    df.to_csv(tmp_path/'catalog.csv', index=False)
    shutil.copy(ROOT/'settings.yaml', tmp_path)
    stub.values = [dict(model_name='tf_efficientnet_lite0', batch_size=16, learning_rate=1e-4, layer_decay=0.6)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, 'PYTHONPATH': str(ROOT), **online(stub, tmp_path), 'PATH': path}
    def wandb(*args):
        return subprocess.run([sys.executable, '-m', 'wandb', *args], env=env, cwd=tmp_path, capture_output=True,
                              text=True, stdin=subprocess.DEVNULL)
    made = wandb('sweep', 'settings.yaml')
    assert made.returncode==0 and 'me/zoofast/swp1' in made.stderr+made.stdout, made.stderr
    done = wandb('agent', '--count', '1', 'me/zoofast/swp1')
    assert done.returncode==0, done.stderr
    file = yaml.safe_load((ROOT/'settings.yaml').read_text())
    but_values = lambda d: {k: v for k,v in d.items() if k!='parameters'}
    assert but_values(stub.sweeps[0])==but_values(file)
    assert set(stub.sweeps[0]['parameters'])==set(file['parameters'])
    run = stub.runs['run1']
    assert run.sweep=='swp1' and run.exit==0 and len(losses(run))==6
    c = read_run_config(tmp_path/'runs'/'sweep'/'swp1'/'run1')
    assert (c['parameters']['layer_decay'], c['parameters']['batch_size'], c['data']['label_cols'])==(0.6, 16, ['ring'])
