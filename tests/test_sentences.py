"""Also when the disk is full, memory is short, a reader is killed or nobody listens: a sentence that names the file,
or the work goes on. Real limits of the system, real pipes, a real SIGKILL."""
import errno, os, resource, shutil, signal, subprocess, sys, time
from pathlib import Path
import matplotlib.pyplot as plt, pandas as pd, pytest, torch
from PIL import Image
from safetensors.torch import save_file
from zoofast.core.errors import DiskError
from zoofast.core.files import unfinished, write_whole

ROOT = Path(__file__).resolve().parent.parent
linux = pytest.mark.skipif(sys.platform!='linux', reason='limits and /dev/full are those of Linux')

def command(*words): return [sys.executable, '-m', 'zoofast.cli', *map(str, words)]

def environment(tmp_path, **more):
    own = {'PYTHONPATH': str(ROOT), 'ZOOFAST_CACHE': str(tmp_path/'cache'), 'OMP_NUM_THREADS': '1'}
    return {**os.environ, **own, **more}

def limited(kib):
    "What gives a process a limit to the size of its files; a write over it is an error, as on a full disk"
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kib*1024, kib*1024))
    return limit

def run(words, tmp_path, **kw):
    kw = dict(capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=tmp_path, env=environment(tmp_path)) | kw
    return subprocess.run(command(*words), **kw)

def training(survey, folder, *more):
    return ['finetune', survey[0]/'catalog.csv', '--label', 'morphology', '--encoder', 'test_convnext', '--size', 32,
            '--random-weights', '--epochs', 1, '--save-dir', folder, *more]

def is_sentence(res, *said):
    "The last one, after warnings"
    lines = [l for l in res.stderr.splitlines() if l.startswith('zoofast:')]
    assert res.returncode==2 and 'Traceback' not in res.stderr and lines, res.stderr
    assert all(o in lines[-1] for o in said), lines[-1]

# --- what cannot be written is named

def bytes_(f): f.write_bytes(bytes(10**6))
def csv(f): pd.DataFrame({'a': range(10**6)}).to_csv(f)
def parquet(f): pd.DataFrame({'a': range(10**6)}).to_parquet(f)
def png(f): Image.effect_noise((2000, 2000), 90).save(f, format='png')
def safetensors(f): save_file(dict(w=torch.rand(10**6)), f)
def checkpoint(f):
    with open(f, 'wb') as o: torch.save(dict(w=torch.rand(10**6)), o)
def svg(f):
    fig,ax = plt.subplots()
    ax.plot(range(30_000), [i%7 for i in range(30_000)], 'o')
    fig.savefig(f, format='svg')
    plt.close(fig)

@linux
@pytest.mark.parametrize('write', [bytes_, csv, parquet, png, safetensors, checkpoint, svg], ids=lambda f: f.__name__)
def test_a_writer_that_meets_the_limit_says_which_file(tmp_path, write):
    "And what was there before is there still"
    write_whole(tmp_path/'kept', 'as it was')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DiskError) as e: write_whole(tmp_path/'kept', write)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(e.value)==f"{tmp_path/'kept'} cannot be written: files may not become so large here (ulimit -f)"
    assert e.value.errno==errno.EFBIG and (tmp_path/'kept').read_text()=='as it was'
    assert os.listdir(tmp_path)==['kept']

def test_an_error_that_is_none_of_the_disk_stays(tmp_path):
    def fails(f): raise KeyError('a column')
    with pytest.raises(KeyError): write_whole(tmp_path/'a', fails)
    with pytest.raises(FileNotFoundError, match='other.csv'):
        with unfinished(tmp_path/'a'): pd.read_csv(tmp_path/'other.csv')

@linux
@pytest.mark.slow
@pytest.mark.parametrize('kib', [4, 60, 400, 900, 1500])
def test_a_training_with_a_limit_ends_in_a_sentence_or_as_ever(survey, tmp_path, kib):
    "Wherever it meets it: cache, checkpoints, bundle, pictures, report"
    res = run(training(survey, tmp_path/'run'), tmp_path, preexec_fn=limited(kib))
    if res.returncode: is_sentence(res, 'cannot be written: files may not become so large here', str(tmp_path))
    else: assert kib>400 and (tmp_path/'run'/'bundle'/'model.safetensors').is_file()
    assert not [o for o in tmp_path.rglob('*.part*')]

@linux
@pytest.mark.slow
def test_tables_with_a_limit(survey, tmp_path):
    res = run(training(survey, tmp_path/'run', '--no-report'), tmp_path)
    assert res.returncode==0, res.stderr
    for out in ('p.csv', 'p.parquet', 'folder'):
        res = run(['predict', tmp_path/'run', survey[0]/'catalog.csv', '--out', out], tmp_path, preexec_fn=limited(3))
        is_sentence(res, f'{out}.parts/part-000000.parquet' if '.' in out else out, 'cannot be written: files may not')
        res = run(['predict', tmp_path/'run', survey[0]/'catalog.csv', '--out', out], tmp_path)
        assert res.returncode==0, res.stderr

# --- what is printed does not end what is done

@linux
@pytest.mark.slow
@pytest.mark.parametrize('how,code', [('2>&1 | head -1', 0), ('2>&-', 0), ('>&-', 0), ('2>/dev/full', 0),
                                      ('>/dev/full', 2), ('>&- 2>&- <&-', 0), ('| true', 0)])
def test_a_training_that_nobody_listens_to(survey, tmp_path, how, code):
    words = ' '.join(f"'{o}'" for o in command(*training(survey, tmp_path/'run', '--no-report')))
    script = f'{words} {how}; exit ${{PIPESTATUS[0]}}'
    kw = dict(env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True)
    res = subprocess.run(['bash', '-c', script], **kw)
    assert res.returncode==code, res.stderr
    assert (tmp_path/'run'/'bundle'/'model.safetensors').is_file() and 'Traceback' not in res.stderr
    if code: assert res.stderr.rstrip().endswith('zoofast: the result cannot be written: no space left on device')

@linux
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    "What is written to stderr would be written into it"
    script = ("import sys; from zoofast.cli.streams import sentences\n"
              "with sentences():\n import os\n f = open('data.csv', 'w'); print('a line', file=sys.stderr)\n"
              " f.write('a,b'); f.close(); os.write(2, b'of a library')")
    subprocess.run(['bash', '-c', '"$0" -c "$1" 2>&- >&-', sys.executable, script], check=True, cwd=tmp_path,
                   env=environment(tmp_path))
    assert (tmp_path/'data.csv').read_text()=='a,b'

# --- memory and readers

@linux
@pytest.mark.slow
@pytest.mark.parametrize('mb', [700, 900, 1300, 2000])
def test_too_little_memory(survey, tmp_path, mb):
    def limit(): resource.setrlimit(resource.RLIMIT_AS, (mb*2**20, mb*2**20))
    res = run(training(survey, tmp_path/'run'), tmp_path, preexec_fn=limit)
    assert res.returncode in (0, 2) and 'Traceback' not in res.stderr, res.stderr
    if res.returncode: assert 'memory' in res.stderr.splitlines()[-1], res.stderr

@linux
@pytest.mark.slow
def test_a_reader_that_is_killed_is_a_sentence(survey, tmp_path):
    "As the system does where memory is full"
    df = pd.read_csv(survey[0]/'catalog.csv')
    many = pd.concat([df]*300, ignore_index=True)
    many['id_str'] = [f'g{i}' for i in range(len(many))]
    for i in range(4000):
        shutil.copy(survey[0]/df.file_loc[i%len(df)], tmp_path/f'{i}.jpg')
    many[:4000].assign(file_loc=[f'{i}.jpg' for i in range(4000)]).to_csv(tmp_path/'many.csv', index=False)
    p = subprocess.Popen(command('check', tmp_path/'many.csv', '--size', 224), cwd=tmp_path, text=True,
                         env=environment(tmp_path, ZOOFAST_READERS='2'), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    def readers():                               # forks of it; importing torch starts another program, too
        there = Path(f'/proc/{p.pid}/task/{p.pid}/children').read_text().split()
        return [int(o) for o in there if b'zoofast.cli' in Path(f'/proc/{o}/cmdline').read_bytes()]
    while p.poll() is None and len(readers())<2: time.sleep(.01)
    os.kill(readers()[0], signal.SIGKILL)
    out,err = p.communicate(timeout=300)
    assert p.returncode==2 and 'Traceback' not in err, err
    assert err.splitlines()[-1].startswith('zoofast: a process that reads images has ended'), err
