"A folder that holds a run is left alone, and a run that is broken off says what is kept and how to go on"
import hashlib, os, shlex, shutil, signal, subprocess, sys, time
import pandas as pd, pytest
from fastai.callback.core import Callback
from test_fastai import data, learner, silent
from zoofast.all import load_bundle, predict_catalog

def digests(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob('*'))
            if p.is_file() and p.name!='.running'}

COMMAND = ['--label', 'morphology', '--encoder', 'test_convnext', '--random-weights', '--size', 32, '--batch-size', 16]

@pytest.fixture(scope='module')
def finished(survey, run_zoofast, tmp_path_factory):
    "A finished run, its folder, and the words of its command"
    run = tmp_path_factory.mktemp('runs')/'my run'
    words = ['finetune', survey[0]/'catalog.csv', *COMMAND, '--epochs', 1, '--save-dir', run]
    res = run_zoofast(*words)
    assert res.returncode==0, res.stderr
    return run,words

@pytest.mark.slow
def test_the_same_command_given_twice_changes_nothing(finished, run_zoofast):
    run,words = finished
    before = digests(run)
    res = run_zoofast(*words)
    assert res.returncode==2 and digests(run)==before and 'Traceback' not in res.stderr
    said = res.stderr.strip().splitlines()[-1]
    for o in ('finished on', 'valid loss', '--overwrite', '--resume', '--save-dir'): assert o in said
    assert 'loading' not in res.stderr                     # it is said before anything is loaded

@pytest.mark.slow
def test_resume_of_a_finished_run_keeps_it(finished, run_zoofast):
    run,words = finished
    before = (run/'bundle'/'model.safetensors').read_bytes()
    assert run_zoofast(*words, '--resume').returncode==0
    assert (run/'bundle'/'model.safetensors').read_bytes()==before

@pytest.mark.slow
def test_overwrite_leaves_nothing_of_the_other_run(survey, run_zoofast, tmp_path, monkeypatch):
    monkeypatch.delenv('WANDB_SERVICE', raising=False)           # of a test that ran W&B in this process
    run,offline = tmp_path/'run',{'WANDB_MODE': 'offline', 'WANDB_SILENT': 'true'}
    words = ['finetune', survey[0]/'catalog.csv', *COMMAND, '--epochs', 1, '--save-dir', run]
    res = run_zoofast(*words, '--calibrate', '--wandb', 'offline', env=offline)
    assert res.returncode==0, res.stderr
    (run/'my notes.txt').write_text('mine')
    for o in run.iterdir():                                      # W&B's own files and links come and go
        for f in () if o.name=='wandb' else (o, *o.rglob('*')): os.utime(f, (10**9, 10**9))
    assert (run/'report.html').is_file() and (run/'wandb.json').is_file()
    res = run_zoofast(*words, '--no-report', '--seed', 7, '--overwrite')
    assert res.returncode==0, res.stderr
    files = [f for o in run.iterdir() if o.name!='wandb' for f in (o, *o.rglob('*')) if f.is_file()]
    old = {str(o.relative_to(run)) for o in files if o.stat().st_mtime==10**9}
    assert old-{'.running'}=={'my notes.txt'}
    assert (run/'my notes.txt').read_text()=='mine'
    assert (run/'log.txt').read_text().count('finished: ')==1

def test_in_python(survey, tmp_path):
    dls = data(survey[1], 'classification')
    first = learner(dls, save_dir=tmp_path/'run')
    with silent(first): first.fit(1)
    with silent(first): first.fit(1)                       # the learner's own run goes on
    before = digests(tmp_path/'run')
    second = learner(dls, save_dir=tmp_path/'run')
    with silent(second), pytest.raises(ValueError, match='overwrite=True.*resume=True.*another save_dir'): second.fit(1)
    assert digests(tmp_path/'run')==before
    third = learner(dls, save_dir=tmp_path/'run', overwrite=True)
    with silent(third): third.fit(1)
    assert len((tmp_path/'run'/'history.csv').read_text().splitlines())==2

@pytest.mark.slow
@pytest.mark.parametrize('by', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_a_signal_ends_with_what_is_kept_and_the_command_that_goes_on(by, survey, tmp_path, root, run_zoofast):
    run = tmp_path/'my run'
    words = ['finetune', survey[0]/'catalog.csv', *COMMAND, '--epochs', 400, '--save-dir', run]
    env = {**os.environ, 'PYTHONPATH': str(root)}
    def heard(): signal.signal(getattr(signal, by), signal.SIG_DFL)      # a job in the background ignores some
    p = subprocess.Popen([sys.executable, '-m', 'zoofast.cli', *map(str, words)], env=env, text=True,
                         stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=heard)
    end = time.time()+240
    while time.time()<end and p.poll() is None and not (run/'history.csv').is_file(): time.sleep(.2)
    time.sleep(1)
    p.send_signal(getattr(signal, by))
    _,said = p.communicate(timeout=120)
    assert p.returncode==128+getattr(signal, by) and 'Traceback' not in said, said
    assert 'are kept in' in said and '--resume' in said
    bundle = next(l for l in said.splitlines() if 'zoofast bundle' in l).partition(':')[2].strip()
    if by!='SIGTERM': return
    res = run_zoofast(*shlex.split(bundle)[1:])               # as it is printed
    assert res.returncode==0, res.stderr
    assert len(predict_catalog(run, survey[1], progress=False))==len(survey[1])
    assert load_bundle(run).config['metrics']['valid_loss']>0

def test_a_run_that_was_killed_within_its_first_epoch_is_begun_anew_by_resume(survey, tmp_path):
    "After its row of history was written, before its checkpoint: there is nothing to go on from, and nothing to lose"
    dls = data(survey[1], 'classification')
    whole = learner(dls, save_dir=tmp_path/'whole')
    with silent(whole): whole.fit(2)
    with pytest.raises(KeyboardInterrupt):
        first = learner(dls, save_dir=tmp_path/'run', cbs=Stop())
        with silent(first): first.fit(2)
    assert (tmp_path/'run'/'history.csv').is_file() and not (tmp_path/'run'/'checkpoints'/'last.pt').exists()
    other = learner(dls, save_dir=tmp_path/'run')
    with pytest.raises(ValueError, match='resume=True goes on with it'), silent(other): other.fit(2)
    again = learner(dls, save_dir=tmp_path/'run', resume=True)
    with silent(again): again.fit(2)
    kept = ['train_loss', 'valid_loss', 'accuracy']
    histories = [pd.read_csv(tmp_path/o/'history.csv')[kept] for o in ('whole', 'run')]
    assert histories[0].equals(histories[1]) and len(histories[0])==2

class Stop(Callback):
    "Ends a training between its history and its checkpoint"
    order = 60.5
    def after_epoch(self): raise KeyboardInterrupt

def test_a_finished_run_without_checkpoints_is_no_such_run(survey, tmp_path):
    dls = data(survey[1], 'classification')
    one = learner(dls, save_dir=tmp_path/'run')
    with silent(one): one.fit(1)
    one.save_bundle(tmp_path/'run'/'bundle')
    shutil.rmtree(tmp_path/'run'/'checkpoints')
    again = learner(dls, save_dir=tmp_path/'run', resume=True)
    with pytest.raises(ValueError, match='holds a run'), silent(again): again.fit(1)
    assert load_bundle(tmp_path/'run')
