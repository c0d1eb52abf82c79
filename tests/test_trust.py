"What one can rely on (docs/trust.md): kills, two at once, data that change meanwhile, files that others touched"
import hashlib, json, os, shutil, signal, stat, subprocess, sys, time, traceback, warnings
import numpy as np, pandas as pd, preloaded, pytest, torch
from astropy.table import Table
from fastai.callback.core import Callback
from PIL import Image, ImageOps
from test_fastai import data, learner, silent
from test_hostile_bundles import model_of
from test_no_run_lost import COMMAND
import zoofast.core.folders as folders, zoofast.data.store as store_module
from zoofast.all import Classification, GalaxyDataLoaders, predict_catalog
from zoofast.bundles.bundle import FILES, load_bundle, write_bundle
from zoofast.catalog.stream import CatalogStream
from zoofast.core.errors import BundleError, CatalogError
from zoofast.core.files import _host, clear_unfinished, write_whole
from zoofast.data.cache import list_cache
from zoofast.training.runs import read_run, read_state

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

@pytest.mark.slow
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
             f'.b.@{host}.99999999.part.parquet': False, '.a.csv.@elsewhere.99999999.part': True,
             '.part-99999999': False,
             '.mine.part': True, 'a.csv.5.part': True}
    for o in names: (tmp_path/o).write_text('x')
    write_whole(tmp_path/'a.csv', 'id_str\n')
    assert {o.name for o in tmp_path.iterdir()}=={'a.csv', *(o for o,stays in names.items() if stays)}
    sleeper.communicate(b'\n')
    clear_unfinished(tmp_path)
    assert not (tmp_path/f'.a.csv.@{host}.{live}.part').exists()

def test_a_signal_while_torch_writes(tmp_path):
    "At any of its writes: what is raised is the signal, not torch's complaint about a file that is not whole"
    class File:
        def __init__(self, f, n): self.f,self.n = f,n
        def write(self, b):
            self.n -= 1
            if not self.n: raise KeyboardInterrupt
            return self.f.write(b)
        def __getattr__(self, k): return getattr(self.f, k)
    state = {f'{i}': torch.zeros(500) for i in range(5)}
    def save(n):
        def write(part):
            with open(part, 'wb') as f:
                at.append(o := File(f, n))
                torch.save(state, o)
        write_whole(tmp_path/'last.pt', write)
    at = []
    save(0)
    for n in range(1, 1-at[0].n):
        with pytest.raises(KeyboardInterrupt): save(n)
    assert n>10 and [o.name for o in tmp_path.iterdir()]==['last.pt']
    torch.load(tmp_path/'last.pt')

def test_a_bundle_where_folders_cannot_be_moved(tmp_path, monkeypatch):
    "The folder that one is in keeps its place"
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    for _ in range(2): write_bundle('.', model_of(), card='# here')
    assert os.stat('.').st_ino==os.stat(tmp_path/'here').st_ino and (tmp_path/'here'/'config.json').is_file()
    assert {o.name for o in (tmp_path/'here').iterdir()}==set(FILES)
    load_bundle('.', 'cpu')

# ---- two at once

def test_a_folder_is_taken_until_its_last_file_is_written(survey, run_zoofast, tmp_path):
    "While what follows the last epoch is written, a second training is refused, and the first one's files are of one"
    dls = data(survey[1], 'classification')
    learn = learner(dls, save_dir=tmp_path/'run')
    words = ['finetune', survey[0]/'catalog.csv', *COMMAND, '--save-dir', tmp_path/'run', '--overwrite']
    with silent(learn), learn.run_folder.held():
        learn.fit(1)
        res = run_zoofast(*words)
        assert res.returncode==2 and 'another process trains' in res.stderr.splitlines()[-1]
        learn.save_bundle(tmp_path/'run'/'bundle')
    assert read_state(tmp_path/'run')['state']=='finished'

def test_a_bundle_is_not_written_into_another_ones_run(survey, tmp_path):
    dls = data(survey[1], 'classification')
    first = learner(dls, save_dir=tmp_path/'run')
    with silent(first): first.fit(1)
    second = learner(dls, save_dir=tmp_path/'run', overwrite=True, seed=7)
    with silent(second): second.fit(1)
    with pytest.raises(BundleError, match='holds another run by now.*give another folder'):
        first.save_bundle(tmp_path/'run'/'bundle')
    first.save_bundle(tmp_path/'elsewhere')
    second.save_bundle(tmp_path/'run'/'bundle')

PAUSE = '''
import builtins, os, sys, time
def hook(event, args):
    if event=="os.mkdir" and ".bundle." in str(args[0]) and not os.path.exists(go := os.environ["GO"]):
        open(os.environ["AT"], "w").close()
        while not os.path.exists(go): time.sleep(.05)
sys.addaudithook(hook)
from zoofast.cli.main import main
sys.argv[:1] = ["zoofast"]
main()
'''

@pytest.mark.slow
def test_a_second_training_between_the_last_epoch_and_the_bundle(survey, run_zoofast, tmp_path, root):
    run,at,go = (tmp_path/o for o in ('run', 'at', 'go'))
    words = [str(o) for o in ('finetune', survey[0]/'catalog.csv', *COMMAND, '--epochs', 1, '--save-dir', run)]
    p = preloaded.start(['-c', PAUSE, *words, '--seed', 1], env={'PYTHONPATH': root, 'AT': at, 'GO': go})
    while not at.exists() and p.poll() is None: time.sleep(.1)
    second = run_zoofast(*words, '--seed', 2, '--overwrite')
    go.touch()
    said = p.communicate()[1]
    assert p.returncode==0, said
    assert second.returncode==2 and 'another process trains' in second.stderr
    config = read_run(run)['config']
    assert config['seed']==1 and load_bundle(run, 'cpu').config['params']['seed']==1

# ---- what is saved can be loaded

def with_classes(df, names):
    "The survey with other names of its first two classes"
    kinds = sorted(df.morphology.unique())[:len(names)]
    return df.assign(morphology=df.morphology.map(dict(zip(kinds, names))))[df.morphology.isin(kinds)]

def test_a_class_that_could_not_be_loaded_is_refused_before_training(survey, run_zoofast, tmp_path):
    table = with_classes(survey[1], ['a'*1001, 'b', 'c'])
    table.to_csv(tmp_path/'long.csv', index=False)
    res = run_zoofast('finetune', tmp_path/'long.csv', *COMMAND, '--save-dir', tmp_path/'run')
    said = res.stderr.strip().splitlines()[-1]
    assert res.returncode==2 and 'aaaa' in said and '1,001 characters' in said and len(said)<400
    assert 'loading' not in res.stderr and not (tmp_path/'run').exists()
    with pytest.raises(ValueError, match='1,001 characters'): GalaxyDataLoaders.from_catalog(table, 'morphology')
    task = Classification('morphology', ['a'*1001, 'b', 'c'])              # a task is as right as a label
    dls = GalaxyDataLoaders.from_catalog(table, task=task, size=32, batch_size=8, progress=False)
    with pytest.raises(ValueError, match='could not be loaded once it is saved.*1,001 characters'): learner(dls)

@pytest.mark.parametrize('names', [['a'*1000, 'b', 'c'], ['a\n', 'b\x1b[2J', '"c"'], ['ü'*1000, '日本', '🌌']])
def test_the_longest_and_oddest_classes_are_loaded_again(names, survey, tmp_path):
    dls = data_of(with_classes(survey[1], names))
    model = load_bundle(learner(dls).save_bundle(tmp_path/'b'), 'cpu')
    assert set(map(str, model.task.classes))==set(names)

def data_of(df): return GalaxyDataLoaders.from_catalog(df, 'morphology', size=32, batch_size=8, progress=False)

@pytest.mark.parametrize('which', ['task', 'columns'])
def test_whatever_loading_refuses_training_refuses(which, survey):
    dls = data_of(survey[1])
    if which=='task': dls.task.classes = [f'{i:04}' for i in range(20_001)]
    else: dls.source = dict(id_col='i'*1001, file_col=['file_loc'])
    with pytest.raises(ValueError, match='could not be loaded once it is saved'): learner(dls)

# ---- what changes while it is read

@pytest.fixture(scope='module')
def bundle(tmp_path_factory): return write_bundle(tmp_path_factory.mktemp('model')/'b', model_of(), card='# rings')

def catalog_of(survey, n):
    "A catalogue of `n` rows, whose images are a few"
    files = survey[1].file_loc.to_numpy()
    return pd.DataFrame(dict(id_str=[f'g{i:05}' for i in range(n)], file_loc=[files[i%12] for i in range(n)]))

WRITERS = {'csv': lambda df, p: df.to_csv(p, index=False), 'parquet': lambda df, p: df.to_parquet(p, index=False),
           'fits': lambda df, p: Table.from_pandas(df).write(p, overwrite=True)}

def write_as(kind, df, at):
    "The catalogue as one file, or as a folder of six parts; its path"
    if kind!='parts':
        WRITERS[kind](df, at/f'c.{kind}')
        return at/f'c.{kind}'
    (at/'parts').mkdir(exist_ok=True)
    for i in range(6): df.iloc[i*len(df)//6:(i+1)*len(df)//6].to_parquet(at/'parts'/f'{i}.parquet', index=False)
    return at/'parts'

CHANGE = '''
import os, subprocess, sys
done = []
def hook(event, args):
    part = str(args[1]) if event in ("os.rename", "os.link") else ""
    if part.endswith("part-000001.parquet") and not done:
        done.append(1)
        subprocess.run([sys.executable, os.environ["CHANGES"]], check=True)
sys.addaudithook(hook)
from zoofast.cli.main import main
sys.argv[:1] = ["zoofast"]
main()
'''

@pytest.mark.slow
@pytest.mark.parametrize('verb', ['predict', 'represent'])
@pytest.mark.parametrize('kind', ['csv', 'parquet', 'fits', 'parts'])
def test_a_catalogue_that_is_rewritten_between_shards(kind, verb, survey, bundle, tmp_path, root):
    "In another order, with the sizes and the times of before: no table comes out, rather than one of both"
    df = catalog_of(survey, 120)
    catalog,other = write_as(kind, df, tmp_path),tmp_path/'other'
    other.mkdir()
    new = write_as(kind, df.iloc[::-1], other)
    copies = [(o, catalog/o.name) for o in new.iterdir()] if new.is_dir() else [(new, catalog)]
    (tmp_path/'change.py').write_text(
        f"import shutil\nfor a,b in {[(str(a), str(b)) for a,b in copies]}: shutil.copyfile(a, b)\n")
    out = tmp_path/'out.csv'
    words = [str(o) for o in (verb, bundle, catalog, '--out', out, '--shard-size', 20, '--engine', 'torch')]
    def run(*how): return preloaded.run(how, env={'PYTHONPATH': root, 'CHANGES': tmp_path/'change.py'})
    p = run('-c', CHANGE, *words)
    assert p.returncode==2 and 'has changed while it was read' in p.stderr.splitlines()[-1], p.stderr
    assert not out.exists()
    p = run('-m', 'zoofast.cli', *words)
    assert p.returncode==2 and 'another catalogue' in p.stderr
    p = run('-m', 'zoofast.cli', *words, '--no-resume')
    assert p.returncode==0, p.stderr
    assert list(pd.read_csv(out).id_str)==list(df.id_str[::-1])

@pytest.mark.parametrize('kind', ['csv', 'parquet', 'parts'])
def test_a_stream_sees_that_its_catalogue_has_changed(kind, survey, tmp_path):
    df = catalog_of(survey, 60)
    path = write_as(kind, df, tmp_path)
    stream = CatalogStream(path)
    pieces = stream.pieces(10)
    next(pieces)
    stream.check_unchanged()
    then = {o: o.stat() for o in [path, *path.glob('*')] if o.is_file()} if path.is_dir() else {path: path.stat()}
    write_as(kind, df.iloc[::-1], tmp_path)
    for o,s in then.items(): os.utime(o, ns=(s.st_atime_ns, s.st_mtime_ns))        # as if nothing had been
    with pytest.raises(CatalogError, match='has changed while it was read'): stream.check_unchanged()
    if kind!='parts': return                                  # a file of few rows has been read by now
    with pytest.raises(CatalogError, match='has changed while it was read'): list(pieces)

def negatives(df, folder):
    "The survey with its own copies of the images, and what replaces all of them by their negatives"
    folder.mkdir()
    df = df.assign(file_loc=[shutil.copy(o, folder) for o in df.file_loc])
    def change():
        for o in df.file_loc: ImageOps.invert(Image.open(o).convert('RGB')).save(o, quality=92)
    return df,change

def test_a_run_does_not_go_on_with_other_images(survey, tmp_path):
    df,change = negatives(survey[1], tmp_path/'images')
    def go_on(resume):
        learn = learner(data_of(df), save_dir=tmp_path/'run', resume=resume)
        with silent(learn): learn.fit_constant(2)
        return learn
    class Stop(Callback):
        order = 70
        def after_epoch(self): raise KeyboardInterrupt
    first = learner(data_of(df), save_dir=tmp_path/'run', cbs=Stop())
    with silent(first), pytest.raises(KeyboardInterrupt): first.fit_constant(2)
    change()
    with pytest.raises(ValueError, match='the images of the run in .* are not what they were'): go_on(True)

@pytest.mark.slow
def test_images_replaced_between_a_kill_and_resume(survey, run_zoofast, tmp_path, root):
    df,change = negatives(survey[1], tmp_path/'images')
    df.to_csv(tmp_path/'c.csv', index=False)
    run = tmp_path/'run'
    words = [str(o) for o in ('finetune', tmp_path/'c.csv', *COMMAND, '--epochs', 400, '--save-dir', run)]
    p = preloaded.start(['-m', 'zoofast.cli', *words], env={'PYTHONPATH': root})
    while p.poll() is None and not (run/'checkpoints'/'last.pt').exists(): time.sleep(.1)
    p.kill()
    p.wait()
    change()
    res = run_zoofast(*words, '--resume')
    said = res.stderr.strip().splitlines()[-1]
    assert res.returncode==2 and 'the images of the run' in said and 'not what they were' in said, res.stderr

# ---- bits

def test_resume_with_other_threads_says_so_in_one_line(survey, tmp_path):
    dls = data_of(survey[1])
    class Stop(Callback):
        order = 70
        def after_epoch(self): raise KeyboardInterrupt
    first = learner(dls, save_dir=tmp_path/'run', cbs=Stop())
    with silent(first), pytest.raises(KeyboardInterrupt): first.fit_constant(2)
    n = torch.get_num_threads()
    try:
        torch.set_num_threads(n+1)
        again = learner(dls, save_dir=tmp_path/'run', resume=True)
        with silent(again), pytest.warns(UserWarning, match=f'goes on with threads {n+1} .was {n}.*last digits'):
            again.fit_constant(2)
    finally: torch.set_num_threads(n)
    assert f'goes on with threads {n+1} (was {n})' in (tmp_path/'run'/'log.txt').read_text()
    about = json.loads(torch.load(tmp_path/'run'/'checkpoints'/'last.pt', weights_only=True)['about'])
    assert about['machine']['threads']==n+1 and [o['threads'] for o in about['machines']]==[n]
    same = learner(dls, save_dir=tmp_path/'run', resume=True)
    torch.set_num_threads(n+1)
    try:
        with silent(same), warnings.catch_warnings():
            warnings.simplefilter('error')
            same.fit_constant(2)
    finally: torch.set_num_threads(n)

# ---- what others may have touched

def test_a_cache_that_others_may_write_to_is_not_used(survey, tmp_path, monkeypatch):
    monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path/'cache'))
    data_of(survey[1])
    images = tmp_path/'cache'/'images'
    assert {stat.S_IMODE(o.stat().st_mode) for o in (images, images.parent)}=={0o700}
    images.chmod(0o777)
    with pytest.warns(UserWarning, match='can be written by everybody .mode 777.*not trusted and made anew'):
        dls = data_of(survey[1])
    own = tmp_path/'cache'/f'images-{os.getuid()}'
    assert list(own.glob('*.npy')) and stat.S_IMODE(own.stat().st_mode)==0o700 and not dls.store.bad
    assert len(list_cache())==1 and str(own) in str(dls.store.pixels.path)

@pytest.mark.skipif(os.name!='posix' or os.getuid()!=0, reason='only root can give files away')
def test_what_another_user_left_is_not_taken_up(survey, tmp_path, monkeypatch):
    monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path/'cache'))
    data_of(survey[1])
    npy = next((tmp_path/'cache'/'images').glob('*.npy'))
    was = npy.stat().st_ino
    os.chown(npy, 12345, -1)
    data_of(survey[1])
    assert npy.stat().st_ino!=was and npy.stat().st_uid==0

def test_pixels_that_were_changed_are_decoded_again(survey, tmp_path, monkeypatch):
    monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path/'cache'))
    first = data_of(survey[1]).store
    want,path = first[range(len(first.files))].clone(),first.pixels.path
    s,size = path.stat(),3*want.shape[-1]**2
    with open(path, 'rb+') as f:
        f.seek(-7*size, 2)
        f.write(bytes(3*size))
    os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))                # as if nothing had been
    store_module._looked_at.clear()                                  # as in another process
    with pytest.warns(UserWarning, match='3 of 60 images .* decoded again'): again = data_of(survey[1]).store
    assert torch.equal(again[range(len(again.files))], want)

def evil(model, factor=-2.):
    "An ONNX export whose features are others for batches of more than eight"
    import onnx
    from onnx import helper as h, numpy_helper as nh
    m = onnx.load_from_string(model)
    old = m.graph.output[0].name
    for n in m.graph.node: n.output[:] = ['was' if o==old else o for o in n.output]
    const = lambda v, name: m.graph.initializer.append(nh.from_array(v, name))
    const(np.array(0), 'zero'), const(np.array(8), 'eight'), const(np.float32(factor), 'k'), const(np.float32(1), 'one')
    steps = dict(sh='Shape was', n='Gather sh zero', many='Greater n eight', f='Where many k one', **{old: 'Mul was f'})
    for out,step in steps.items(): m.graph.node.append(h.make_node(step.split()[0], step.split()[1:], [out]))
    return m.SerializeToString()

@pytest.mark.parametrize('digest_too', [False, True])
def test_an_altered_export_is_not_used(digest_too, survey, tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path/'cache'))
    model = model_of()
    files = list(survey[1].file_loc)
    want = predict_catalog(model, survey[1], engine='torch', progress=False)
    predict_catalog(model, survey[1], engine='onnx', progress=False)
    kept = next((tmp_path/'cache'/'engines').glob('*.onnx'))
    bad = evil(kept.read_bytes())
    kept.write_bytes(bad)
    if digest_too: kept.with_suffix('.blake2b').write_text(hashlib.blake2b(bad).hexdigest())
    got = predict_catalog(model, survey[1], engine='onnx', progress=False)
    cols = [c for c in want if want[c].dtype.kind=='f']
    assert len(files)>8 and np.abs(want[cols].to_numpy()-got[cols].to_numpy()).max()<1e-4
    assert kept.read_bytes()!=bad
