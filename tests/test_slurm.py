"""`--slurm`: the same command as jobs that share its work, by processes of this machine (submitit's local executor) and
by a SLURM of scripts: what is asked for is checked at once, a job that is killed or out of time costs nothing, one that
fails is named"""
import os, re, signal, sys, time
from pathlib import Path
import pandas as pd, preloaded, pytest
from zoofast.core import jobs
from zoofast.core.jobs import JOB_OPTIONS, check_jobs, read_job_options, run_jobs
from stub_slurm import stub_slurm

pytest.importorskip('submitit')
ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture
def slurm(tmp_path, monkeypatch):
    "A SLURM of scripts; its folder"
    for k,v in stub_slurm(tmp_path/'slurm').items(): monkeypatch.setenv(k, v)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(o for o in (str(ROOT), os.environ.get('PYTHONPATH')) if o))
    from submitit.slurm.slurm import SlurmJob
    SlurmJob.watcher.clear()
    monkeypatch.setattr(SlurmJob.watcher, '_delay_s', 1)
    return tmp_path/'slurm'

def run(words, n, folder, asked='cluster=local', **kwargs):
    "What the jobs printed, and what was said of them"
    said = []
    return run_jobs(words, n, folder, read_job_options(asked), said.append, bar=False, **kwargs),said

# Before anything is handed in

@pytest.mark.parametrize('text,says', {
    'partion=gpu': "'partion' (did you mean 'partition'?)", 'gpu': 'key=value',
    'cpus_per_task=4': 'is called cpus here',
    'time=never': 'time=never must be minutes', 'mem=32': 'with its unit', 'gpus=-1': 'gpus=-1 must be',
    'cluster=pbs': 'slurm or local', '{"cpus": 2': 'cannot be read', 'cpus=2,cpus=3': 'twice', 'name=': 'one line',
    '{"sbatch": 3}': 'must be a dict', '{"cpus": true}': 'whole number', 'cpus=1e9': 'whole number',
    'time=1,signal=60': 'must be less than the time'}.items())
def test_options_are_checked(text, says):
    with pytest.raises(ValueError, match='--slurm-opts') as e: read_job_options(text)
    assert says in str(e.value)

@pytest.mark.slow
def test_commands_say_it_with_all_else(run_zoofast, survey, tmp_path):
    d,_ = survey
    for words in (('predict', d/'nowhere', d/'catalog.csv', '--out', 't.csv', '--batch-size', 0),
                  ('represent', 'resnet18', d/'catalog.csv', '--out', 't.csv', '--batch-size', 0, '--random-weights')):
        res = run_zoofast(*words, '--slurm', 0, '--slurm-opts', 'gpus=1', cwd=tmp_path)
        assert res.returncode==2 and '--batch-size 0' in res.stderr and '--slurm 0 must be a whole number' in res.stderr
        res = run_zoofast(*words, '--slurm-opts', 'gpus=1', cwd=tmp_path)
        assert res.returncode==2 and 'give that, too' in res.stderr
        res = run_zoofast(*words, '--slurm', 2, '--slurm-opts', 'cluster=local,gpu=1', '--no-resume', cwd=tmp_path)
        assert res.returncode==2 and "did you mean 'gpus'" in res.stderr and '--no-resume deletes' in res.stderr
    assert not list(tmp_path.iterdir())

def test_without_submitit(monkeypatch):
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(ValueError, match=re.escape("pip install 'zoofast[slurm]'")): check_jobs(2, 'cluster=local')

def test_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ValueError, match='no SLURM on this machine.*cluster=local'): check_jobs(2)
    assert check_jobs(2, 'cluster=local')['cluster']=='local'

FLAGS = {'partition=gpu': '--partition=gpu', 'gpus=a100:2': '--gpus-per-node=a100:2', 'cpus=8': '--cpus-per-task=8',
         'mem=32g': '--mem=32G', 'time=1-2:00:00': '--time=1560', 'time=0.2': '--time=1',
         'name=rings': '--job-name=rings', 'account=a': '--account=a',
         'exclusive=yes': '--exclusive', 'nodelist=n[1,2]': "--nodelist='n[1,2]'",
         'signal=30': '--signal=USR2@30', '{"sbatch": {"reservation": "night"}}': '--reservation=night',
         'at_once=2': '--array=0-3%2', '': '--array=0-3%4'}

@pytest.mark.parametrize('text,flag', FLAGS.items())
def test_what_slurm_is_told(slurm, tmp_path, text, flag):
    ex = jobs._executor(read_job_options(text), tmp_path/'jobs', 4)
    ex.parameters['map_count'] = 4
    script = ex._make_submission_file_text('work', 'x').splitlines()
    assert f'#SBATCH {flag}' in script, script

def test_what_runs_python(slurm, tmp_path):
    ex = lambda text: jobs._executor(read_job_options(text), tmp_path/'jobs', 1)
    assert ex('container=z.sif,gpus=1').python=='apptainer exec --nv z.sif python3'
    assert ex('container=z.sif').python=='apptainer exec z.sif python3' and ex('').python==sys.executable
    script = ex('{"setup": ["module load cuda", "a=1,b=2"], "srun": "--container-image=z.sqsh"}')
    text = script._make_submission_file_text('work', 'x')
    assert 'module load cuda\na=1,b=2\n' in text and '--container-image=z.sqsh work' in text

def test_page_has_all_options():
    page = (ROOT/'docs'/'cluster.md').read_text(encoding='utf-8')
    assert not [o for o in JOB_OPTIONS if f'| `{o}` |' not in page]

# Jobs of the simplest command

def test_jobs_of_this_machine(tmp_path):
    got,said = run(['--version'], 2, tmp_path/'jobs')
    assert len(got)==2 and all(re.fullmatch(r'[\d.]+\n', o) for o in got)
    assert re.fullmatch(rf'jobs \d+ \d+; what they say is in {tmp_path}/jobs', said[0])
    assert (tmp_path/'jobs').stat().st_mode&0o777==0o700

def test_a_job_that_fails_is_named(tmp_path):
    says = 'the job did not end well.*ended with exit code 2 and said: .*nowhere.*; its log is '
    with pytest.raises(ValueError, match=says) as e: run(['runs', 'nowhere'], 1, tmp_path/'jobs')
    assert 'nowhere' in Path(re.search(r'its log is (\S+)', str(e.value))[1]).read_text()

def test_jobs_of_slurm(slurm, tmp_path):
    got,said = run(['--version'], 2, tmp_path/'jobs', 'partition=gpu')
    assert len(got)==2 and said[0].startswith('jobs 4711_0 4711_1; ')
    assert '#SBATCH --partition=gpu' in (slurm/'4711.sh').read_text()
    assert run(['--version'], 1, tmp_path/'jobs', 'time=5')[1][0].startswith('job 4712; ')

def test_slurm_takes_none(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv('STUB_REFUSES', 'invalid partition specified: gpuu')
    with pytest.raises(ValueError, match='not taken: .*invalid partition specified: gpuu'):
        run(['--version'], 2, tmp_path/'jobs', 'partition=gpuu')

def test_a_job_that_waits_in_vain_is_cancelled(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv('STUB_WAITS', '1')
    got,said = run(['--version'], 2, tmp_path/'jobs', '')
    assert len(got)==1 and said[-1]=='cancelled, as all is done without: job 4711_1'
    assert (slurm/'4711_1.state').read_text().startswith('CANCELLED')

def test_a_folder_of_others_is_refused(tmp_path):
    (tmp_path/'jobs').mkdir()
    (tmp_path/'jobs').chmod(0o777)
    with pytest.raises(ValueError, match='can be written by everybody'): run(['--version'], 1, tmp_path/'jobs')

# Tables and searches

ROWS,SHARD = 2000,50

@pytest.fixture(scope='module')
def sky(survey, tmp_path_factory):
    "A folder with a bundle and a long catalogue, two of whose images are not there; and one process's table"
    from zoofast.bundles.bundle import load_bundle
    from zoofast.data.loaders import GalaxyDataLoaders
    from zoofast.predict.table import predict_catalog
    from zoofast.training.finetune import galaxy_learner
    import zoofast.bundles.save      # noqa: F401 - adds save_bundle to a learner
    tmp,df = tmp_path_factory.mktemp('sky'),survey[1]
    dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=64, progress=False)
    for i,name in enumerate(('bundle', 'other')):
        galaxy_learner(dls, 'resnet10t', pretrained=False, seed=i).save_bundle(tmp/name)
    big = pd.concat([df[['id_str', 'file_loc']]]*(-(-ROWS//len(df))), ignore_index=True)[:ROWS]
    big = big.assign(id_str=[f'g{i:05d}' for i in range(ROWS)])
    big.loc[[5, 700], 'file_loc'] = 'missing.jpg'
    big.to_csv(tmp/'big.csv', index=False)
    return tmp,predict_catalog(load_bundle(tmp/'bundle'), tmp/'big.csv', progress=False)

def start(*words, cwd):
    "A command of two jobs, and their numbers"
    path = os.pathsep.join(o for o in (str(ROOT), os.environ.get('PYTHONPATH')) if o)
    words = ['-m', 'zoofast.cli', *words, '--slurm', 2, '--slurm-opts', 'cluster=local,time=30']
    p = preloaded.start(words, cwd, {'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'})
    said = p.stderr.readline()
    assert (m := re.match(r'jobs (\d+) (\d+); ', said)), said+p.stderr.read()
    return p,[int(o) for o in m.groups()]

def child_of(pid):
    "The process that waits for the command, in a job"
    while True:
        for o in Path('/proc').glob('[0-9]*/stat'):
            try: own,rest = o.parent.name,o.read_text().rpartition(')')[2].split()
            except OSError: continue
            if int(rest[1])==pid: return int(own)
        assert Path(f'/proc/{pid}').exists(), 'the job has ended'
        time.sleep(.1)

def shards(folder, n, p):
    "Wait until so many are there"
    while len(list(folder.glob('part-*.parquet')))<n:
        assert p.poll() is None, p.communicate()
        time.sleep(.01)

on_linux = pytest.mark.skipif(sys.platform!='linux', reason='processes are found in /proc')

@on_linux
@pytest.mark.slow
@pytest.mark.parametrize('name', ['table', 'table.parquet'])
def test_one_job_is_killed(sky, tmp_path, name):
    tmp,want = sky
    p,(first,_) = start('predict', tmp/'bundle', tmp/'big.csv', '--out', name, '--shard-size', SHARD, cwd=tmp_path)
    shards(tmp_path/(name if name=='table' else f'{name}.parts'), 3, p)
    os.kill(child_of(first), signal.SIGKILL)
    said,err = p.communicate()
    assert p.returncode==0, err
    assert said==f'{ROWS} rows written to {name}; 2 images could not be read, see the column error\n'
    assert f'job {first} was killed' in err and f'{first}_0_log.err; the others go on' in err
    assert '1 of 2 jobs failed; the others did what was left, and all is done' in err
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path/name), want, check_dtype=False)
    if name!='table': assert sorted(o.name for o in tmp_path.iterdir())==[name, f'{name}.jobs']

@on_linux
@pytest.mark.slow
def test_a_job_without_time_is_handed_in_again(sky, tmp_path):
    tmp,want = sky
    p,ids = start('predict', tmp/'bundle', tmp/'big.csv', '--out', 'table', '--shard-size', SHARD, cwd=tmp_path)
    shards(tmp_path/'table', 3, p)
    for o in ids: os.kill(child_of(o), signal.SIGUSR2)           # as SLURM does before their time is over
    said,err = p.communicate()
    assert p.returncode==0 and said.startswith(f'{ROWS} rows written') and 'failed' not in err, err
    logs = [(tmp_path/'table.jobs'/f'{o}_0_log.out').read_text() for o in ids]
    assert any('Requeued job' in o for o in logs) and all(o.count('rows written')<=1 for o in logs), logs
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path/'table'), want, check_dtype=False)

@pytest.mark.slow
def test_all_jobs_fail(sky, tmp_path):
    tmp,_ = sky
    (tmp_path/'few.csv').write_text(''.join((tmp/'big.csv').read_text().splitlines(True)[:4]))
    from zoofast.predict.table import predict_catalog
    predict_catalog(tmp/'bundle', tmp_path/'few.csv', tmp_path/'table', progress=False)
    p,_ = start('predict', tmp/'other', tmp_path/'few.csv', '--out', tmp_path/'table', cwd=tmp_path)
    said,err = p.communicate()
    assert p.returncode==2 and said=='' and 'none of the 2 jobs ended well' in err and 'another model' in err, err
    assert len(predict_catalog(tmp/'bundle', tmp_path/'few.csv', tmp_path/'table', progress=False))==3

@pytest.mark.slow
def test_a_job_that_comes_late_does_nothing(sky, tmp_path, monkeypatch):
    from zoofast.predict.table import predict_catalog
    tmp,want = sky
    for k,v in jobs.before_now(tmp_path/'t.parquet').items(): monkeypatch.setenv(k, v)
    want.to_parquet(tmp_path/'t.parquet', index=False)
    def written():
        o = (tmp_path/'t.parquet').stat()                    # not when it was read last
        return o.st_ino,o.st_size,o.st_mtime_ns
    was = written()
    got = predict_catalog(tmp/'bundle', tmp/'big.csv', tmp_path/'t.parquet', progress=False)
    assert (len(got), got.n_bad)==(ROWS, 2) and written()==was
    assert [o.name for o in tmp_path.iterdir()]==['t.parquet']

@pytest.mark.slow
def test_two_jobs_search(survey, tmp_path):
    d,_ = survey
    (tmp_path/'s.yaml').write_text('method: random\nmetric: {name: valid_loss, goal: minimize}\n'
                                   'parameters: {head_lr: {min: 0.001, max: 0.1}, training_mode: {value: head_only}}\n')
    p,ids = start('sweep', 's.yaml', '--catalog', d/'catalog.csv', '--label', 'morphology', '--encoder',
                  'tf_efficientnet_lite0', '--size', 32, '--epochs', 1, '--freeze-epochs', 0, '--trials', 4,
                  '--save-dir', 'sweep', '--best', cwd=tmp_path)
    said,err = p.communicate()
    assert p.returncode==0 and said.startswith('4 trials: 4 finished\n') and 'is in sweep/best/bundle' in said, err
    table = pd.read_csv(tmp_path/'sweep'/'trials.csv')
    assert table.trial.tolist()==[1, 2, 3, 4] and len(list((tmp_path/'sweep'/'trials').iterdir()))==4
    logs = ''.join((tmp_path/'sweep'/'jobs'/f'{o}_0_log.err').read_text() for o in ids)
    assert sorted(re.findall(r'trial (\d) of 4: valid_loss', logs))==['1', '2', '3', '4'], logs
    assert (tmp_path/'sweep'/'sweep.html').is_file() and (tmp_path/'sweep'/'best'/'bundle').is_dir()
