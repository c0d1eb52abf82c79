"""Features compressed, searched and mapped: against scikit-learn and brute force, in memory and streamed, whole and
damaged"""
import json, subprocess, sys
from importlib.util import find_spec
import numpy as np, pandas as pd, pytest
from sklearn.decomposition import PCA
from zoofast.predict import features as representations, maps, similar
from zoofast.core.errors import CatalogError
from zoofast.predict.maps import map_features, plot_map
from zoofast.predict.features import FeatureTable, compress_features, read_pca
from zoofast.predict.similar import SimilarIndex, build_index, find_similar

faiss = pytest.mark.skipif(not find_spec('faiss'), reason='needs faiss')

def table_of(x, name='feat_{:04d}', bad=()):
    "A table of features as `represent` writes it; the rows `bad` have an error"
    df = pd.DataFrame(np.asarray(x, dtype=np.float32), columns=[name.format(i) for i in range(x.shape[1])])
    df.insert(0, 'id_str', [f'g{i:06d}' for i in range(len(x))])
    df.insert(1, 'file_loc', [f'images/{i}.jpg' for i in range(len(x))])
    df['error'] = pd.Series([None]*len(x), dtype=object)
    df.loc[list(bad), 'error'] = 'images/no.jpg: truncated'
    df.loc[list(bad), df.columns[2:-1]] = np.nan
    return df

@pytest.fixture(scope='module')
def x(): return np.random.default_rng(0).normal(size=(1000, 40))*np.linspace(3, .1, 40)+5

@pytest.fixture(scope='module')
def feats(x): return table_of(x, bad=[3, 500])

def shards(df, folder, n=300, complete=True):
    folder.mkdir()
    for k,i in enumerate(range(0, len(df), n)): df.iloc[i:i+n].to_parquet(folder/f'part-{k:06d}.parquet', index=False)
    (folder/'_manifest.json').write_text(json.dumps({'complete': complete}))
    return folder

def pcas(df): return df.filter(like='pca_').to_numpy()

def test_pca_is_scikit_learns(feats, x):
    got,ok = compress_features(feats, 8, progress=False),feats.error.isna().to_numpy()
    sk = PCA(8, svd_solver='covariance_eigh').fit(x[ok])
    np.testing.assert_allclose(pcas(got)[ok], sk.transform(x[ok]), atol=2e-4)
    np.testing.assert_allclose(read_pca(got).ratio, sk.explained_variance_ratio_, rtol=1e-5)
    assert np.isnan(pcas(got)[~ok]).all() and got.error[3]=='images/no.jpg: truncated'
    assert got.id_str.tolist()==feats.id_str.tolist()

@pytest.mark.parametrize('far', [0, 1e3])
def test_far_from_zero_keeps_its_digits(x, far):
    got = read_pca(compress_features(table_of(x+far), 5, progress=False)).ratio
    np.testing.assert_allclose(got, PCA(5).fit(x).explained_variance_ratio_, rtol=1e-3)

def test_streamed_equals_in_memory(feats, tmp_path, monkeypatch):
    whole = compress_features(feats, 8, progress=False)
    small = FeatureTable.pieces
    monkeypatch.setattr(FeatureTable, 'pieces', lambda self, rows=None: small(self, 77))
    feats.to_parquet(tmp_path/'f.parquet', index=False)
    feats.to_csv(tmp_path/'f.csv', index=False)
    monkeypatch.setattr(representations, 'RETURNED', 10)
    for source in (tmp_path/'f.parquet', shards(feats, tmp_path/'shards'), tmp_path/'f.csv'):
        out = compress_features(source, 8, out=tmp_path/'out.parquet', progress=False)
        assert out.path==tmp_path/'out.parquet' and out.n_bad==2 and len(out)==1000
        back = pd.read_parquet(out.path)
        assert list(back)==list(whole) and back.id_str.tolist()==whole.id_str.tolist() and back.error.isna().sum()==998
        np.testing.assert_allclose(pcas(back), pcas(whole), atol=1e-4)
        np.testing.assert_allclose(pcas(compress_features(feats, pca=out, progress=False)), pcas(back), atol=1e-4)
        assert not list(tmp_path.glob('.*')), 'nothing unfinished stays'

@pytest.mark.parametrize('name', ['p.parquet', 'p.csv', 'p.csv.gz'])
def test_pca_goes_with_the_table(feats, tmp_path, name):
    first = compress_features(feats.iloc[:600], 6, out=tmp_path/name, progress=False)
    for kept in (first, tmp_path/name, read_pca(first)):
        later = compress_features(feats.iloc[590:], pca=kept, progress=False)
        np.testing.assert_array_equal(pcas(later)[:10], pcas(first)[590:])
    if name=='p.parquet': assert len(read_pca(pd.read_parquet(tmp_path/name)))==6

def test_repeats_and_survives_order(feats):
    a,b = compress_features(feats, 6, progress=False),compress_features(feats, 6, progress=False)
    np.testing.assert_array_equal(pcas(a), pcas(b))
    turned = compress_features(feats.iloc[::-1], 6, progress=False)
    np.testing.assert_allclose(pcas(turned)[::-1], pcas(a), atol=1e-3)

COUNTS = [(40, None), (41, 'at most 40'), (0, 'n=0'), (True, 'n=True'), (1.5, 'n=1.5'), ('8', "n='8'")]
@pytest.mark.parametrize('n,said', COUNTS)
def test_number_of_components(feats, n, said):
    if said is None: assert len(read_pca(compress_features(feats, n, progress=False)))==n; return
    with pytest.raises(ValueError, match=said): compress_features(feats, n, progress=False)

def test_what_is_no_table_of_features(feats, tmp_path):
    (tmp_path/'empty').mkdir()
    half = shards(feats, tmp_path/'half', complete=False)
    cases = [
        (feats[['id_str', 'file_loc']], 'no features'),
        (feats.drop(columns='id_str'), "no column 'id_str'"),
        (tmp_path/'no.parquet', 'no such'),
        (tmp_path/'empty', 'no parquet files'),
        (feats.assign(feat_0003='x'), 'must be numbers'),
        (half, 'not finished')]
    for bad,said in cases:
        with pytest.raises(CatalogError, match=said): compress_features(bad, 4, progress=False)
    (tmp_path/'broken.parquet').write_bytes(b'PAR1 and then nothing')
    with pytest.raises(CatalogError, match='cannot be read as parquet'):
        find_similar(tmp_path/'broken.parquet', 'g000001')

def brute(x, i, k, skip):
    u = x-np.nanmean(x, 0)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    s = np.nan_to_num(u@u[i], nan=-9)
    s[list(skip)] = -9
    top = np.argsort(-s, kind='stable')[:k]
    return top,s[top]

def trials_by_place(feats, tmp_path):
    "The same galaxies in memory, on the disk and in an index"
    yield feats
    yield shards(feats, tmp_path/'shards')
    yield build_index(feats, tmp_path/'index', progress=False)

def test_find_similar_is_brute_force(feats, tmp_path):
    x = feats.filter(like='feat_').to_numpy(dtype=np.float64)
    for where in trials_by_place(feats, tmp_path):
        for i in (0, 17, 999):
            got = find_similar(where, f'g{i:06d}', 12)
            rows,sims = brute(x, i, 12, [i])
            assert got.id_str.tolist()==[f'g{r:06d}' for r in rows] and got.file_loc[0]==f'images/{rows[0]}.jpg'
            np.testing.assert_allclose(got.similarity, sims, atol=1e-5)
        many = find_similar(where, ['g000005', 'g000017'], 3)
        assert many['query'].tolist()==['g000005']*3+['g000017']*3
        assert many.id_str[3:].tolist()==find_similar(where, 'g000017', 3).id_str.tolist()
        vector = find_similar(where, x[17], 3)
        assert vector.id_str[0]=='g000017' and vector.similarity[0]==pytest.approx(1, abs=1e-5)
        assert not {'g000005', 'g000017'}&set(find_similar(where, ['g000005', 'g000017'], 5, mean=True).id_str)
        assert len(find_similar(where, 'g000005', 5000))==997, 'all others that have features'

def test_twins_come_first(x, tmp_path):
    y = np.vstack([x, x[17], x[17]])
    for where in trials_by_place(table_of(y), tmp_path):
        got = find_similar(where, 'g000017', 4)
        assert got.id_str[:2].tolist()==['g001000', 'g001001']
        assert got.similarity[:2].tolist()==pytest.approx([1, 1], abs=1e-5) and got.similarity[2]<1

def test_errors_of_find_similar(feats, tmp_path):
    for where in trials_by_place(feats, tmp_path):
        with pytest.raises(CatalogError, match='did you mean g0000'): find_similar(where, 'g00001', 3)
        with pytest.raises(CatalogError, match='g000003.*truncated'): find_similar(where, ['g000001', 'g000003'])
        for k in (0, True, 2.5):
            with pytest.raises(ValueError, match='k='): find_similar(where, 'g000001', k)
        with pytest.raises(ValueError, match='40 features'): find_similar(where, np.zeros(7))
        with pytest.raises(ValueError, match='not finite'): find_similar(where, np.full(40, np.nan))
        for id in (None, np.nan):
            with pytest.raises(ValueError, match='give a galaxy.s identifier'): find_similar(where, id)

@pytest.fixture(scope='module')
def clusters():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(300, 32))
    return table_of(centres[rng.integers(0, 300, 50_000)]+.5*rng.normal(size=(50_000, 32)), 'pca_{:03d}', bad=[9])

@faiss
def test_recall_of_an_approximate_index(clusters, tmp_path):
    index = build_index(clusters, tmp_path/'i', kind='approximate', progress=False)
    asked = [f'g{i:06d}' for i in range(100, 300)]
    assert index.kind=='approximate' and index.about['visited']<index.about['cells']/4, 'it is no complete search'
    a,b = find_similar(tmp_path/'i', asked, 10),find_similar(clusters, asked, 10)
    assert len(a)==2000 and not (a['query']==a.id_str).any()
    assert len(set(zip(a['query'], a.id_str))&set(zip(b['query'], b.id_str)))/2000>.9
    both = a.merge(b, on=['query', 'id_str'])
    np.testing.assert_allclose(both.similarity_x, both.similarity_y, atol=1e-5)
    with pytest.raises(CatalogError, match='truncated'): find_similar(index, 'g000009')

def test_without_faiss(clusters, tmp_path, monkeypatch):
    monkeypatch.setattr(similar, 'find_spec', lambda name: None)
    monkeypatch.setattr(similar, 'EXACT_UP_TO', 100)
    index = build_index(clusters, tmp_path/'i', progress=False)
    assert index.kind=='exact' and len(find_similar(index, 'g000100', 5))==5
    with pytest.raises(ValueError, match='pip install'): build_index(clusters, tmp_path/'j', kind='approximate')

@pytest.mark.parametrize('kind', ['exact', pytest.param('approximate', marks=faiss)])
@pytest.mark.parametrize('how', ['cut', 'flip', 'gone', 'json', 'version', 'entry'])
def test_damaged_index(feats, tmp_path, kind, how):
    folder = build_index(feats, tmp_path/'i', kind=kind, progress=False).folder
    data,about = folder/('vectors.npy' if kind=='exact' else 'index.faiss'),folder/'index.json'
    b = data.read_bytes()
    if how=='cut': data.write_bytes(b[:-100])
    elif how=='flip': data.write_bytes(b[:-50]+bytes([b[-50]^1])+b[-49:])
    elif how=='gone': (folder/'galaxies.arrow').unlink()
    elif how=='json': about.write_text(about.read_text()[:100])
    else:
        d = json.loads(about.read_text())
        if how=='version': d['version'] = 99
        else: del d['mean']
        about.write_text(json.dumps(d))
    with pytest.raises(CatalogError, match='is damaged'): find_similar(folder, 'g000001')

def test_an_index_is_replaced_whole(feats, tmp_path):
    build_index(feats, tmp_path/'i', progress=False)
    assert len(build_index(feats.head(50), tmp_path/'i', progress=False))==49
    with pytest.raises(CatalogError): build_index(feats.assign(feat_0000='x'), tmp_path/'i', progress=False)
    assert len(SimilarIndex(tmp_path/'i'))==49 and [o.name for o in tmp_path.iterdir()]==['i']
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('x')
    with pytest.raises(CatalogError, match='no index'): build_index(feats, tmp_path/'mine', progress=False)

@pytest.mark.slow(but=1)
@faiss
@pytest.mark.parametrize('first', ['torch', 'faiss'])
def test_faiss_and_torch_live_together(first):
    "Both bring an OpenMP of their own"
    code = f"""import {first}, torch, faiss, numpy as np
x = np.random.default_rng(0).normal(size=(20000, 32)).astype('f4')
i = faiss.IndexIVFFlat(faiss.IndexFlatIP(32), 32, 50, faiss.METRIC_INNER_PRODUCT); i.train(x); i.add(x)
torch.nn.Conv2d(3, 32, 3)(torch.randn(8, 3, 64, 64)).sum().backward()
print(int((i.search(x[:500], 1)[1][:,0]>=0).sum()))
print(float((torch.from_numpy(x)@torch.from_numpy(x[:9]).T).isfinite().all()))"""
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert res.returncode==0 and res.stdout.split()==['500', '1.0'], res.stderr

@pytest.mark.parametrize('method', ['tsne', 'pca'])
def test_map(feats, method):
    rng = np.random.default_rng(0)
    y = np.vstack([rng.normal(size=(60, 20))+8*rng.normal(size=20) for _ in range(3)])
    df,kind = table_of(y, bad=[4]),np.repeat(np.arange(3), 60)
    a,b = (map_features(df, method, progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(a, b)
    assert a.id_str.tolist()==df.id_str.tolist() and a.x.isna().sum()==1
    xy,ok = a[['x', 'y']].to_numpy(),a.x.notna().to_numpy()
    d = np.linalg.norm(xy[ok][:,None]-xy[ok], axis=2)+np.diag([np.inf]*ok.sum())
    assert (kind[ok][d.argmin(1)]==kind[ok]).mean()>.98

@pytest.mark.slow
@pytest.mark.skipif(not find_spec('umap'), reason='needs umap')
def test_umap_repeats_and_is_quiet(feats, recwarn, capfd):
    a,b = (map_features(feats, 'umap', progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(a, b)
    assert not list(recwarn) and not any(capfd.readouterr())

def test_no_umap(feats, monkeypatch):
    monkeypatch.setattr(maps, 'find_spec', lambda name: None)
    monkeypatch.setattr(maps, 'MOST_TSNE', 100)
    with pytest.raises(ValueError, match=r'pip install zoofast\[map\]'): map_features(feats, progress=False)

@pytest.mark.slow
def test_a_survey_from_end_to_end(survey, tmp_path, run_zoofast):
    "represent, compress, search, map and draw, with an image that is gone"
    import matplotlib
    matplotlib.use('Agg')
    from zoofast.predict.table import represent
    df = survey[1].copy()
    df.loc[5, 'file_loc'] = str(tmp_path/'gone.jpg')
    represent('tf_efficientnet_lite0', df, out=tmp_path/'f.parquet', size=64, progress=False)
    small = compress_features(tmp_path/'f.parquet', 16, out=tmp_path/'s.parquet', progress=False)
    assert len(small)==60 and small.pca_000.isna().sum()==1
    m = map_features(tmp_path/'s.parquet', progress=False)
    assert m.x.isna().tolist()==[i==5 for i in range(60)]
    ax = plot_map(m, df.morphology)
    assert [t.get_text() for t in ax.get_legend().get_texts()]
    assert sum(len(c.get_offsets()) for c in ax.collections)==59
    assert len(plot_map(m, images=True, n_side=5).images)>=4
    assert len(plot_map(m, df.mag_r).figure.axes)==2
    build_index(tmp_path/'s.parquet', tmp_path/'index', progress=False)
    id = df.id_str[8]
    for where in ('s.parquet', 'index'):
        res = run_zoofast('similar', tmp_path/where, id, '--k', 3, '--out', tmp_path/'like.csv',
                          '--picture', tmp_path/'like.png')
        assert res.returncode==0, res.stderr
        like = pd.read_csv(tmp_path/'like.csv', dtype={'id_str': str})
        assert like.id_str.tolist()==find_similar(small, id, 3).id_str.tolist()
        assert like.id_str[0] in res.stdout and (tmp_path/'like.png').stat().st_size>5000
    res = run_zoofast('similar', tmp_path/'s.parquet', df.id_str[5])
    assert res.returncode==2 and 'has no features' in res.stderr and 'gone.jpg' in res.stderr
