"""Tables of very many shards: what a look, a start and an end cost does not grow with what was made before, and folders
of earlier releases go on"""
import hashlib, json, os, shutil, signal, subprocess, sys, threading, tracemalloc
from contextlib import contextmanager
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from filelock import FileLock, Timeout
from zoofast.catalog.stream import CatalogStream
from zoofast.catalog.write import SavedTable
from zoofast.core.errors import CatalogError, ImageError
from zoofast.predict import shards as of_shards, table as of_table
from zoofast.predict.shards import Shards, _default_size

SCHEMA = pa.schema([('id_str', pa.large_string()), ('x', pa.float64()), ('error', pa.large_string())])
ABOUT = dict(model={'name': 'm'}, catalog={'path': 'c.parquet'}, parameters={'tta': 0})
SIZE = 4

def rows(k, n=SIZE):
    error = [f'there is no file {k}.png' if k%7==0 and i==1 else None for i in range(n)]
    return pa.table({'id_str': [f'{k}-{i}' for i in range(n)], 'x': [float(k)]*n, 'error': error}, SCHEMA)

def begin(folder, shards, **kw): return Shards(folder, SCHEMA, shards*SIZE, ABOUT, SIZE, **kw)

def make(s, todo):
    for k in todo:
        assert s.claim(k)
        s.write(k, rows(k))

class Calls:
    "What the interpreter opens and lists, in this thread: names of the events and of the files"
    on,seen = False,[]
    @classmethod
    def hook(cls, event, args):
        if cls.on and event in ('open', 'os.listdir', 'os.scandir') and threading.current_thread() is cls.thread:
            cls.seen.append((event, str(args[0])))
sys.addaudithook(Calls.hook)

@contextmanager
def calls():
    Calls.on,Calls.seen,Calls.thread = True,[],threading.current_thread()
    try: yield Calls.seen
    finally: Calls.on = False

@pytest.fixture
def quick(monkeypatch):
    "Without waiting for the disk, which these tests do not ask about"
    monkeypatch.setattr(os, 'fsync', lambda fd: None)

@pytest.fixture
def few(quick, monkeypatch):
    "As many shards as a manifest holds are 20 here, so that more are made quickly"
    monkeypatch.setattr(of_shards, '_in_manifest', 20)

def cost(f):
    "How many files are opened or listed"
    with calls() as seen: f()
    return len(seen)

def test_a_look_costs_what_is_new(quick, tmp_path):
    "Not what was made before: as many files after 220 shards as after 20"
    found = {}
    for n in (30, 230):
        me,other = (begin(tmp_path/str(n), n) for _ in range(2))
        me.look(check=True)
        make(other, range(n-10))
        assert me.look()==list(range(n-10, n))
        idle = cost(me.look)
        make(other, [n-10])
        with calls() as seen: assert me.look()==list(range(n-9, n))
        assert not any('.parquet' in o for _,o in seen)
        found[n] = idle,len(seen),cost(lambda: me.free(me.look())),cost(lambda: make(other, [n-9]))
    assert found[30]==found[230], found
    assert found[230][0]<8

def test_a_look_reads_what_is_new(quick, tmp_path):
    "Bytes, too: notes that were read once are not read again"
    me,other = (begin(tmp_path/'t', 150) for _ in range(2))
    make(other, range(100))
    me.look()
    log = next((tmp_path/'t'/'_progress').glob('*.jsonl'))
    before = log.stat().st_size
    assert me.heard=={log.name: before}
    log.write_bytes(b' '*before)                             # would be misread, if it were read
    make(other, [100])
    assert me.look()==list(range(101, 150)) and me.done[100]==other.done[100]

def test_beginning_again_opens_few_files(quick, tmp_path):
    "Unless checksums are asked for, which need each shard's file, once"
    make(begin(tmp_path/'t', 60), range(50))
    for check,most in ((False, 10), (True, 60)):
        s = begin(tmp_path/'t', 60)
        assert cost(lambda: s.look(check))<=most and s.look()==list(range(50, 60))

def test_the_manifest_is_small_and_says_all(few, tmp_path):
    n,finished = 60,{}
    for m in (12, n):
        s = begin(tmp_path/str(m), m)
        make(s, range(m))
        assert s.look()==[]
        s.finish()
        finished[m] = s
    folder = tmp_path/str(n)
    m = json.loads((folder/'_manifest.json').read_text())
    small = json.loads((tmp_path/'12'/'_manifest.json').read_text())
    assert (folder/'_manifest.json').stat().st_size<2000 and m['complete'] and m['version']==2
    assert small['version']==1 and len(small['finished'])==12          # as release 0.1.0 reads it
    records = [json.loads(o) for o in (folder/'_records.jsonl').read_text().splitlines()]
    assert len(records)==n and sum(o['rows'] for o in records)==n*SIZE
    for k in (0, 49, n-1):
        data = finished[n].part(k).read_bytes()
        want = dict(rows=SIZE, first=f'{k}-0', last=f'{k}-3', bad=int(k%7==0), bytes=len(data),
                    sha256=hashlib.sha256(data).hexdigest())
        assert records[k]==want
    assert m['bad']==sum(o['bad'] for o in records)==len(range(0, n, 7))
    assert {o.name for o in folder.iterdir() if not o.name.startswith('part-')}=={'_manifest.json', '_records.jsonl'}
    whole = pd.read_parquet(folder)
    assert whole.id_str.tolist()==[f'{k}-{i}' for k in range(n) for i in range(SIZE)]
    assert len(SavedTable(folder))==n*SIZE
    (folder/'part-000050.parquet').unlink()
    with pytest.raises(CatalogError, match='59 of its 60 parts'): SavedTable(folder)

@pytest.mark.parametrize('n', [12, 60])
def test_a_damaged_shard_of_many(few, tmp_path, n):
    "One bit, one file too short, one that is gone, and records that are lost"
    s = begin(tmp_path/'t', n)
    make(s, range(n))
    s.look()
    s.finish()
    data = bytearray(s.part(3).read_bytes())
    data[40] ^= 1
    s.part(3).write_bytes(data)
    s.part(5).write_bytes(s.part(5).read_bytes()[:-1])
    s.part(7).unlink()
    again = begin(tmp_path/'t', n)
    assert again.look(check=True)==[3, 5, 7]
    with pytest.raises(CatalogError, match='not finished'): SavedTable(tmp_path/'t')
    other = begin(tmp_path/'t', n)
    assert other.look()==[3, 5, 7]
    make(other, [3, 7])
    assert again.look()==[5]
    make(again, [5])
    assert other.look()==[]
    other.finish()
    assert begin(tmp_path/'t', n).look(check=True)==[]
    assert pd.read_parquet(tmp_path/'t').x.tolist()==[float(k) for k in range(n) for _ in range(SIZE)]
    if n>20:
        (tmp_path/'t'/'_records.jsonl').write_text('{}')
        last = begin(tmp_path/'t', n)
        assert last.look(check=True)==[] and last.done==other.done
        last.finish()
        assert len(SavedTable(tmp_path/'t'))==n*SIZE

def test_a_shard_deleted_by_one_is_missing_for_all(quick, tmp_path):
    "Another process that begins finds one damaged while we are at work"
    me = begin(tmp_path/'t', 40)
    make(me, range(30))
    assert me.look()==list(range(30, 40))
    me.part(11).write_bytes(b'damaged')
    assert begin(tmp_path/'t', 40).look(check=True)==[11, *range(30, 40)]
    assert me.look()==[11, *range(30, 40)]
    make(me, me.look())
    assert me.look()==[]
    me.finish()
    assert pd.read_parquet(tmp_path/'t').x.tolist()==[float(k) for k in range(40) for _ in range(SIZE)]

class Between:
    "What happens within a step of ours: `at(n)` just before our `n`th touch of the disk"
    n,at = 0,None
    @classmethod
    def hook(cls, event, args):
        if not cls.at or not event.startswith(('open', 'os.')) or threading.current_thread() is not cls.thread: return
        at,cls.at = cls.at,None                              # no touch of ours, what happens there
        cls.n += 1
        at(cls.n)
        cls.at = at
    @classmethod
    def run(cls, f, at):
        "Gives how often `f` touches the disk"
        cls.n,cls.at,cls.thread = 0,at,threading.current_thread()
        try: f()
        finally: cls.at = None
        return cls.n
sys.addaudithook(Between.hook)

def is_free(lock):
    try:
        with FileLock(lock.lock_file, timeout=0): return True
    except (Timeout, RuntimeError): return False             # held in this thread

def step(s):
    "One round of a process that makes a table, but for its end"
    for k in s.free(s.look()):
        if s.claim(k): s.write(k, rows(k))

@pytest.mark.slow
@pytest.mark.parametrize('joined', [False, True], ids=['folder', 'file'])
def test_another_process_finishes_at_any_moment(quick, tmp_path, joined):
    "It makes what is missing before one of our touches of the disk, and ends before another: nothing is lost or left"
    def end(s): return s.join(s.folder.with_suffix('.parquet')) if joined else s.finish()
    def table(i, j):
        folder = tmp_path/f'{i}-{j}'
        how = dict(lock=tmp_path/'lock') if joined else {}
        other = begin(folder, 3, **how)
        make(other, [0])
        ended = []
        def theirs(n):
            if n==i: step(other)
            # while we begin or end they wait, and end a little later
            if n>=j and not ended and not other.look() and is_free(other.lock): ended.append(end(other))
        def ours():
            me = begin(folder, 3, **how)
            me.look(check=True)
            step(me)
            assert me.look()==[], (i, j)
            end(me)
        n = Between.run(ours, theirs)
        out = folder.with_suffix('.parquet') if joined else folder
        assert pd.read_parquet(out).x.tolist()==[float(k) for k in range(3) for _ in range(SIZE)], (i, j)
        left = {o.name for o in tmp_path.iterdir()}
        assert left=={out.name}, left
        if not joined:
            parts = {f'part-{k:06d}.parquet' for k in range(3)}
            assert {o.name for o in out.iterdir()}=={'_manifest.json', *parts}, (i, j)
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        return n,len(ended)
    last,_ = table(0, 0)
    tried = [table(i, j) for i in range(1, last+1) for j in range(i, last+1)]
    assert last>20 and sum(ended for _,ended in tried)>40

def test_a_file_that_goes_is_seen_before_the_end(quick, tmp_path):
    s = begin(tmp_path/'t', 20)
    make(s, range(19))
    assert s.look()==[19]
    s.part(4).unlink()
    make(s, [19])
    assert s.look()==[4]

def test_a_shard_that_was_not_noted(quick, tmp_path, monkeypatch):
    "Its process was killed between the file and the note, or while it wrote the note"
    s = begin(tmp_path/'t', 10)
    with monkeypatch.context() as m:
        m.setattr(Shards, '_say', lambda *args: None)
        make(s, [2])
    make(s, [3])
    log = next((tmp_path/'t'/'_progress').glob('*.jsonl'))
    log.write_bytes(log.read_bytes()[:-9])
    make(s, [4])
    want,late = [0, 1, *range(5, 10)],begin(tmp_path/'t', 10)
    late.looked = True                                       # it was at work before
    assert late.look()==[0, 1, 2, 3, *range(5, 10)]
    assert late.free(late.look())==want and late.look()==want
    assert late.done=={k: s.done[k] for k in (2, 3, 4)}
    log.unlink()
    fresh = begin(tmp_path/'t', 10)
    assert fresh.look()==want and fresh.done==late.done

@pytest.mark.slow
def test_which_shards_are_free(quick, tmp_path):
    "Those of a killed process are; those that another process is at are not"
    code = f'''
import sys, time
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_shards_large import begin
s = begin({str(tmp_path/'t')!r}, 30)
print([s.claim(k) for k in range(5)], flush=True)
time.sleep(600)
'''
    me = begin(tmp_path/'t', 30)
    words = [sys.executable, '-W', 'ignore', '-c', code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as o:
        assert o.stdout.readline().strip()==str([True]*5)
        assert me.free(me.look())==list(range(5, 30))
        o.send_signal(signal.SIGKILL)
    assert me.free(me.look())==list(range(30))

class Job:
    desc,shape = 'nothing',(1, 0, 1)
    empty = pd.DataFrame({'x': np.empty(0)})
    reader = None
    def compute(self, x): raise AssertionError('no image is there')
    def table(self, out, schema): return pa.table([pa.nulls(out.shape[1], pa.float64())], schema)

def test_who_waits_reads_no_catalogue(quick, tmp_path, monkeypatch):
    "The last shard is being made by another: the catalogue is not read again until there is something to do"
    df = pd.DataFrame({'id_str': [str(i) for i in range(40)], 'file_loc': [f'{i}.png' for i in range(40)]})
    df.to_csv(tmp_path/'c.csv', index=False)
    stream,read,polls = CatalogStream(tmp_path/'c.csv'),[],[]
    schema,made = of_table._schemas(stream, Job())
    me,other = (Shards(tmp_path/'t', schema, 40, ABOUT, 4) for _ in range(2))
    monkeypatch.setattr(of_table, 'read_ahead',
                        lambda reader, batches, n: ((k, None, ['no image']*len(files)) for k,files in batches))
    pieces,sleep = stream.pieces,of_table.time.sleep
    def slow(seconds):
        polls.append(seconds)
        if len(polls)<6: return
        k = of_table.pa.table({'id_str': df.id_str[24:28], 'file_loc': df.file_loc[24:28],
                               'x': [None]*4, 'error': ['no image']*4}, schema)
        if 6 in other.claims: other.write(6, k)
        sleep(0.001)
    monkeypatch.setattr(of_table.time, 'sleep', slow)
    stream.pieces = lambda size, todo: read.append(list(todo)) or pieces(size, todo)
    assert other.claim(6)
    of_table._make_all_pieces(stream, Job(), me, schema, made, 64, 'record', False)
    assert len(polls)>=6 and read==[list(range(10))]
    assert me.look()==[]

def test_parts_that_are_not_wanted_are_not_opened(tmp_path):
    "Going on in a catalogue of many files"
    for i in range(30):
        df = pd.DataFrame({'id_str': [f'{i}-{j}' for j in range(10)], 'file_loc': [f'{i}-{j}.png' for j in range(10)]})
        df.to_parquet(tmp_path/f'{i:02d}.parquet', index=False)
    s = CatalogStream(tmp_path)
    with calls() as seen: got = [s.rows(p, k*20)['id_str'].to_pylist() for k,p in s.pieces(20, [12, 14])]
    assert got==[[f'{i}-{j}' for i in (a, a+1) for j in range(10)] for a in (24, 28)]
    assert {os.path.basename(o) for _,o in seen if o.endswith('.parquet')}<={f'{i}.parquet' for i in (24, 25, 28, 29)}

def test_a_shard_grows_with_a_very_long_table():
    for n in (1, 10**6, 10**8, 2*10**8): assert _default_size(n, 20)==10_000
    for n in (10**9, 3*10**9): assert n/_default_size(n, 20)<=20_000
    for columns in (20, 400, 800, 2050, 10**6):
        size = _default_size(10**9, columns)
        assert size%10_000==0 and (size==10_000 or size*columns<=2**26)

def old_folder(folder, n, made, complete=False):
    "A folder as release 0.1.0 leaves it: a file for each record"
    s = begin(folder, n)
    make(s, made)
    for o in (folder/'_progress').glob('*.jsonl'): o.unlink()
    for k in made: (folder/'_progress'/f'part-{k:06d}.json').write_text(json.dumps(s.done[k]))
    if complete:
        m = json.loads((folder/'_manifest.json').read_text())
        m.update(complete=True, bad=0, finished=[s.done[k] for k in range(n)])
        (folder/'_manifest.json').write_text(json.dumps(m, indent=1))
    return s

def test_old_folders_go_on(few, tmp_path):
    "With more shards than a manifest would hold today: half done, and complete with a shard that is damaged"
    n = 50
    old = old_folder(tmp_path/'half', n, range(40))
    for check in (False, True):
        s = begin(tmp_path/'half', n)
        assert s.look(check)==list(range(40, n)) and s.done==old.done
    make(s, range(40, n))
    assert s.look()==[]
    s.finish()
    assert pd.read_parquet(tmp_path/'half').x.tolist()==[float(k) for k in range(n) for _ in range(SIZE)]
    assert begin(tmp_path/'half', n).look(check=True)==[]
    old_folder(tmp_path/'complete', n, range(n), complete=True)
    assert len(SavedTable(tmp_path/'complete'))==n*SIZE
    s = begin(tmp_path/'complete', n)
    assert s.look()==[]
    s.part(1).write_bytes(b'damaged')
    assert s.look(check=True)==[1]
    make(s, [1])
    assert s.look()==[]
    s.finish()
    m = json.loads((tmp_path/'complete'/'_manifest.json').read_text())
    assert m['version']==2 and m['records']['shards']==n and 'finished' not in m
    assert begin(tmp_path/'complete', n).look(check=True)==[]

def test_bad_rows_are_found_without_checksums(quick, tmp_path):
    s = begin(tmp_path/'t', 20)
    make(s, range(1, 7))
    s.raise_if_bad()
    make(s, [14])
    with pytest.raises(ImageError, match='no file 14.png'): begin(tmp_path/'t', 20).raise_if_bad()
    s.part(14).write_bytes(b'damaged')
    begin(tmp_path/'t', 20).raise_if_bad()

def test_other_readers_see_one_table(few, tmp_path):
    "Whatever lies beside the shards, half done or finished"
    s = begin(tmp_path/'t', 30)
    make(s, range(25))
    assert len(pd.read_parquet(tmp_path/'t'))==25*SIZE
    make(s, range(25, 30))
    s.look()
    s.finish()
    assert len(pq.read_table(tmp_path/'t'))==30*SIZE
    assert len(pd.read_parquet(tmp_path/'t', columns=['x']))==30*SIZE

@pytest.mark.slow
def test_twenty_thousand_shards(quick, tmp_path):
    "A folder of 10^9 rows: beginning again, looking and ending take few files and little memory"
    n = 20_000
    s = begin(tmp_path/'t', n)
    s.write(0, rows(0))
    data = s.part(0).read_bytes()
    record = dict(s.done[0], rows=SIZE)
    log = next((tmp_path/'t'/'_progress').glob('*.jsonl'))
    with open(log, 'a') as f:
        for k in range(1, n-1):
            s.part(k).write_bytes(data)
            f.write(json.dumps(dict(shard=k, **record))+'\n')
    tracemalloc.start()
    again = begin(tmp_path/'t', n)
    assert cost(again.look)<10 and again.look()==[n-1]
    assert cost(again.look)<8
    make(again, [n-1])
    assert again.look()==[]
    assert cost(again.finish)<20
    assert begin(tmp_path/'t', n).look()==[]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak<120*2**20, peak
    assert (tmp_path/'t'/'_manifest.json').stat().st_size<2000
