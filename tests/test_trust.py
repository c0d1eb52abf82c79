"What one can rely on, see docs/trust.md: kills, two at once, data that change meanwhile, files that others have touched"
import os, shutil, signal, subprocess, sys, traceback
import pandas as pd, pytest
from test_hostile_bundles import model_of
import zoofast.core.folders as folders
from zoofast.bundles.bundle import FILES, load_bundle, write_bundle
from zoofast.core.files import _host, clear_unfinished, write_whole

# ---- kills: a child of this process, or a command, ends by SIGKILL at a chosen step

STEPS = 'os.rename', 'os.link', 'os.mkdir', 'os.remove', 'os.rmdir', 'open', 'shutil.rmtree'

def kill_at(n, steps=STEPS):
    "This process is killed just before its `n`-th step of these kinds, as Python's audit events name them"
    left = [n]
    def hook(event, args):
        if event not in steps: return
        left[0] -= 1
        if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def in_child(f, n):
    "Call `f` in a process that is killed at step `n`; says whether it came to its end before"
    if not (pid := os.fork()):
        try:
            kill_at(n)
            f()
        except BaseException: traceback.print_exc()
        else: os._exit(0)
        os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status)==0
    return not os.WIFSIGNALED(status)

@pytest.mark.parametrize('swaps', [True, False])
def test_a_bundle_over_a_bundle_is_the_old_or_the_new_one_wherever_it_is_killed(swaps, tmp_path, monkeypatch):
    if not swaps: monkeypatch.setattr(folders, '_exchange', lambda a, b: False)          # a system that cannot
    models,bundle,seen = {o: model_of() for o in ('old', 'new')},tmp_path/'bundle',set()
    for k,m in models.items(): m.net.head[1].bias.data.fill_(1. if k=='new' else 0.)
    def write(k): return write_bundle(bundle, models[k], card=f'# {k}', history=[{'epoch': 0, 'which': k}])
    n,done = 0,False
    while not done:
        shutil.rmtree(bundle, ignore_errors=True)
        write('old')
        (bundle/'notes.txt').write_text('mine')
        (bundle/'.part-99999999').mkdir()                          # of an earlier release, killed
        done = in_child(lambda: write('new'), n := n+1)
        got = load_bundle(bundle, 'cpu')
        which = 'new' if got.net.head[1].bias.detach()[0] else 'old'
        assert (bundle/'README.md').read_text()==f'# {which}'
        assert list(pd.read_csv(bundle/'history.csv').which)==[which]
        assert (bundle/'notes.txt').read_text()=='mine'
        seen.add(which)
        write('old')
        assert [o.name for o in tmp_path.iterdir()]==['bundle']    # what was killed is cleared
        assert {o.name for o in bundle.iterdir()}=={'notes.txt', *FILES}
    assert seen=={'old', 'new'} and n>15


def test_what_is_being_written_stays(tmp_path):
    "What killed writers left is cleared at the next file, what others write now is not"
    sleeper = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    host,live = _host,sleeper.pid
    names = {f'.a.csv.@{host}.{live}.part': True, f'.a.csv.@{host}.99999999.part': False, '.a.csv.99999999.part': False,
             f'.b.@{host}.99999999.part.parquet': False, '.a.csv.@elsewhere.5.part': True, '.part-99999999': False,
             '.mine.part': True, 'a.csv.5.part': True}
    for o in names: (tmp_path/o).write_text('x')
    write_whole(tmp_path/'a.csv', 'id_str\n')
    assert {o.name for o in tmp_path.iterdir()}=={'a.csv', *(o for o,stays in names.items() if stays)}
    sleeper.communicate(b'\n')
    clear_unfinished(tmp_path)
    assert not (tmp_path/f'.a.csv.@{host}.{live}.part').exists()

def test_a_bundle_where_folders_cannot_be_moved(tmp_path, monkeypatch):
    "The folder that one is in keeps its place"
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    for _ in range(2): write_bundle('.', model_of(), card='# here')
    assert os.stat('.').st_ino==os.stat(tmp_path/'here').st_ino and (tmp_path/'here'/'config.json').is_file()
    assert {o.name for o in (tmp_path/'here').iterdir()}==set(FILES)
    load_bundle('.', 'cpu')
