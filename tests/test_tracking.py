"The folder of a run and its history on Weights & Biases: complete, continuous over a kill, and never in the way of training"
import json, os, re, shutil, signal, subprocess, sys, threading, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, yaml, zoofast
from zoofast.all import *

def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): f(learn)
    return learn

def lite0(dls, **kw): return galaxy_learner(dls, 'tf_efficientnet_lite0', learning_rate=1e-3, precision='fp32', **kw)

@pytest.fixture(scope='module')
def dls(survey): return GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, batch_size=16, progress=False)

# Names that mean something in YAML, CSV, Markdown or on a command line
HOSTILE = ['no', '1e-5', 'a: b #c', '- x', 'p,"q"\n;r', "it's {{x}} [é] 星", '~']

def hostile_survey(folder, df):
    "Galaxies whose classes, files and identifiers have hostile names"
    folder.mkdir()
    names = [f"{i} a, 'b': #{i}\n%s {{x}}.jpg" for i in range(42)]
    for n,f in zip(names, df.file_loc): shutil.copy(f, folder/n)
    return pd.DataFrame({'id_str': [f'{o} "id", {i}' for i,o in enumerate(HOSTILE*6)], 'file_loc': [str(folder/n) for n in names], 'kind: a,b': HOSTILE*6})

# the run's folder

def test_folder_of_a_run(dls, tmp_path):
    learn = quiet(lite0(dls, save_dir=tmp_path, clip_grad=1., patience=3, cbs=[GradientClip()]), lambda l: l.fine_tune(2, head_lr=5e-3))
    learn.save_bundle(tmp_path/'bundle')
    c = yaml.safe_load((tmp_path/'config.yaml').read_text())
    p,data = c['parameters'],c['data']
    assert (p['encoder'], p['learning_rate'], p['layer_decay'], p['clip_grad'], p['precision'], p['batch_size'], p['size'], p['opt']) == ('tf_efficientnet_lite0', 1e-3, 0.75, 1., 'fp32', 16, 64, 'adamw')
    assert p['pretrained'] is True and p['cbs']==['GradientClip'] and p['metrics'][0]=='accuracy'
    assert c['calls']==[{'fine_tune': {'epochs': 2, 'base_lr': None, 'freeze_epochs': 1, 'head_lr': 5e-3, 'fit': None}}] and len(c['fits'])==2
    assert data['galaxies']=={'train': len(dls.train_ds), 'valid': len(dls.valid_ds)} and set(data['classes'])==set(dls.task.classes)
    assert data['reader']['size']==64 and 'rotate=360' in data['augment'] and len(data['checksum'])==16
    assert c['versions']['torch'] and c['device']['type']==torch.device(dls.device).type and c['seed']==42 and c['command'] is None
    h = pd.read_csv(tmp_path/'history.csv')
    assert h.drop(columns='seconds').to_dict('records')==learn.history and (h.seconds>0).all()
    assert json.loads((tmp_path/'state.json').read_text())['state']=='finished'
    log = (tmp_path/'log.txt').read_text()
    for text in ('fit 1: the head alone', 'fit 2: all', 'epoch 3:', 'finished: 3 epochs', 'bundle written to'): assert text in log, log
    assert (row := list_runs(tmp_path.parent).set_index('run').loc[tmp_path.name]).valid_loss==learn.best_epoch['valid_loss'] and row.kept==learn.best_epoch['epoch']+1

@pytest.mark.parametrize('labels', ['round', ['round', 'tail'], 'size', ['size', 'mass']])
def test_each_task_says_what_it_learnt_from(survey, labels, tmp_path):
    rng,df = np.random.default_rng(0),survey[1]
    df = df.assign(round=rng.integers(0, 2, len(df)), tail=rng.integers(0, 2, len(df)), size=rng.random(len(df)), mass=rng.random(len(df)))
    dls = GalaxyDataLoaders.from_catalog(df, labels, size=64, progress=False)
    quiet(lite0(dls, save_dir=tmp_path, training_mode='head_only'), lambda l: l.fine_tune(1, freeze_epochs=0))
    data = read_run_config(tmp_path)['data']
    assert data['label_cols']==dls.task.label_cols and data['galaxies']['train']==len(dls.train_ds) and ({'classes', 'labels', 'numbers'} & set(data))

def test_every_parameter_is_kept(dls, tmp_path):
    "A parameter of galaxy_learner that somebody adds is in config.yaml, or on this list"
    import inspect
    learn = quiet(lite0(dls, save_dir=tmp_path), lambda l: l.fit(1))
    kept = yaml.safe_load((tmp_path/'config.yaml').read_text())['parameters']
    assert set(inspect.signature(galaxy_learner).parameters)-set(kept)<={'dls', 'save_dir', 'resume', 'timm_kwargs', 'wandb', 'wandb_kwargs'}

def test_before_the_first_step(dls, tmp_path):
    "What was asked for is there when training begins, and the history of another run is gone"
    quiet(lite0(dls, save_dir=tmp_path), lambda l: l.fit(1))
    seen = {}
    class Look(Callback):
        def before_batch(self):
            if self.training and not seen: seen.update(config=(tmp_path/'config.yaml').read_text(), state=read_state(tmp_path)['state'], history=(tmp_path/'history.csv').exists())
    quiet(lite0(dls, save_dir=tmp_path, l1=1e-6, cbs=Look()), lambda l: l.fit(1))
    assert 'l1: 1.0e-06' in seen['config'] and seen['state']=='running' and not seen['history']

def test_command_and_commit(survey, tmp_path):
    "In a repository with a changed file, by the command line"
    repo = tmp_path/'repo'
    repo.mkdir()
    git = lambda *a: subprocess.run(['git', '-c', 'user.name=x', '-c', 'user.email=x@y', *a], cwd=repo, check=True, capture_output=True, text=True).stdout.strip()
    git('init', '-q')
    (repo/'a.txt').write_text('1')
    git('add', '.')
    git('commit', '-qm', 'x')
    (repo/'a.txt').write_text('2')
    root = Path(zoofast.__file__).parent.parent
    res = subprocess.run([sys.executable, '-m', 'zoofast.cli', 'finetune', str(survey[0]/'catalog.csv'), '--label', 'morphology', '--encoder', 'tf_efficientnet_lite0', '--epochs', '1', '--freeze-epochs', '0', '--size', '64', '--save-dir', 'run 1', '--test', '0.2'],
                         cwd=repo, env={**os.environ, 'PYTHONPATH': str(root)}, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    c = read_run_config(repo/'run 1')
    assert c['git']=={'commit': git('rev-parse', 'HEAD'), 'changed': True} and Path(c['folder'])==repo
    assert c['command'].startswith('zoofast finetune ') and c['command'].endswith("--save-dir 'run 1' --test 0.2")
    assert {'bundle', 'checkpoints', 'config.yaml', 'history.csv', 'log.txt', 'state.json', 'curves.png', 'confusion.png', 'mosaic.png'}<={o.name for o in (repo/'run 1').iterdir()}
    assert 'test galaxies: accuracy' in (repo/'run 1'/'log.txt').read_text()

def test_hostile_names(survey, tmp_path):
    df = hostile_survey(tmp_path/"a, 'b'", survey[1])
    dls = GalaxyDataLoaders.from_catalog(df, 'kind: a,b', size=64, batch_size=16, progress=False)
    learn = quiet(lite0(dls, save_dir=tmp_path/'- run: 1, #2'), lambda l: l.fit(1))
    c = read_run_config(tmp_path/'- run: 1, #2')
    assert set(c['data']['classes'])==set(HOSTILE) and c['data']['label_cols']==['kind: a,b'] and c['data']['task']['classes']==dls.task.classes
    assert list_runs(tmp_path).run.tolist()==['- run: 1, #2']
    text = (tmp_path/'- run: 1, #2'/'log.txt').read_text()
    assert all(l[:2]=='20' for l in text.splitlines()), 'one event, one line'

SCRIPT = '''
import sys, warnings
warnings.filterwarnings("ignore")
from zoofast.all import *
torch.set_num_threads(1)
folder,run,resume,wandb = (*sys.argv[1:], *["", None][len(sys.argv)-3:])
dls = GalaxyDataLoaders.from_catalog(f"{folder}/catalog.csv", "morphology", size=64, batch_size=8, progress=False)
learn = galaxy_learner(dls, "tf_efficientnet_lite0", learning_rate=1e-3, save_dir=run, precision="fp32", **({"wandb": wandb} if wandb else {}))
print("training", flush=True)
with learn.no_bar(), learn.no_logging(): learn.fine_tune(3, freeze_epochs=2, resume=resume=="resume")
learn.save_bundle(f"{run}/bundle")
'''

def start(*args):
    p = subprocess.Popen([sys.executable, '-c', SCRIPT, *map(str, args)], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='training\n'
    return p

def wait_for_epochs(run, n, p):
    "Until history.csv has so many epochs"
    while len(read_history(run))<n:
        assert p.poll() is None, 'it ended before it could be killed'
        time.sleep(0.02)

def killed_and_resumed(survey, run, *more):
    "Killed with -9 in the first stage and in the second, resumed each time; what `list_runs` said on the way"
    said = []
    for resume,n in (('', 1), ('resume', 3)):
        p = start(survey[0], run, resume, *more)
        wait_for_epochs(run, n, p)
        said.append(read_state(run)['state'])
        p.send_signal(signal.SIGKILL)
        p.wait()
        said.append(read_state(run)['state'])
    assert start(survey[0], run, 'resume', *more).wait()==0
    return [*said, read_state(run)['state']]

def test_one_history_over_two_kills(survey, dls, tmp_path):
    assert start(survey[0], tmp_path/'whole').wait()==0
    assert killed_and_resumed(survey, tmp_path/'cut')==['running', 'killed', 'running', 'killed', 'finished']
    whole,cut = (read_history(tmp_path/o) for o in ('whole', 'cut'))
    assert cut.epoch.tolist()==[0, 1, 2, 3, 4] and cut.drop(columns='seconds').equals(whole.drop(columns='seconds')) and (cut.seconds>0).all()
    c = read_run_config(tmp_path/'cut')
    assert len(c['resumed'])==2 and c['calls']==read_run_config(tmp_path/'whole')['calls']
    log = (tmp_path/'cut'/'log.txt').read_text()
    assert log.count('resumed after epoch')==2 and log.count('finished: 5 epochs')==1
    rows = compare_runs(tmp_path/'whole', tmp_path/'cut')
    assert set(rows.name)=={f'results.{o}' for o in ('state', 'epochs', 'kept', 'seconds', *whole.columns.drop(['fit', 'epoch', 'trained', 'lr', 'seconds']))}, 'nothing but their times differs'

def test_two_processes_in_one_folder(survey, dls, tmp_path):
    p = start(survey[0], tmp_path, '')
    wait_for_epochs(tmp_path, 1, p)
    with pytest.raises(ValueError, match='another process trains there'): quiet(lite0(dls, save_dir=tmp_path), lambda l: l.fit(1))
    assert p.wait()==0 and len(read_history(tmp_path))==5
    assert list(read_run_config(tmp_path)['calls'][0])==['fine_tune'] and read_run_config(tmp_path)['resumed']==[]

def test_failure_is_told(dls, tmp_path):
    class Fails(Callback):
        def after_step(self):
            if self.epoch==1: raise RuntimeError('no\nmemory')
    with pytest.raises(RuntimeError): quiet(lite0(dls, save_dir=tmp_path, cbs=Fails()), lambda l: l.fit(3))
    assert read_state(tmp_path)['state']=='failed' and 'no\nmemory' in read_state(tmp_path)['error']
    assert len(read_history(tmp_path))==1 and re.search('failed: RuntimeError: .*no memory\n', (tmp_path/'log.txt').read_text())

def test_patience_and_lr_find(dls, tmp_path):
    learn = lite0(dls, save_dir=tmp_path, patience=1)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=4, show_plot=False)
    assert not (tmp_path/'config.yaml').exists()
    quiet(learn, lambda l: (l.fit(1), l.fit(20, lr=0.05)))
    assert 'ended early' in (tmp_path/'log.txt').read_text() and len(read_history(tmp_path))==len(learn.history)<21
    assert [list(o) for o in read_run_config(tmp_path)['calls']]==[['fit'], ['fit']]

def test_resume_of_a_finished_run_changes_nothing(dls, tmp_path):
    quiet(lite0(dls, save_dir=tmp_path), lambda l: l.fit(1))
    before = {f: (tmp_path/f).read_text() for f in ('config.yaml', 'history.csv', 'log.txt', 'state.json')}
    quiet(lite0(dls, save_dir=tmp_path, resume=True), lambda l: l.fit(1))
    assert before=={f: (tmp_path/f).read_text() for f in before}

def test_runs_without_torch(tmp_path):
    code = "import sys; import zoofast.runs; print(*sorted({'torch', 'fastai', 'timm', 'matplotlib'} & set(sys.modules)))"
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=Path(zoofast.__file__).parent.parent)
    assert not res.stdout.strip()

def test_processes_write_one_folder(survey, tmp_path, run_zoofast):
    "Two processes train together; the first writes"
    pytest.importorskip('accelerate')
    res = run_zoofast('finetune', survey[0]/'catalog.csv', '--label', 'morphology', '--encoder', 'tf_efficientnet_lite0', '--epochs', 1, '--size', 64, '--save-dir', tmp_path, '--processes', 2)
    assert res.returncode==0, res.stderr
    assert read_run_config(tmp_path)['device']['processes']==2 and (tmp_path/'log.txt').read_text().count('fit 1:')==1 and read_state(tmp_path)['state']=='finished'
    assert len(read_history(tmp_path))==2
