"""`--slurm`: the same command as jobs that share its work, by processes of this machine (submitit's local executor) and
by a SLURM of scripts: what is asked for is checked at once, a job that is killed or out of time costs nothing, one that
fails is named"""
import os, re, sys
from pathlib import Path
import pytest
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
