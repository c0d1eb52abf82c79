"""Predictions for a catalogue of any size: killed and resumed, shared by processes, whatever the pieces, in little
memory"""
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, preloaded, pyarrow.parquet as pq, pytest, torch
from zoofast.bundles.bundle import load_bundle
from zoofast.core.errors import CatalogError
from zoofast.catalog.read import read_catalog
from zoofast.encoders.sources import create_encoder
from zoofast.core.errors import ImageError
from zoofast.predict.table import predict_catalog, represent
from zoofast.catalog.write import SavedTable
from zoofast.simulate import simulate_survey
from zoofast.catalog.stream import CatalogStream
from tiny import tiny_bundle

ROOT = Path(__file__).resolve().parent.parent
ROWS,SHARD,BAD = 3001,100,[7, 1500, 2999]

@pytest.fixture(scope='module')
def sky(tmp_path_factory):
    "A bundle, and a catalogue of 3001 rows that point to 20 images, three to none"
    tmp = tmp_path_factory.mktemp('sky')
    df = read_catalog(simulate_survey(tmp/'survey', n=20, size=32, fits=False, progress=False))
    tiny_bundle(tmp/'bundle', df)
    big = pd.DataFrame({
        'id_str': [f'{587722981736579107+i:021d}' for i in range(ROWS)],
        'file_loc': np.resize(df.file_loc.to_numpy(), ROWS),
        'z': np.arange(ROWS)/7,
        'n': np.arange(ROWS)*10**15,
        'name': [f'galaxy "{i}", north' for i in range(ROWS)]})
    big.loc[BAD, 'file_loc'] = [f'gone{i}.jpg' for i in BAD]
    big.to_csv(tmp/'big.csv', index=False)
    big.to_parquet(tmp/'big.parquet', row_group_size=333)
    (tmp/'parts').mkdir()
    for i in range(3): big[i*1200:(i+1)*1200].to_parquet(tmp/'parts'/f'p{i}.parquet', index=False)
    whole = big.assign(file_loc=[f if os.path.isabs(f) else str(tmp/f) for f in big.file_loc])
    return tmp,big,predict_catalog(tmp/'bundle', whole, progress=False)

def same(got, want):
    "The same rows in the same order, and predictions equal to 1e-6"
    assert len(got)==len(want) and got.id_str.tolist()==want.id_str.tolist()
    assert got.file_loc.tolist()==want.file_loc.tolist()
    assert got.error.isna().tolist()==want.error.isna().tolist()
    assert got.morphology_pred.fillna('').tolist()==want.morphology_pred.fillna('').tolist()
    probs = [c for c in want if c.startswith('morphology_') and c!='morphology_pred']
    np.testing.assert_allclose(got[probs].to_numpy(float), want[probs].to_numpy(float), atol=1e-6)

def command(tmp, *args, catalog='big.parquet', launcher=()):
    path = os.pathsep.join(o for o in (str(ROOT), os.environ.get('PYTHONPATH')) if o)
    env = {'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    words = ['-m', 'zoofast.cli', 'predict', tmp/'bundle', tmp/catalog, *args]
    if not launcher: return preloaded.start(words, env=env)
    return subprocess.Popen([*map(str, [sys.executable, *launcher, *words])], env={**os.environ, **env}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def kill_at(process, folder, n):
    "Kill it, as nothing can be caught, once `n` shards are there"
    while len(list(folder.glob('part-*.parquet')))<n:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return len(list(folder.glob('part-*.parquet')))

JOINED = pytest.param('table.parquet', 'big.parquet', marks=pytest.mark.slow)
@pytest.mark.slow
@pytest.mark.parametrize('out,catalog', [('table', 'big.csv'), JOINED])
def test_killed_three_times(sky, tmp_path, out, catalog):
    tmp,big,want = sky
    out = tmp_path/out
    folder = out if out.suffix=='' else tmp_path/f'{out.name}.parts'
    begin = lambda: command(tmp, '--out', out, '--shard-size', SHARD, '--batch-size', 16, catalog=catalog)
    there = [kill_at(begin(), folder, n) for n in (4, 11, 19)]
    assert there[0]<there[1]<there[2]<31, 'it was to be killed on the way'
    if folder==out:
        with pytest.raises(CatalogError, match='not finished'): read_catalog(out)
    kept = {o.name: o.stat().st_mtime_ns for o in folder.glob('part-*.parquet')}
    if folder!=out: assert not out.exists()
    last = command(tmp, '--out', out, catalog=catalog)               # the size of the shards is as it was
    said,err = last.communicate()
    assert last.returncode==0 and '3001 rows written' in said and '3 images could not be read' in said, err
    same(pd.read_parquet(out), want)
    if folder==out:
        assert all((folder/k).stat().st_mtime_ns==v for k,v in kept.items()), 'a shard was made again'
        parts = [f'part-{i:06d}.parquet' for i in range(31)]
        assert sorted(o.name for o in out.iterdir())==['_manifest.json', *parts]
        m = json.loads((out/'_manifest.json').read_text())
        assert m['complete'] and sum(o['rows'] for o in m['finished'])==ROWS
        assert m['finished'][30]['last']==want.id_str.iloc[-1]
    else: assert [o.name for o in tmp_path.iterdir()]==['table.parquet']

@pytest.mark.slow
@pytest.mark.parametrize('catalog', ['big.csv', 'big.parquet', 'parts'])
@pytest.mark.parametrize('shard_size,batch_size', [(1000, 64), (77, 13), (10**6, 4000)])
def test_pieces_do_not_matter(sky, tmp_path, catalog, shard_size, batch_size):
    tmp,big,want = sky
    got = predict_catalog(tmp/'bundle', tmp/catalog, tmp_path/'t', shard_size=shard_size, batch_size=batch_size,
                          columns='all', progress=False)
    assert len(got)==ROWS and got.n_bad==3
    back = pd.read_parquet(tmp_path/'t')
    same(back, want)
    pd.testing.assert_frame_equal(back[['z', 'n', 'name']], big[['z', 'n', 'name']])     # types and all digits
    pd.testing.assert_frame_equal(got.to_pandas(), back)
    assert read_catalog(tmp_path/'t').id_str.tolist()==want.id_str.tolist()

def test_types_are_those_of_all_shards(sky, tmp_path):
    "A shard of bad images alone, and numbers of which some are missing"
    tmp,big,_ = sky
    df = big[20:50].reset_index(drop=True)
    df = df.assign(n=pd.array([*[None]*10, *range(2**53+1, 2**53+21)], 'Int64'),
                   ok=pd.array([True, None]*15, 'boolean'),
                   kind=pd.Categorical([*'abc']*10),
                   when=pd.Timestamp('2026-01-01'))
    df.loc[10:19, 'file_loc'] = 'gone.jpg'
    got = predict_catalog(tmp/'bundle', df, tmp_path/'t', shard_size=10, columns=['n', 'ok', 'kind', 'when'],
                          progress=False)
    assert len({str(pq.read_schema(o).remove_metadata()) for o in (tmp_path/'t').glob('*.parquet')})==1
    back = pd.read_parquet(tmp_path/'t')
    pd.testing.assert_frame_equal(back[['n', 'ok', 'when']], df[['n', 'ok', 'when']])
    assert back.kind.astype(str).tolist()==df.kind.astype(str).tolist()
    assert back.morphology_pred.isna().tolist()==[False]*10+[True]*10+[False]*10 and got.n_bad==10

@pytest.mark.slow
def test_two_processes_at_once(sky, tmp_path):
    tmp,_,want = sky
    both = [command(tmp, '--out', tmp_path/'t', '--shard-size', SHARD, '--batch-size', 16) for _ in range(2)]
    for o in both:
        said,err = o.communicate()
        assert o.returncode==0 and '3001 rows written' in said, err
    same(pd.read_parquet(tmp_path/'t'), want)

@pytest.mark.slow
@pytest.mark.parametrize('out', ['t', 't.csv.gz'])
def test_torchrun(sky, tmp_path, out):
    tmp,_,want = sky
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    o = command(tmp, '--out', tmp_path/out, '--shard-size', SHARD, launcher=launcher)
    said,err = o.communicate()
    assert o.returncode==0 and said.count('3001 rows written')==1, err
    got = pd.read_parquet(tmp_path/out) if out=='t' else pd.read_csv(tmp_path/out, dtype={'id_str': str})
    same(got, want)
    assert [o.name for o in tmp_path.iterdir()]==[out]

def test_what_differs_is_said(sky, tmp_path):
    tmp,big,_ = sky
    small = big[:30].assign(file_loc=big.file_loc.iloc[0])
    small.to_csv(tmp_path/'c.csv', index=False)
    def go(bundle=tmp/'bundle', catalog=tmp_path/'c.csv', **kw):
        return predict_catalog(bundle, catalog, tmp_path/'t', progress=False, **kw)
    go(shard_size=10)
    go(batch_size=3)                                                  # no reason to start anew
    for kw,said in (
        (dict(tta=2), "tta was '0' and is '2'"),
        (dict(columns='z'), 'columns was'),
        (dict(shard_size=20), 'rows of each'),
        (dict(image_dir=tmp), 'image_dir'),
    ):
        with pytest.raises(CatalogError, match=said): go(**kw)
    model = load_bundle(tmp/'bundle')
    with torch.no_grad(): model.net.head[1].bias += 1e-3
    with pytest.raises(CatalogError, match='another model.*weights sha256 differs'): go(model)
    small[:29].to_csv(tmp_path/'c.csv', index=False)
    with pytest.raises(CatalogError, match='another catalogue.*rows was'): go()
    with pytest.raises(CatalogError, match='another catalogue'): go(catalog=small[:29])
    assert len(pd.read_parquet(tmp_path/'t'))==30
    assert len(go(resume=False, tta=2))==29
    with pytest.raises(CatalogError, match='holds other files'):
        predict_catalog(tmp/'bundle', tmp_path/'c.csv', tmp, progress=False)
    with pytest.raises(CatalogError, match="'morphology_pred' is also the name"):
        predict_catalog(tmp/'bundle', small.assign(morphology_pred=1), columns='all', progress=False)

@pytest.mark.parametrize('out', ['parts', 'parts/table.parquet', 'parts/deep/table.csv.gz', 'parts/new/'])
def test_no_table_is_made_in_the_folder_of_the_catalogue(sky, tmp_path, out):
    "It would be read as galaxies"
    shutil.copytree(sky[0]/'parts', tmp_path/'parts')
    there = sorted(tmp_path.rglob('*'))
    with pytest.raises(CatalogError, match='is in the folder of the catalogue; give another one'):
        predict_catalog(sky[0]/'bundle', tmp_path/'parts', str(tmp_path/out), progress=False)
    assert sorted(tmp_path.rglob('*'))==there

def test_nothing_is_left_in_a_folder_that_is_refused(sky, tmp_path):
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(CatalogError, match='holds other files, such as notes.txt'):
        predict_catalog(sky[0]/'bundle', sky[1].head(3), tmp_path, progress=False)
    assert [o.name for o in tmp_path.iterdir()]==['notes.txt']

def test_what_cannot_be_is_said_before_anything_is_made(sky, tmp_path):
    tmp,big,_ = sky
    for kw,said in (
        (dict(tta=1.5), 'tta=1.5 must be a whole number from 0 to 8'),
        (dict(tta='4'), "tta='4'"),
        (dict(tta=True), 'tta=True'),
        (dict(mc_dropout=2.5), 'mc_dropout=2.5 must be a whole number'),
        (dict(mc_dropout='x'), "mc_dropout='x'"),
    ):
        with pytest.raises(ValueError, match=said):
            predict_catalog(tmp/'bundle', big[:3], tmp_path/'t', progress=False, **kw)
        with pytest.raises(ValueError, match=said): load_bundle(tmp/'bundle').predict(big.file_loc[:3], **kw)
    for name in ('p.parquett', 'p.feather'):
        with pytest.raises(CatalogError, match='must end in'):
            predict_catalog(tmp/'bundle', big[:3], tmp_path/name, progress=False)
    for catalog in (None, [big.file_loc[0]]):
        with pytest.raises(CatalogError, match='give a DataFrame'):
            predict_catalog(tmp/'bundle', catalog, progress=False)
    assert not any(tmp_path.iterdir())

@pytest.mark.filterwarnings('ignore:overflow')
def test_an_answer_that_is_no_number_is_an_error(sky):
    "A network that overflows for an image says so in its row"
    tmp,big,_ = sky
    model = load_bundle(tmp/'bundle', device='cpu')
    with torch.no_grad():
        model.net.head[1].weight.fill_(3e38)
        model.net.encoder.body.norm.weight.fill_(3e38)
    for engine in ('torch', 'auto'):
        got = predict_catalog(model, big[:9], engine=engine, progress=False, image_dir=tmp)
        assert got.error.notna().all() and 'gone7' in got.error[7]
        assert got.error[:7].eq("the model's answer is no finite number").all()

def test_representations_of_random_weights_and_of_a_file(sky, tmp_path):
    tmp,big,_ = sky
    model = load_bundle(tmp/'bundle', device='cpu')
    torch.save(model.net.encoder.body.state_dict(), tmp_path/'w.pth')
    go = lambda m, **kw: represent(m, big[:5], size=32, progress=False, **kw)
    feats = lambda t: t.filter(like='feat_').to_numpy()
    want = create_encoder('test_vit', 32, pretrained=False)
    from_file = feats(go('test_vit', weights=tmp_path/'w.pth'))
    from_model = feats(go(create_encoder(model.net.encoder.body, 32)))
    np.testing.assert_allclose(from_file, from_model, rtol=1e-6)
    seen = torch.random.get_rng_state()
    random = [feats(go('test_vit', pretrained=False)) for _ in range(2)]       # as two processes have them
    assert random[0].shape==(5, want.num_features) and np.array_equal(*random)
    assert torch.equal(seen, torch.random.get_rng_state())
    for kw in (dict(weights=tmp_path/'w.pth'), dict(pretrained=False)):
        with pytest.raises(ValueError, match='for an encoder'): go(tmp/'bundle', **kw)

CRASH = '''
import os, shutil, signal, sys
from pathlib import Path
import pandas as pd, torch
from zoofast.bundles.bundle import load_bundle
from zoofast.predict.table import predict_catalog
from steps import killed_at
torch.set_num_threads(1)
bundle,rows,home = sys.argv[1],pd.read_parquet(sys.argv[2]),Path(sys.argv[3])
kind,step = sys.argv[4],int(sys.argv[5])
model = load_bundle(bundle, device="cpu")
want = predict_catalog(model, rows, progress=False)
def go(out, die=None): return killed_at(die, lambda: predict_catalog(model, rows, out, shard_size=12, progress=False))
def read(out):
    if out.is_file(): return pd.read_parquet(out)
    return pd.concat([pd.read_parquet(o) for o in sorted(out.glob("part-*"))], ignore_index=True)
n,killed = 1,0
while True:
    folder = home/f"{n}"
    folder.mkdir()
    out = folder/kind
    if not (code := go(out, n)): break
    assert code==-signal.SIGKILL, (n, code)
    if out.is_file(): assert len(read(out))==len(want), n                     # whole or not at all
    assert go(out)==0, n
    pd.testing.assert_frame_equal(read(out), want, check_dtype=False, rtol=1e-6)
    left = {o.name for o in folder.iterdir() if not o.name.endswith(".part") or o.stat().st_size}
    assert left=={kind}, (n, left)
    if out.is_dir():
        others = {o.name for o in out.iterdir() if not o.name.startswith("part-")}
        assert others=={"_manifest.json"}, (n, others)
    shutil.rmtree(folder)
    n,killed = n+step,killed+1
print(killed)
'''

@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('kind', ['t', 't.parquet'])
@pytest.mark.parametrize('step', [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_step(sky, tmp_path, kind, step):
    """Killed before any link, rename, deletion or sync of beginning, shards, joining and end; the same call again gives
    everything, and leaves nothing else"""
    tmp,big,_ = sky
    big[:30].assign(file_loc=big.file_loc.iloc[0]).to_parquet(tmp_path/'rows.parquet')
    (tmp_path/'work').mkdir()
    words = ['-W', 'ignore', '-c', CRASH, tmp/'bundle', tmp_path/'rows.parquet', tmp_path/'work', kind, step]
    env = {'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT/'tests')])}
    done = preloaded.run(words, env=env)
    assert done.returncode==0, done.stderr
    assert int(done.stdout)>=30//step

def test_a_damaged_shard_is_made_again(sky, tmp_path):
    tmp,big,_ = sky
    small = big[:30].assign(file_loc=big.file_loc.iloc[0])
    go = lambda: predict_catalog(tmp/'bundle', small, tmp_path/'t', shard_size=10, progress=False)
    want = go().to_pandas()
    parts = sorted((tmp_path/'t').glob('part-*'))
    data = bytearray(parts[1].read_bytes())
    data[200] ^= 1
    parts[1].write_bytes(data)
    parts[2].unlink()
    with pytest.raises(CatalogError, match='2 of its 3 parts'): read_catalog(tmp_path/'t')
    pd.testing.assert_frame_equal(go().to_pandas(), want)

def test_on_bad_raise_keeps_what_is_finished(sky, tmp_path):
    tmp,_,want = sky
    go = lambda **kw: predict_catalog(tmp/'bundle', tmp/'big.csv', tmp_path/'t', shard_size=500, progress=False, **kw)
    with pytest.raises(ImageError, match='gone7'): go(on_bad='raise')
    assert not (tmp_path/'t').exists()                                # nothing was finished
    go()
    with pytest.raises(ImageError, match='gone7'): go(on_bad='raise')

def test_features_in_shards(sky, tmp_path):
    tmp,big,_ = sky
    want = represent(tmp/'bundle', big[:200], progress=False, image_dir=tmp)
    got = represent(tmp/'bundle', tmp/'big.csv', tmp_path/'f', shard_size=333, columns='z', progress=False)
    assert isinstance(got, SavedTable) and len(got)==ROWS
    feats = [c for c in want if c.startswith('feat_')]
    back = pd.read_parquet(tmp_path/'f')
    assert (back[feats].dtypes=='float32').all() and back.z.tolist()==big.z.tolist()
    np.testing.assert_allclose(back[feats][:200], want[feats], atol=1e-6)
    assert back[feats].isna().all(axis=1).to_numpy().nonzero()[0].tolist()==BAD

def test_a_stream_reads_what_read_catalog_reads(tmp_path):
    "Ids and paths of awkward csv files, and their types"
    head = 'id_str,file_loc,z,t'
    rows = ['0012,a b.jpg,1,x', '587722981736579107,"é,1.jpg",2.5,"two\nlines"', '9' * 25 + ',/abs/c.jpg,,',
            '-1,../d.jpg,nan,None']
    plain = '\n'.join([head, *rows])
    by_excel = '\ufeff\n\n'+'\r\n'.join([head, *rows])+'\r\n\r\n'
    for name,text in (('a.csv', plain), ('bom.csv', by_excel)):
        (tmp_path/name).write_bytes(text.encode())
        want = read_catalog(tmp_path/name)
        s = CatalogStream(tmp_path/name, columns='all')
        for size in (1, 3, 100):
            got = pd.concat([s.rows(p, k*size).to_pandas() for k,p in s.pieces(size)], ignore_index=True)
            assert got.id_str.tolist()==want.id_str.tolist()
            assert got.file_loc.tolist()==want.file_loc.tolist()
            pd.testing.assert_series_equal(got.z, want.z)
            assert got.t.fillna('').tolist()==want.t.fillna('').tolist()

MEMORY = '''
import resource, sys
from zoofast.predict.table import predict_catalog
predict_catalog(*sys.argv[1:4], progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)
'''

@pytest.mark.slow
@pytest.mark.parametrize('ending', ['', '.parquet', '.csv'])
def test_memory_is_flat(sky, tmp_path, ending):
    "38,000 rows more take no memory beyond one shard of them"
    tmp,big,_ = sky
    def peak(n):
        files = np.resize(big.file_loc[20:40].to_numpy(), n)
        df = pd.DataFrame({'id_str': [f'{i:019d}' for i in range(n)], 'file_loc': files})
        df.to_parquet(tmp_path/f'{n}.parquet', index=False)
        words = [sys.executable, '-c', MEMORY, tmp/'bundle', tmp_path/f'{n}.parquet', tmp_path/f'out{n}{ending}']
        env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
        res = subprocess.run([*map(str, words)], env=env, capture_output=True, text=True)
        assert res.returncode==0, res.stderr
        return float(res.stdout)
    assert peak(40_000)-peak(2_000)<70
