"What one process does is never lost by what another does beside it, on this machine or on another"
import os, shutil
from types import SimpleNamespace
import pandas as pd, pytest
from test_shards_large import SCHEMA, Between, begin, is_free, make, quick, rows      # noqa: F401
from zoofast.catalog.write import SavedTable
from zoofast.core import files, folders
from zoofast.predict import table as of_table
from zoofast.sweep.trials import _folder_of
from zoofast.training.runs import check_idle, run_lock

@pytest.mark.parametrize('suffix', ['part', 'part.csv', 'old'])
def test_who_writes_is_read_from_the_name(tmp_path, suffix):
    "The process numbers of another machine say nothing here"
    o = tmp_path/f'.a.csv.@nodeb.99999999.{suffix}'
    o.touch()
    assert files._names.fullmatch(o.name)['host']=='nodeb'
    files.clear_unfinished(tmp_path)
    assert o.exists()
    os.utime(o, (1, 1))
    files.clear_unfinished(tmp_path)
    assert not o.exists() or suffix=='old'

def test_a_bundle_that_another_machine_looks_for_while_it_is_replaced(quick, tmp_path, monkeypatch):
    "Where names cannot be exchanged, it has none for a moment; the old one is put aside as of now"
    monkeypatch.setattr(folders, '_exchange', lambda a, b: False)
    def replaced(i):
        f = tmp_path/f'{i}'/'bundle'
        f.mkdir(parents=True)
        (f/'config.json').write_text('old')
        os.utime(f, (1, 1))
        def ours():
            with folders.unfinished_folder(f, ('config.json',)) as part: (part/'config.json').write_text('new')
        def theirs(n):
            if n!=i: return
            with monkeypatch.context() as m:
                m.setattr(files, '_host', 'nodeb')
                m.setattr(files, '_writing', set())
                folders.recover(f)
                files.clear_unfinished(f.parent)
        n = Between.run(ours, theirs)
        assert (f/'config.json').read_text()=='new' and os.listdir(f.parent)==['bundle'], i
        return n
    for i in range(1, replaced(0)+1): replaced(i)

def work(s):
    todo = s.look(check=True)
    while todo:
        for k in s.free(todo):
            if s.claim(k): s.write(k, rows(k))
        todo = s.look()

def end(s, joined):
    out = s.folder.with_suffix('.parquet')
    if joined: of_table._finish_file(s, out, SavedTable(out, 0, 12, SCHEMA.names), s.folder)
    else: s.finish()
    return pd.read_parquet(out if joined else s.folder)

def unlocked(lock): return not os.path.exists(lock) or is_free(SimpleNamespace(lock_file=lock))

WHOLE = [float(k) for k in range(3) for _ in range(4)]

@pytest.mark.slow
@pytest.mark.parametrize('joined', [False, True], ids=['folder', 'file'])
def test_another_process_gives_up_before_its_first_shard(quick, tmp_path, joined):
    def table(i):
        folder = tmp_path/f'{i}'
        lock = tmp_path/'lock' if joined else folder/'_lock'
        how = dict(lock=lock) if joined else {}
        other,left = begin(folder, 3, **how),[]
        def theirs(n):
            if n>=i and i and not left and unlocked(lock): left.append(other.leave())
        def ours():
            me = begin(folder, 3, **how)
            work(me)
            assert end(me, joined).x.tolist()==WHOLE, i
        n = Between.run(ours, theirs)
        for o in tmp_path.iterdir(): shutil.rmtree(o) if o.is_dir() else o.unlink()
        return n
    for i in range(1, table(0)+1): table(i)

@pytest.mark.slow
def test_a_third_process_begins_anew_while_we_end(quick, tmp_path):
    "Another has joined the table just now"
    def table(i, j):
        folder,lock = tmp_path/f'{i}-{j}',tmp_path/'lock'
        other,third,ended = begin(folder, 3, lock=lock),[],[]
        make(other, [0, 1])
        def theirs(n):
            if not i or not unlocked(lock): return
            if n>=i and not ended and not other.look(): ended.append(end(other, True))
            elif n>=j and ended and not third: third.append(begin(folder, 3, lock=lock))
        def ours():
            me = begin(folder, 3, lock=lock)
            work(me)
            assert end(me, True).x.tolist()==WHOLE, (i, j)
        n = Between.run(ours, theirs)
        for o in third:
            work(o)
            assert end(o, True).x.tolist()==WHOLE, (i, j)
        assert {o.name for o in tmp_path.iterdir()}=={f'{i}-{j}.parquet'}, (i, j)
        (tmp_path/f'{i}-{j}.parquet').unlink()
        return n
    n = table(0, 0)
    for i in range(1, n+1, 3):
        for j in range(i, n+1, 3): table(i, j)

def test_nothing_is_made_for_a_table_that_is_over(quick, tmp_path):
    "A slow process has a long list of shards before it when another joins them"
    me,other = (begin(tmp_path/'t', 3, lock=tmp_path/'lock') for _ in range(2))
    assert me.free(me.look(check=True))==[0, 1, 2]
    work(other)
    end(other, True)
    assert not any(me.claim(k) for k in range(3))

def test_bad_rows_of_shards_that_others_made_are_counted(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(of_table, 'RETURNED', 1)
    me,other = (begin(tmp_path/'t', 3, lock=tmp_path/'lock') for _ in range(2))
    make(other, range(3))                                     # of which the first has a bad row
    out = tmp_path/'t.parquet'
    end(other, True)
    assert me.look()==[] and not me.done
    assert of_table._finish_file(me, out, SavedTable(out, 0, 12, SCHEMA.names), me.folder).n_bad==1

def test_a_map_of_others_that_gets_its_name_while_ours_is_begun(tmp_path, monkeypatch):
    from zoofast.data.store import _clear_parts
    real = os.stat
    (tmp_path/'other.5.part').touch()
    def stat(p, *args, **kwargs):
        if str(p).endswith('other.5.part'): os.path.lexists(p) and os.replace(p, tmp_path/'other.npy')
        return real(p, *args, **kwargs)
    monkeypatch.setattr(os, 'stat', stat)
    _clear_parts(tmp_path/'mine.npy')

def test_who_lists_runs_keeps_nobody_from_training(tmp_path):
    import threading
    lock = run_lock(tmp_path)
    lock.acquire()
    threading.Timer(.3, lock.release).start()
    check_idle(tmp_path)

def test_a_trial_that_is_done_again_leaves_the_first_ones_folder_alone(tmp_path):
    trial = SimpleNamespace(user_attrs={'place': 0, 'tries': 2})
    assert _folder_of(trial, tmp_path).name=='0001'
    (tmp_path/'0001').mkdir()
    with run_lock(tmp_path/'0001').acquire(): assert _folder_of(trial, tmp_path).name=='0001-2'
    assert _folder_of(trial, tmp_path).name=='0001'
