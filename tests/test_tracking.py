"""The folder of a run and its history on Weights & Biases: complete, continuous over a kill, and never in the way of
training"""
import json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, preloaded, pytest, yaml, zoofast
from zoofast.all import *
from zoofast.training.runs import read_history, read_run_config, read_state
from zoofast.training.wandb import look_at_validation
from PIL import Image

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
    return pd.DataFrame({
        'id_str': [f'{o} "id", {i}' for i,o in enumerate(HOSTILE*6)],
        'file_loc': [str(folder/n) for n in names],
        'kind: a,b': HOSTILE*6})

# the run's folder

@pytest.mark.slow
def test_folder_of_a_run(dls, tmp_path):
    learn = lite0(dls, save_dir=tmp_path, clip_grad=1., patience=3, cbs=[GradientClip()])
    quiet(learn, lambda l: l.fine_tune(2, head_lr=5e-3))
    learn.save_bundle(tmp_path/'bundle')
    c = yaml.safe_load((tmp_path/'config.yaml').read_text())
    p,data = c['parameters'],c['data']
    want = dict(encoder='tf_efficientnet_lite0', learning_rate=1e-3, layer_decay=0.75, clip_grad=1., precision='fp32',
                batch_size=16, size=64, opt='adamw')
    assert {k: p[k] for k in want}==want
    assert p['pretrained'] is True and p['cbs']==['GradientClip'] and p['metrics'][0]=='accuracy'
    call = {'epochs': 2, 'base_lr': None, 'freeze_epochs': 1, 'head_lr': 5e-3, 'fit': None}
    assert c['calls']==[{'fine_tune': call}] and len(c['fits'])==2
    assert data['galaxies']=={'train': len(dls.train_ds), 'valid': len(dls.valid_ds)}
    assert set(data['classes'])==set(dls.task.classes)
    assert data['reader']['size']==64 and 'rotate=360' in data['augment'] and len(data['checksum'])==16
    assert c['versions']['torch'] and c['device']['type']==torch.device(dls.device).type
    assert c['seed']==42 and c['command'] is None
    h = pd.read_csv(tmp_path/'history.csv')
    assert h.drop(columns='seconds').to_dict('records')==learn.history and (h.seconds>0).all()
    assert json.loads((tmp_path/'state.json').read_text())['state']=='finished'
    log = (tmp_path/'log.txt').read_text()
    for text in ('fit 1: the head alone', 'fit 2: all', 'epoch 3:', 'finished: 3 epochs', 'bundle written to'):
        assert text in log, log
    row = list_runs(tmp_path.parent).set_index('run').loc[tmp_path.name]
    assert row.valid_loss==learn.best_epoch['valid_loss'] and row.kept==learn.best_epoch['epoch']+1

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('labels', ['round', ['round', 'tail'], 'size', ['size', 'mass']])
def test_each_task_says_what_it_learnt_from(survey, labels, tmp_path):
    rng,df = np.random.default_rng(0),survey[1]
    df = df.assign(round=rng.integers(0, 2, len(df)), tail=rng.integers(0, 2, len(df)),
                   size=rng.random(len(df)), mass=rng.random(len(df)))
    dls = GalaxyDataLoaders.from_catalog(df, labels, size=64, progress=False)
    quiet(lite0(dls, save_dir=tmp_path, training_mode='head_only'), lambda l: l.fine_tune(1, freeze_epochs=0))
    data = read_run_config(tmp_path)['data']
    assert data['label_cols']==dls.task.label_cols and data['galaxies']['train']==len(dls.train_ds)
    assert {'classes', 'labels', 'numbers'} & set(data)

def test_every_parameter_is_kept(dls, tmp_path):
    "A parameter of galaxy_learner that somebody adds is in config.yaml, or on this list"
    import inspect
    quiet(lite0(dls, save_dir=tmp_path), lambda l: l.fit(1))
    kept = yaml.safe_load((tmp_path/'config.yaml').read_text())['parameters']
    not_kept = set(inspect.signature(galaxy_learner).parameters)-set(kept)
    assert not_kept<={'dls', 'save_dir', 'resume', 'overwrite', 'timm_kwargs', 'wandb', 'wandb_kwargs'}

def test_before_the_first_step(dls, tmp_path):
    "What was asked for is there when training begins, and the history of another run is gone"
    quiet(lite0(dls, save_dir=tmp_path), lambda l: l.fit(1))
    seen = {}
    class Look(Callback):
        def before_batch(self):
            if not self.training or seen: return
            seen.update(config=(tmp_path/'config.yaml').read_text(), state=read_state(tmp_path)['state'],
                        history=(tmp_path/'history.csv').exists())
    quiet(lite0(dls, save_dir=tmp_path, l1=1e-6, cbs=Look(), overwrite=True), lambda l: l.fit(1))
    assert 'l1: 1.0e-06' in seen['config'] and seen['state']=='running' and not seen['history']

@pytest.mark.slow
def test_command_and_commit(survey, tmp_path):
    "In a repository with a changed file, by the command line"
    repo = tmp_path/'repo'
    repo.mkdir()
    def git(*args):
        command = ['git', '-c', 'user.name=x', '-c', 'user.email=x@y', *args]
        return subprocess.run(command, cwd=repo, check=True, capture_output=True, text=True).stdout.strip()
    git('init', '-q')
    (repo/'a.txt').write_text('1')
    git('add', '.')
    git('commit', '-qm', 'x')
    (repo/'a.txt').write_text('2')
    root = Path(zoofast.__file__).parent.parent
    command = ['-m', 'zoofast.cli', 'finetune', survey[0]/'catalog.csv', '--label', 'morphology', '--encoder',
               'tf_efficientnet_lite0', '--epochs', 1, '--freeze-epochs', 0, '--size', 64, '--save-dir', 'run 1',
               '--test', 0.2]
    res = preloaded.run(command, repo, {'PYTHONPATH': root})
    assert res.returncode==0, res.stderr
    c = read_run_config(repo/'run 1')
    assert c['git']=={'commit': git('rev-parse', 'HEAD'), 'changed': True} and Path(c['folder'])==repo
    assert c['command'].startswith('zoofast finetune ') and c['command'].endswith("--save-dir 'run 1' --test 0.2")
    want = {'bundle', 'checkpoints', 'config.yaml', 'history.csv', 'log.txt', 'state.json', 'curves.png',
            'confusion.png', 'mosaic.png'}
    assert want<={o.name for o in (repo/'run 1').iterdir()}
    assert 'test galaxies: accuracy' in (repo/'run 1'/'log.txt').read_text()

def test_hostile_names(survey, tmp_path):
    df = hostile_survey(tmp_path/"a, 'b'", survey[1])
    dls = GalaxyDataLoaders.from_catalog(df, 'kind: a,b', size=64, batch_size=16, progress=False)
    quiet(lite0(dls, save_dir=tmp_path/'- run: 1, #2'), lambda l: l.fit(1))
    c = read_run_config(tmp_path/'- run: 1, #2')
    assert set(c['data']['classes'])==set(HOSTILE) and c['data']['label_cols']==['kind: a,b']
    assert c['data']['task']['classes']==dls.task.classes
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
learn = galaxy_learner(dls, "tf_efficientnet_lite0", learning_rate=1e-3, save_dir=run, precision="fp32",
                       **({"wandb": wandb} if wandb else {}))
print("training", flush=True)
with learn.no_bar(), learn.no_logging(): learn.fine_tune(3, freeze_epochs=2, resume=resume=="resume")
learn.save_bundle(f"{run}/bundle")
'''

def start(*args):
    # No fork of a loaded process, since how it ends is the matter; and without wandb's own server of this process,
    # where an earlier test has used wandb: what is killed must take its own with it
    env = {k: v for k,v in os.environ.items() if k!='WANDB_SERVICE'}
    p = subprocess.Popen([sys.executable, '-c', SCRIPT, *map(str, args)], stdout=subprocess.PIPE, text=True, env=env)
    assert p.stdout.readline()=='training\n'
    return p

def wait_for_epochs(run, n, p):
    "Until history.csv has so many epochs, and there is a checkpoint to go on from"
    while len(read_history(run))<n or not (Path(run)/'checkpoints'/'last.pt').exists():
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

@pytest.mark.slow
def test_one_history_over_two_kills(survey, dls, tmp_path):
    assert start(survey[0], tmp_path/'whole').wait()==0
    assert killed_and_resumed(survey, tmp_path/'cut')==['running', 'killed', 'running', 'killed', 'finished']
    whole,cut = (read_history(tmp_path/o) for o in ('whole', 'cut'))
    assert cut.epoch.tolist()==[0, 1, 2, 3, 4] and (cut.seconds>0).all()
    assert cut.drop(columns='seconds').equals(whole.drop(columns='seconds'))
    c = read_run_config(tmp_path/'cut')
    assert len(c['resumed'])==2 and c['calls']==read_run_config(tmp_path/'whole')['calls']
    log = (tmp_path/'cut'/'log.txt').read_text()
    assert log.count('resumed after epoch')==2 and log.count('finished: 5 epochs')==1
    rows = compare_runs(tmp_path/'whole', tmp_path/'cut')
    losses = whole.columns.drop(['call', 'fit', 'epoch', 'trained', 'lr', 'seconds'])
    results = {f'results.{o}' for o in ('state', 'epochs', 'kept', 'seconds', *losses)}
    assert set(rows.name)==results, 'nothing but their times differs'

@pytest.mark.slow
def test_two_processes_in_one_folder(survey, dls, tmp_path):
    learn = lite0(dls, save_dir=tmp_path)            # made before, so that the other is still training when this begins
    p = start(survey[0], tmp_path, '')
    wait_for_epochs(tmp_path, 1, p)
    with pytest.raises(ValueError, match='another process trains there'): quiet(learn, lambda l: l.fit(1))
    assert p.wait()==0 and len(read_history(tmp_path))==5
    assert list(read_run_config(tmp_path)['calls'][0])==['fine_tune'] and read_run_config(tmp_path)['resumed']==[]

def test_failure_is_told(dls, tmp_path):
    class Fails(Callback):
        def after_step(self):
            if self.epoch==1: raise RuntimeError('no\nmemory')
    with pytest.raises(RuntimeError): quiet(lite0(dls, save_dir=tmp_path, cbs=Fails()), lambda l: l.fit(3))
    assert read_state(tmp_path)['state']=='failed' and 'no\nmemory' in read_state(tmp_path)['error']
    assert len(read_history(tmp_path))==1
    assert re.search('failed: RuntimeError: .*no memory\n', (tmp_path/'log.txt').read_text())

@pytest.mark.slow
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

@pytest.mark.slow
def test_a_bundle_in_the_runs_own_folder_leaves_its_history(dls, tmp_path):
    """save_bundle has a history.csv too: it is the run's, with the seconds of each epoch, also where the run was done
    before"""
    learn = quiet(lite0(dls, save_dir=tmp_path), lambda l: l.fit(2))
    before = (tmp_path/'history.csv').read_text()
    assert 'seconds' in before.splitlines()[0] and read_history(tmp_path).seconds.notna().all()
    learn.save_bundle(tmp_path)
    assert (tmp_path/'history.csv').read_text()==before
    quiet(lite0(dls, save_dir=tmp_path, resume=True), lambda l: l.fit(2)).save_bundle(tmp_path)
    assert (tmp_path/'history.csv').read_text()==before and load_bundle(tmp_path).config['metrics']

@pytest.mark.slow
def test_a_trial_that_is_behind_was_stopped_not_failed(survey, tmp_path):
    "In a small search with hyperband, the trial with hardly a learning rate is behind"
    pytest.importorskip('optuna')
    parameters = dict(
        head_lr=dict(values=[1e-2, 3e-3, 1e-8]),
        training_mode=dict(value='head_only'),
        model_name=dict(value='tf_efficientnet_lite0'))
    settings = dict(method='grid', metric=dict(name='valid_loss', goal='minimize'),
                    early_terminate=dict(type='hyperband', min_iter=1, eta=2), parameters=parameters)
    data = SweepData(survey[1], 'morphology', reader=ImageReader(48), progress=False)
    _,table = run_sweep(settings, data, tmp_path, fixed=dict(epochs=3, freeze_epochs=0))
    assert table.state.tolist()==['finished', 'finished', 'stopped'] and table.trained[2]<3
    run = tmp_path/'trials'/'0003'
    said = read_state(run)
    assert said['state']=='stopped' and 'not among the best' in said['error']
    assert f'stopped: epoch {table.trained[2]}: not among the best' in (run/'log.txt').read_text()
    states = list_runs(tmp_path/'trials').set_index('run').state.to_dict()
    assert states=={'0001': 'finished', '0002': 'finished', '0003': 'stopped'}

def test_runs_without_torch(tmp_path):
    heavy = "{'torch', 'fastai', 'timm', 'matplotlib'}"
    code = f"import sys; import zoofast.training.runs; print(*sorted({heavy} & set(sys.modules)))"
    root = Path(zoofast.__file__).parent.parent
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=root)
    assert not res.stdout.strip()

@pytest.mark.slow
def test_processes_write_one_folder(survey, tmp_path, run_zoofast):
    "Two processes train together; the first writes"
    pytest.importorskip('accelerate')
    res = run_zoofast('finetune', survey[0]/'catalog.csv', '--label', 'morphology',
                      '--encoder', 'tf_efficientnet_lite0', '--epochs', 1, '--size', 64,
                      '--save-dir', tmp_path, '--processes', 2)
    assert res.returncode==0, res.stderr
    assert read_run_config(tmp_path)['device']['processes']==2
    assert (tmp_path/'log.txt').read_text().count('fit 1:')==1 and read_state(tmp_path)['state']=='finished'
    assert len(read_history(tmp_path))==2

# Weights & Biases

def blocks(path):
    """The records of a W&B file: a log of blocks of 32 kB, each record in parts with a checksum, a length and a kind
    (whole, first, middle, last)"""
    data,at,part = Path(path).read_bytes(),7,b''
    assert data[:4]==b':W&B'
    while at+7<=len(data):
        if 32768-at%32768<7: at += 32768-at%32768; continue
        n,kind = int.from_bytes(data[at+4:at+6], 'little'),data[at+6]
        if kind==0: break
        part = (part if kind in (3, 4) else b'')+data[at+7:at+7+n]
        at += 7+n
        if kind in (1, 4): yield part

def records(path):
    "The same, read by wandb's own protocol buffers"
    from wandb.proto import wandb_internal_pb2 as pb
    for b in blocks(path):
        r = pb.Record()
        r.ParseFromString(b)
        yield r

def add_record(story, r):
    "What a record says, to the rest of its run"
    value = lambda items: {o.key or '/'.join(o.nested_key): json.loads(o.value_json) for o in items}
    story['kinds'].add(r.WhichOneof('record_type'))
    if r.HasField('run'):
        story['ids'].append(r.run.run_id)
        story['config'] |= value(r.run.config.update)
    elif r.HasField('config'): story['config'] |= value(r.config.update)
    elif r.HasField('history'): story['rows'].append(value(r.history.item))
    elif r.HasField('summary'): story['summary'] |= value(r.summary.update)
    elif r.HasField('artifact'): story['artifacts'].append(r.artifact)
    elif r.HasField('metric'): story['metrics'].append(r.metric)
    elif r.HasField('exit'): story['exit'].append(r.exit.exit_code)

def wandb_story(folder):
    """What an offline W&B run says: configuration, rows of history, summary, artifacts, metrics; files of one run in
    order of time"""
    story = dict(config={}, rows=[], summary={}, artifacts=[], ids=[], metrics=[], exit=[], kinds=set())
    files,until = sorted(Path(folder).glob('wandb/offline-run-*/run-*.wandb')),time.time()+60
    def ended(f): return any(r.HasField('exit') for r in records(f))
    while not ended(files[-1]) and time.time()<until: time.sleep(0.2)    # wandb's own process may write the end later
    for f in files:
        for r in records(f): add_record(story, r)
    return story

@pytest.fixture(autouse=True)
def wandb_here(tmp_path, monkeypatch):
    "Nothing of W&B outside the test's folder, and no key"
    for k in ('WANDB_API_KEY', 'WANDB_MODE', 'WANDB_PROJECT'): monkeypatch.delenv(k, raising=False)
    for k in ('WANDB_DATA_DIR', 'WANDB_CACHE_DIR', 'WANDB_CONFIG_DIR', 'WANDB_ARTIFACT_DIR'):
        monkeypatch.setenv(k, str(tmp_path/'wandb-home'))
    monkeypatch.setenv('NETRC', str(tmp_path/'netrc'))

def epochs_of(story): return [r for r in story['rows'] if 'valid_loss' in r]
def steps_of(story): return [r for r in story['rows'] if 'step/number' in r]

@pytest.mark.slow
def test_fastais_callback_and_ours(dls, tmp_path):
    """fastai's fails before the first step; ours tells the whole run, with few numbers a step for an encoder of 17
    groups"""
    wandb = pytest.importorskip('wandb')
    from fastai.callback.wandb import WandbCallback
    def learner(**kw): return lite0(dls, blocks='fine', **kw)
    assert len(learner().opt.hypers)==17+1
    theirs = wandb.init(mode='offline', dir=tmp_path/'theirs', settings=wandb.Settings(silent=True, console='off'))
    try:
        with pytest.raises(TypeError): quiet(learner(), lambda l: l.fit(1, cbs=WandbCallback(log_preds=False)))
    finally: theirs.finish()
    learn = learner(save_dir=tmp_path/'rings', wandb='offline', wandb_kwargs={'project': 'galaxies', 'tags': ['a']})
    assert learn.wandb_log.wandb_run is None, 'a learner that has not trained logs nothing'
    quiet(learn, lambda l: l.fine_tune(2, head_lr=5e-3))
    learn.save_bundle(tmp_path/'rings'/'bundle')
    learn.wandb_log.finish()
    s = wandb_story(tmp_path/'rings')
    config = s['config']
    assert config['encoder']=='tf_efficientnet_lite0' and config['learning_rate']==1e-3
    assert config['data']['galaxies']['train']==len(dls.train_ds) and config['versions']['torch']
    assert len(s['config']['calls'])==1 and len(s['config']['fits'])==2 and len(set(s['ids']))==1
    logged = epochs_of(s)
    assert [{k: r[k] for k in h} for r,h in zip(logged, learn.history)]==learn.history and len(logged)==3
    steps = steps_of(s)
    assert steps and max(map(len, steps))<=12
    assert {'step/loss', 'step/lr_head', 'step/lr_top', 'step/lr_lowest'}<=set(steps[0])
    assert steps[0]['step/lr_top']==0 and steps[0]['step/lr_head']>0, 'the head alone was trained first'
    last = [r for r in s['rows'] if 'validation/galaxies/nrows' in r]
    assert len(last)==1 and last[0]['validation/galaxies/nrows']==len(dls.valid_ds)
    assert last[0]['validation/confusion_table/nrows']==25
    files = next((tmp_path/'rings'/'wandb').glob('offline-run-*'))/'files'
    table = json.loads((files/last[0]['validation/galaxies/path']).read_text())
    assert table['columns']==['galaxy', 'id_str', 'morphology_true', 'morphology_pred', 'confidence']
    valid = dls.catalog[dls.catalog.split=='valid'].set_index('id_str').morphology
    assert {r[1]: r[2] for r in table['data']}==valid.to_dict() and all(0<=r[4]<=1 for r in table['data'])
    contents = [c for a in s['artifacts'] if 'galaxies' in a.name for c in a.manifest.contents]
    pictures = {c.path: Path(c.local_path) for c in contents if c.path.endswith('.png')}
    assert len(pictures)==len(dls.valid_ds) and all(Image.open(o).size==(64, 64) for o in pictures.values())
    assert s['summary']['valid_loss']==learn.best_epoch['valid_loss']
    assert s['summary']['kept_epoch']==learn.best_epoch['epoch']
    bundle, = [a for a in s['artifacts'] if a.type=='model']
    assert {'config.json', 'model.safetensors', 'README.md', 'history.csv'}=={e.path for e in bundle.manifest.contents}
    assert json.loads(bundle.metadata)['metrics']['accuracy']==learn.best_epoch['accuracy']
    assert s['exit']==[0]

@pytest.mark.slow
def test_one_wandb_run_over_two_kills(survey, tmp_path):
    pytest.importorskip('wandb')
    killed_and_resumed(survey, tmp_path, 'offline')
    s = wandb_story(tmp_path)
    assert len(set(s['ids']))==1 and s['ids'][0]==json.loads((tmp_path/'wandb.json').read_text())['id']
    assert len(list((tmp_path/'wandb').glob('offline-run-*')))==3
    h = read_history(tmp_path)
    logged = pd.DataFrame(epochs_of(s))
    # what a part is killed with may be lost, so each has all epochs so far
    logged = logged.drop(columns=['_timestamp', '_step', '_runtime']).drop_duplicates()
    assert logged.epoch.tolist()==[0, 1, 2, 3, 4]
    assert np.array_equal(logged.valid_loss, h.valid_loss) and np.array_equal(logged.train_loss, h.train_loss)
    at = [r['_step'] for r in s['rows']]
    assert at==sorted(set(at)), 'steps go on, and none is there twice'
    n = [r['step/number'] for r in steps_of(s)]
    assert n==sorted(set(n))

@pytest.mark.slow
def test_a_run_of_ones_own_stays_open(dls, tmp_path):
    wandb = pytest.importorskip('wandb')
    mine = wandb.init(mode='offline', dir=tmp_path, project='mine', settings=wandb.Settings(silent=True, console='off'))
    try:
        learn = quiet(lite0(dls, wandb=mine), lambda l: l.fine_tune(1))
        learn.wandb_log.finish()
        mine.log({'after': 1})
        learn.save_bundle(tmp_path/'bundle')
    finally: mine.finish()
    s = wandb_story(tmp_path)
    assert len(epochs_of(s))==2 and any('after' in r for r in s['rows'])
    assert [a.type for a in s['artifacts']].count('model')==1 and s['config']['encoder']=='tf_efficientnet_lite0'

def fails(wandb, code='', env=None, tmp_path=None, survey=None):
    "A run in a process of its own: what it warned of, and its folder"
    run = tmp_path/'run'
    quietly,aloud = 'warnings.filterwarnings("ignore")','warnings.filterwarnings("ignore", category=FutureWarning)'
    long,short = 'learn.fine_tune(3, freeze_epochs=2, resume=resume=="resume")','learn.fine_tune(1)'
    script = code+SCRIPT.replace(quietly, aloud).replace(long, short)
    env = {'PYTHONPATH': Path(zoofast.__file__).parent.parent, **(env or {})}
    res = preloaded.run(['-c', script, survey[0], run, '', wandb], env=env)
    assert res.returncode==0, res.stderr
    assert len(read_history(run))==2 and (run/'bundle'/'config.json').exists() and read_state(run)['state']=='finished'
    said = [l for l in res.stderr.splitlines() if 'wandb=' in l and 'Warning' in l]
    assert len(said)==1 and 'wandb:' not in res.stderr+res.stdout, res.stderr
    assert said[0].split('Warning: ')[1] in (run/'log.txt').read_text()
    return said[0],run

@pytest.mark.slow
def test_wandb_not_installed(survey, tmp_path):
    said,_ = fails('online', 'import sys\nsys.modules["wandb"] = None\n', tmp_path=tmp_path, survey=survey)
    assert "the package wandb is not installed (pip install 'zoofast[track]'); training goes on without it" in said

@pytest.mark.slow
def test_no_key(survey, tmp_path):
    pytest.importorskip('wandb')
    env = {'WANDB_BASE_URL': 'http://127.0.0.1:9', 'HOME': str(tmp_path)}
    said,run = fails('online', env=env, tmp_path=tmp_path, survey=survey)
    assert 'there is no API key' in said and str(run) in said
    assert len(epochs_of(wandb_story(run)))==2, 'what was meant for W&B is kept for wandb sync'

@pytest.mark.slow
def test_no_network(survey, tmp_path):
    pytest.importorskip('wandb')
    env = {'WANDB_BASE_URL': 'http://127.0.0.1:9', 'WANDB_API_KEY': '0'*40, 'HOME': str(tmp_path)}
    said,run = fails('online', env=env, tmp_path=tmp_path, survey=survey)
    assert '127.0.0.1:9 cannot be reached' in said and len(epochs_of(wandb_story(run)))==2

@pytest.mark.slow
def test_whatever_wandb_does_training_goes_on(dls, tmp_path):
    "W&B breaks on the way: the process that writes is gone, the disk is full, ..."
    class Broken:
        id,config,summary,calls = 'x',{},{},0
        def define_metric(self, *a, **k): pass
        def log(self, values):
            self.calls += 1
            if self.calls==2: raise BrokenPipeError('the service is gone')
    with pytest.warns(UserWarning, match='the service is gone; training goes on without it'):
        learn = quiet(lite0(dls, wandb=Broken(), save_dir=tmp_path), lambda l: l.fine_tune(1))
    assert len(learn.history)==2

@pytest.mark.slow
def test_same_weights_with_and_without(dls, tmp_path):
    pytest.importorskip('wandb')
    a,b = (quiet(lite0(dls, save_dir=tmp_path/str(w), wandb=w), lambda l: l.fine_tune(1)) for w in (None, 'offline'))
    assert a.history==b.history and all(torch.equal(v, b.net.state_dict()[k]) for k,v in a.net.state_dict().items())

@pytest.mark.slow
def test_prediction_never_logs(dls, survey, tmp_path, monkeypatch):
    "A bundle of a run on W&B predicts, and becomes a learner, without W&B"
    pytest.importorskip('wandb')
    learn = quiet(lite0(dls, save_dir=tmp_path/'run', wandb='offline'), lambda l: l.fine_tune(1))
    learn.save_bundle(tmp_path/'run'/'bundle')
    learn.wandb_log.finish()
    monkeypatch.setitem(sys.modules, 'wandb', None)
    model = load_bundle(tmp_path/'run')
    assert len(model.predict(survey[1].file_loc[:3]))==3
    quiet(model.to_learner(dls, save_dir=tmp_path/'again'), lambda l: l.fit(1))
    assert not (tmp_path/'again'/'wandb').exists()

@pytest.mark.parametrize('kind', ['numbers', 'labels', 'votes', 'grey'])
def test_table_of_each_task(survey, kind):
    "Truth and prediction, whatever is predicted; never more columns than the limits"
    df = survey[1]
    rng = np.random.default_rng(0)
    if kind=='numbers':
        task = Regression([f'n{i}' for i in range(12)])
        df = df.assign(**{f'n{i}': rng.normal(size=len(df)) for i in range(12)})
        df.loc[3, 'n1'] = np.nan
    elif kind=='labels':
        task = MultiLabel(['ring', 'bar'])
        df = df.assign(ring=rng.integers(0, 2, len(df)), bar=rng.choice(['yes', 'no'], len(df)))
    elif kind=='votes':
        task = VoteCounts('decals_dr5_ortho')
        df = df.assign(**{c: rng.integers(0, 9, len(df)) for c in task.schema.columns})
    else: task = Classification('morphology')
    reader = ImageReader(64, channels=1) if kind=='grey' else ImageReader(64)
    d = GalaxyDataLoaders.from_catalog(df, task=task, reader=reader, batch_size=16, progress=False)
    pictures,table,preds,rows = look_at_validation(galaxy_learner(d, 'tf_efficientnet_lite0'), 5)
    assert len(pictures)==5 and all(len(v)==5 for v in table.values()) and len(table)<=31
    known = {'numbers': 'n0_pred', 'labels': 'bar_prob', 'votes': 'smooth-or-featured_true', 'grey': 'confidence'}[kind]
    assert any(known.split('-')[0] in k for k in table) and pictures[0].dtype==np.uint8
    if kind=='grey': assert pictures[0].ndim==2
    if kind=='numbers': assert all(isinstance(v, float) or v is None for v in table['n1_true'])

def test_hostile_names_on_wandb(survey, tmp_path):
    pytest.importorskip('wandb')
    df = hostile_survey(tmp_path/'s', survey[1])
    d = GalaxyDataLoaders.from_catalog(df, 'kind: a,b', size=64, batch_size=16, progress=False)
    learn = quiet(lite0(d, save_dir=tmp_path/'- run: 1, #2', wandb='offline'), lambda l: l.fit(1))
    learn.wandb_log.finish()
    s = wandb_story(tmp_path/'- run: 1, #2')
    assert set(s['config']['data']['classes'])==set(HOSTILE)
    assert len([r for r in s['rows'] if 'validation/galaxies/nrows' in r])==1

@pytest.mark.slow
def test_one_online_run_over_two_kills(survey, tmp_path, monkeypatch):
    "Online, against a stand-in of W&B's server: killed and resumed, it is one run with one history"
    pytest.importorskip('wandb')
    from stub_wandb import StubWandb
    stub = StubWandb()
    for k,v in dict(WANDB_BASE_URL=stub.url, WANDB_API_KEY='0'*40).items(): monkeypatch.setenv(k, v)
    try: killed_and_resumed(survey, tmp_path, 'online')
    finally: stub.close()
    (name,run), = stub.runs.items()
    assert name==json.loads((tmp_path/'wandb.json').read_text())['id'] and run.starts==3 and run.exit==0
    h,logged = read_history(tmp_path),pd.DataFrame([r for r in run.rows if 'valid_loss' in r])
    once = logged.drop_duplicates('epoch')
    assert once.epoch.tolist()==[0, 1, 2, 3, 4] and np.array_equal(once.valid_loss, h.valid_loss)
    at = [r['_step'] for r in run.rows]
    assert at==sorted(set(at)), 'steps go on, and none is there twice'
    assert any(a['artifactTypeName']=='model' and a['runName']==name for a in stub.artifacts)

