"""The cache of decoded images: what is killed, damaged, changed, shared, too large or gone; and images that break while
a model is trained"""
import os, shutil, signal, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd, preloaded, pytest, torch
from filelock import FileLock
from zoofast.core.errors import CatalogError
from zoofast.core.files import fingerprint
from zoofast.data.loaders import GalaxyDataLoaders
from zoofast.core.errors import ImageError
from zoofast.images.reader import ImageReader
from zoofast.data.store import ImageStore
from zoofast.data.cache import clear_cache, list_cache

READER = ImageReader(48, margin=1.2)

class Counts(ImageReader):
    "A reader that notes which files it opened, whichever process it is in"
    folder = tempfile.TemporaryDirectory()
    log = Path(folder.name)/'log'
    def wide(self, path):
        with open(self.log, 'ab') as f: f.write(os.fsencode(path)+b'\n')
        return super().wide(path)

def opened(files, cache, **kwargs):
    "The store, and the files that were opened for it"
    Counts.log.write_bytes(b'')
    store = ImageStore(files, Counts(48, margin=1.2), cache, progress=False, **kwargs)
    return store,{os.fsdecode(o) for o in Counts.log.read_bytes().splitlines()}

def check(store, files=None):
    for i,f in enumerate(store.files): assert torch.equal(store[[i]][0], READER.wide(f)), f

def many(df, folder, n):
    "`n` files of a survey's pictures under names of their own"
    folder.mkdir()
    files = [folder/f'{i}.jpg' for i in range(n)]
    for i,f in enumerate(files): os.link(df.file_loc[i%len(df)], f)
    return [str(f) for f in files]

@pytest.fixture
def files(survey, tmp_path):
    "Twelve images that a test may break"
    (tmp_path/'images').mkdir()
    return [str(shutil.copy(f, tmp_path/'images')) for f in survey[1].file_loc[:12]]

@pytest.fixture
def moved(survey, tmp_path):
    "A catalogue of sixty galaxies whose images a test may break"
    (tmp_path/'images').mkdir()
    return survey[1].assign(file_loc=[str(shutil.copy(f, tmp_path/'images')) for f in survey[1].file_loc])

def start(code, *args):
    "A process that runs `code`"
    here = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(o for o in (here, os.environ.get('PYTHONPATH')) if o)
    return preloaded.start(['-c', code, *args], env={'PYTHONPATH': path})

def maps(folder, ext='npy'): return sorted(Path(folder).glob(f'*.{ext}'))

BUILD = '''
import sys, tempfile
from pathlib import Path
from zoofast.images.reader import ImageReader
from zoofast.data.store import ImageStore
files = sorted(map(str, Path(sys.argv[1]).iterdir()))
while len(sys.argv)>3 and not Path(sys.argv[3]).exists(): pass
class Counts(ImageReader):
    log = Path(tempfile.mkdtemp())/'log'
    def wide(self, path):
        with open(self.log, 'a') as f: f.write('x')
        return super().wide(path)
Counts.log.touch()
store = ImageStore(files, Counts(48, margin=1.2), sys.argv[2], progress=False)
print(len(Counts.log.read_text()), len(store.bad), store[range(len(files))].sum().item())
'''

# Building

@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_is_used(survey, tmp_path):
    files,cache = many(survey[1], tmp_path/'many', 4000),tmp_path/'cache'
    cache.mkdir()
    p = start(BUILD, tmp_path/'many', cache)
    while p.poll() is None and not any(o.stat().st_size>10**6 for o in maps(cache, 'part')): time.sleep(0.002)
    os.kill(p.pid, signal.SIGKILL)
    assert p.wait()==-signal.SIGKILL and not maps(cache) and not maps(cache, 'npz'), 'it was killed in the middle'
    assert len(maps(cache, 'part'))==1
    (cache/('0'*32+'.1.part')).write_bytes(b'young'); (cache/('1'*32+'.1.part')).write_bytes(b'old')
    os.utime(cache/('1'*32+'.1.part'), (0, 0))
    store,seen = opened(sorted(files), cache)
    assert seen==set(files) and not store.bad
    assert [o.name for o in maps(cache, 'part')]==['0'*32+'.1.part'], 'what another process may be writing stays'
    assert torch.equal(store[[7]][0], READER.wide(sorted(files)[7]))

@pytest.mark.slow
def test_of_two_processes_one_builds(survey, tmp_path):
    files = many(survey[1], tmp_path/'many', 2000)
    ps = [start(BUILD, tmp_path/'many', tmp_path/'cache', tmp_path/'go') for _ in range(2)]
    time.sleep(1); (tmp_path/'go').touch()
    said = [p.communicate(timeout=120) for p in ps]
    assert [p.returncode for p in ps]==[0, 0], said
    a,b = sorted([int(o) for o in out.split()] for out,_ in said)
    assert (a[0], b[0])==(0, len(files)) and a[1:]==b[1:], 'one reads each file once, the other none'
    assert len(maps(tmp_path/'cache'))==len(maps(tmp_path/'cache', 'npz'))==1
    assert not maps(tmp_path/'cache', 'part')

@pytest.mark.slow
def test_a_process_that_waits_says_so(files, tmp_path, monkeypatch):
    "And goes on when the other is done"
    opened(files, tmp_path/'c')
    path, = maps(tmp_path/'c', 'npz')
    path.unlink()
    lock,said = FileLock(path.with_suffix('.lock')),[]
    lock.acquire()
    monkeypatch.setattr('zoofast.data.store.warnings.warn', lambda text: (said.append(text), lock.release()))
    store,seen = opened(files, tmp_path/'c')
    monkeypatch.undo()
    assert len(said)==1 and 'another process' in said[0] and seen==set(files)
    check(store)

def test_a_changed_file_is_read_again_and_the_rest_is_copied(files, survey, tmp_path):
    opened(files, tmp_path/'c')
    shutil.copyfile(survey[1].file_loc[20], files[3]); os.utime(files[3], (1, 1))
    store,seen = opened(files, tmp_path/'c')
    assert seen=={files[3]}
    check(store)
    assert opened(files, tmp_path/'c')[1]==set(), 'nothing is opened the second time'

def test_a_larger_catalogue_copies_what_is_there(files, tmp_path):
    opened(files[:8], tmp_path/'c')
    store,seen = opened(files[::-1], tmp_path/'c')
    assert seen==set(files[8:])
    check(store)
    assert store.looks=={f: fingerprint(READER.wide(f)) for f in files}

def test_rows_of_another_reader_are_not_copied(files, tmp_path):
    ImageStore(files, ImageReader(48, margin=1.2, crop=0.5), tmp_path/'c', progress=False)
    store,seen = opened(files[1:], tmp_path/'c')
    assert seen==set(files[1:])
    check(store)

def test_a_damaged_row_is_not_copied(files, tmp_path):
    opened(files, tmp_path/'c')
    path, = maps(tmp_path/'c')
    t = path.stat()
    with open(path, 'r+b') as f: f.seek(-100, 2); f.write(b'\x07'*100)
    os.utime(path, ns=(t.st_atime_ns, t.st_mtime_ns))                      # as a failing disk does it
    store,seen = opened(files[::-1], tmp_path/'c')
    assert seen=={files[-1]}
    check(store)

@pytest.mark.parametrize('ext', ['npy', 'npz'])
@pytest.mark.parametrize('damage', ['gone', 'empty', 'short', 'junk', 'flipped'])
def test_a_damaged_map_or_index_is_made_again(files, tmp_path, ext, damage):
    opened(files, tmp_path/'c')
    path, = maps(tmp_path/'c', ext)
    was = path.read_bytes()
    if damage=='gone': path.unlink()
    else:
        at = was.index(b'\x93NUMPY')+20 if ext=='npz' else len(was)//2       # not a date in the zip's own lists
        flipped = was[:at]+bytes([was[at]^255])+was[at+1:]
        path.write_bytes(dict(empty=b'', short=was[:-200], junk=bytes(len(was)), flipped=flipped)[damage])
    store,seen = opened(files, tmp_path/'c')
    assert seen, 'it was noticed'
    check(store)
    assert opened(files, tmp_path/'c')[1]==set()

def test_what_could_not_be_read_is_tried_again(files, tmp_path):
    good,t = Path(files[2]).read_bytes(),os.stat(files[2])
    Path(files[2]).write_bytes(bytes(len(good))); os.utime(files[2], ns=(t.st_atime_ns, t.st_mtime_ns))
    store,_ = opened(files, tmp_path/'c')
    assert list(store.bad)==[files[2]] and files[2] not in store.looks
    with pytest.raises(ImageError, match=files[2]): store[[1, 2]]
    assert list(opened(files, tmp_path/'c')[0].bad)==[files[2]]
    # the disk is back: same size and time
    Path(files[2]).write_bytes(good); os.utime(files[2], ns=(t.st_atime_ns, t.st_mtime_ns))
    store,seen = opened(files, tmp_path/'c')
    assert not store.bad and seen=={files[2]}
    check(store)

def test_a_folder_that_cannot_be_used(files, tmp_path, monkeypatch):
    (tmp_path/'file').touch()
    monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path/'file'))
    with pytest.warns(UserWarning, match='kept in memory.*ZOOFAST_CACHE'): store,_ = opened(files, 'auto')
    assert isinstance(store.pixels, torch.Tensor), 'in memory'
    check(store)
    with pytest.raises(ValueError, match='cannot be used'): opened(files, 'disk')

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid()==0, reason='root may write everywhere')
def test_a_folder_to_read_only(files, tmp_path, monkeypatch):
    monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path))
    opened(files, 'disk')
    (tmp_path/'images').chmod(0o500)
    try:
        assert not opened(files, 'disk')[1], 'what others filled can be used'
        assert isinstance(opened(files[1:], 'auto')[0].pixels, torch.Tensor)
    finally: (tmp_path/'images').chmod(0o700)

def test_relative_paths_and_names_of_every_kind(files, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(files[0]).parent)
    shutil.copy(files[1], 'a b | \u661f.jpg'); os.link(files[2], os.fsdecode(b'latin\xe9.jpg'))
    names = [files[0], 'a b | \u661f.jpg', os.fsdecode(b'latin\xe9.jpg'), Path(files[3]).name]
    store,_ = opened(names, tmp_path/'c')
    assert not store.bad and opened(names, tmp_path/'c')[1]==set() and len(list_cache(tmp_path/'c'))==1
    check(store)

# The limit

def test_the_limit(files, tmp_path, monkeypatch):
    monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path))
    size = ImageStore(files, READER, 'disk', progress=False).pixels.row*len(files)
    monkeypatch.setenv('ZOOFAST_CACHE_GB', str(2.5*size/1e9))
    ImageStore(files, ImageReader(57), 'disk', progress=False)
    time.sleep(0.05)                                                        # the system's file times are coarse
    ImageStore(files, READER, 'disk', progress=False)                                # used again
    busy,_ = list_cache(tmp_path/'images').name
    with FileLock(tmp_path/'images'/f'{busy}.lock'):                        # as if another process were building it
        ImageStore(files, ImageReader(58), 'disk', progress=False)
        assert list(list_cache(tmp_path/'images').reader.str[:2])==['57', '58']
    ImageStore(files, ImageReader(59), 'disk', progress=False)
    assert list(list_cache(tmp_path/'images').reader.str[:2])==['58', '59']

def test_a_set_above_the_limit(files, tmp_path, monkeypatch):
    monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path))
    ImageStore(files[:1], READER, 'disk', progress=False)
    monkeypatch.setenv('ZOOFAST_CACHE_GB', '0.00001')
    with pytest.warns(UserWarning, match='decoded at each use.*ZOOFAST_CACHE_GB'): store,_ = opened(files, 'auto')
    assert store.pixels is None and len(maps(tmp_path/'images'))==1, 'nothing was deleted in vain'
    check(store)
    with pytest.raises(ValueError, match='more than the limit'): opened(files, 'disk')
    monkeypatch.setenv('ZOOFAST_CACHE_GB', 'lots')
    with pytest.raises(ValueError, match="ZOOFAST_CACHE_GB='lots'"): opened(files, 'disk')

ROOM = [(250e9, 4e9, True), (20e9, 2.1e9, True), (250e9, 1.9e9, False), (5e9, 0.4e9, False)]
@pytest.mark.parametrize("total, free, kept", ROOM)
def test_room_on_a_disk_that_is_nearly_full(files, tmp_path, monkeypatch, total, free, kept):
    "A large disk that is 98 % full has room for a small survey; the last gigabytes are left to others"
    room = shutil._ntuple_diskusage(int(total), int(total-free), int(free))
    monkeypatch.setattr(shutil, "disk_usage", lambda p: room)
    if kept: assert not isinstance(ImageStore(files, READER, tmp_path/"c", progress=False).pixels, torch.Tensor)
    else:
        with pytest.raises(ValueError, match="no room for .* of the disk are free"):
            ImageStore(files, READER, tmp_path/"c", progress=False)
        monkeypatch.setenv("ZOOFAST_CACHE", str(tmp_path))
        with pytest.warns(UserWarning, match="kept in memory, and decoded again in the next run: no room"):
            store = ImageStore(files, READER, progress=False)
        check(store)

@pytest.mark.slow
def test_reading_a_map_takes_no_memory(survey, tmp_path):
    many(survey[1], tmp_path/'many', 1500)
    code = '''
import os, sys, psutil, torch
from pathlib import Path
from zoofast.images.reader import ImageReader
from zoofast.data.store import ImageStore
store = ImageStore(sorted(map(str, Path(sys.argv[1]).iterdir())), ImageReader(256), sys.argv[2], progress=False)
store[range(32)]; rss = psutil.Process().memory_info().rss
for i in range(0, 1500, 30): store[range(i, i+30)]
print((psutil.Process().memory_info().rss-rss)/1e6, store.pixels.row*1500/1e6)
'''
    pytest.importorskip('psutil')
    out,err = start(code, tmp_path/'many', tmp_path/'c').communicate(timeout=120)
    more,size = map(float, out.split())
    assert size>250 and more<40, f'{more} MB more after reading {size} MB'

# Listing and clearing

@pytest.mark.slow
def test_list_and_clear(files, tmp_path, run_zoofast):
    for n in (12, 5): ImageStore(files[:n], READER, tmp_path, progress=False)
    np.save(tmp_path/'mine.npy', np.zeros(3))
    os.utime(maps(tmp_path, 'npz')[0], (1, 1))
    found = list_cache(tmp_path)
    assert set(found.images)=={12, 5} and found.last_used.is_monotonic_increasing
    assert (found.files==str(Path(files[0]).parent)).all()
    assert len(list_cache(tmp_path, older_than=1))==1
    res = run_zoofast('cache', '--dir', tmp_path)
    assert res.returncode==0 and '48 px, 3 channels, stretch auto' in res.stdout
    assert '2 set(s) of images' in res.stdout and 'the limit is 50 GB' in res.stdout
    res = run_zoofast('cache', '--dir', tmp_path, '--clear', '--older-than', 1)
    assert res.returncode==0 and '1 set(s)' in res.stdout and len(list_cache(tmp_path))==1
    name, = list_cache(tmp_path).name
    with FileLock(tmp_path/f'{name}.lock'):
        assert not len(clear_cache(tmp_path))
        res = run_zoofast('cache', '--dir', tmp_path, '--clear')
        assert res.returncode==2 and 'could not be deleted' in res.stderr and len(list_cache(tmp_path))==1
    assert len(clear_cache(tmp_path))==1
    assert [o.name for o in tmp_path.iterdir() if o.is_file()]==['mine.npy'], "other people's files stay"
    for args in (['--dir', tmp_path/'no'], ['--older-than', -1]):
        res = run_zoofast('cache', *args)
        assert res.returncode==2 and len(res.stderr.strip().split('\n'))==1

# Images and caches that go away

def loaders(df, **kwargs):
    return GalaxyDataLoaders.from_catalog(df, 'morphology', size=48, batch_size=8, progress=False,
                                          **{'cache': None, 'augment': None, **kwargs})

def test_a_file_that_breaks_is_replaced_with_its_target(moved):
    dls = loaders(moved, on_bad='skip')
    ds = dls.valid_ds
    gone,cut = (ds.store.files[i] for i in ds.numbers[[1, 4]].tolist())
    Path(gone).unlink(); Path(cut).write_bytes(Path(cut).read_bytes()[:300])
    with pytest.warns(UserWarning, match='left out from now on') as said: x,y = dls.valid.one_batch()
    assert len(said)==1 and gone in str(said[0].message) and cut in str(said[0].message)
    want = torch.stack([dls.reader(ds.store.files[i]) for i in ds.numbers[[0, 0, 2, 3, 2, 5, 6, 7]].tolist()])/255
    assert torch.equal(x.cpu(), want) and y.tolist()==ds.y[[0, 0, 2, 3, 2, 5, 6, 7]].tolist()
    assert set(dls.store.bad)=={gone, cut}
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(dls.valid.one_batch()[0], x), 'said once'
    for i in ds.numbers[:8].tolist(): Path(ds.store.files[i]).unlink(missing_ok=True)
    with pytest.raises(ImageError, match='none of the 8 images'): dls.valid.one_batch()

@pytest.mark.parametrize('on_bad', ['skip', 'raise'])
def test_training_on_files_that_break(moved, on_bad):
    from fastai.callback.core import Callback
    from zoofast.training.finetune import galaxy_learner
    class Break(Callback):
        def after_batch(self):
            if self.training and self.epoch==0 and self.iter==1:
                broken.append(dls.store.files[dls.train_ds.numbers[0]])
                Path(broken[0]).unlink()
    broken,dls = [],loaders(moved, on_bad=on_bad)
    learn = galaxy_learner(dls, 'test_resnet', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        if on_bad=='raise':
            with pytest.raises(ImageError, match='there is no file') as e: learn.fit(3, cbs=Break())
            assert broken[0] in str(e.value)
        else:
            with pytest.warns(UserWarning, match='left out from now on'): learn.fit(3, cbs=Break())
            assert list(dls.store.bad)==broken and len(learn.recorder.values)==3

@pytest.mark.parametrize('how', ['deleted', 'cut off'])
def test_a_cache_that_goes_away_while_it_is_used(files, tmp_path, how):
    store,_ = opened(files, tmp_path/'c')
    path, = maps(tmp_path/'c')
    if how=='deleted':
        shutil.rmtree(tmp_path/'c')
        check(store)                                     # the file that is open stays
        return
    with open(path, 'r+b') as f: f.truncate(1000)
    with pytest.warns(UserWarning, match='cannot be read any more'): check(store)
    Path(files[5]).unlink()
    with pytest.raises(ImageError, match=files[5]): store[[4, 5]]

def test_rows_that_cannot_be_used_are_said_before_training(moved):
    for f in moved.file_loc[:13]: Path(f).write_bytes(b'<html>')
    with pytest.raises(CatalogError) as e: loaders(moved)
    said = str(e.value).split('\n')
    assert said[0].startswith('13 of 60 rows') and len(said)==12
    assert all(i in o for i,o in zip(moved.id_str, said[1:11])) and said[11].strip()=='... and 3 more'
    assert "on_bad='skip'" in said[0] and '--on-bad skip' in said[0]
    with pytest.warns(UserWarning, match='left out: .*and 3 more'): dls = loaders(moved, on_bad='skip')
    assert len(dls.catalog)==47 and len(dls.bad)==13

# The same picture under two names

def test_the_same_picture_stays_in_one_split(survey, moved):
    df = pd.concat([survey[1], moved.assign(id_str='twin-'+moved.id_str)], ignore_index=True)
    for cache in ('auto', None, 'memory'):
        out = loaders(df, cache=cache, valid=0.3).catalog
        pairs = out.groupby(out.id_str.str.removeprefix('twin-'))
        assert (pairs.split.nunique()==1).all() and set(out.split)=={'train', 'valid'}
        assert out.file_loc.tolist()==df.file_loc.tolist()
    # groups join what pictures do not
    out = loaders(df.assign(host=np.arange(120)//2), group_col='host').catalog
    assert (out.groupby(np.arange(120)%60//2).split.nunique()==1).all()

def test_a_leak_in_a_split_of_ones_own_is_said(survey, moved):
    df = pd.concat([survey[1], moved[:3].assign(id_str=['x', 'y', 'z'])], ignore_index=True)
    df['split'] = ['train']*40+['valid']*20+['valid', 'valid', 'train']
    with pytest.warns(UserWarning, match=r'more than one split.*2 picture\(s\)') as said: out = loaders(df).catalog
    assert f'{df.id_str[0]} (train) and x (valid)' in str(said[0].message) and out.split.tolist()==df.split.tolist()
