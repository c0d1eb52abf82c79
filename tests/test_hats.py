"""HATS catalogues, as LSDB writes and reads them: read along the sky with their margins left alone, and written with
the same parts of the sky; killed and resumed, each row is there once"""
import json, os, shutil, signal, sys, time
from pathlib import Path
import numpy as np, pandas as pd, preloaded, pyarrow as pa, pyarrow.parquet as pq, pytest
from zoofast.catalog.read import read_catalog
from zoofast.catalog.stream import CatalogStream
from zoofast.catalog.tables import parquet_parts
from zoofast.core.errors import CatalogError, ImageError
from zoofast.predict.table import predict_catalog, represent
from zoofast.simulate import simulate_survey
from tiny import tiny_bundle
pytest.importorskip('lsdb')
import lsdb

ROOT = Path(__file__).resolve().parent.parent
FIRST = 1237648720693755001                      # of 19 digits: more than a floating-point number holds

def positions(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))

def rows(files, n):
    ra,dec = positions(n)
    return pd.DataFrame({'objid': np.arange(n)+FIRST, 'ra': ra, 'dec': dec, 'mag': np.arange(n)/7,
                         'file_loc': np.resize(np.asarray(files, dtype=object), n)})

def write_sky(df, folder, order, margin=5.):
    "A collection that LSDB writes: the catalogue and its margin"
    cat = lsdb.from_dataframe(df, catalog_name=folder.name, ra_column='ra', dec_column='dec', lowest_order=order,
                              highest_order=order, margin_threshold=margin)
    cat.write_catalog(folder, as_collection=True, progress_bar=False)
    return folder

@pytest.fixture(scope='module')
def sky(tmp_path_factory):
    "Two bundles, and a collection of 60 rows in 12 parts of the sky, one of which points to no file"
    tmp = tmp_path_factory.mktemp('sky')
    df = read_catalog(simulate_survey(tmp/'pictures', n=20, size=32, fits=False, progress=False))
    for i,name in enumerate(('model', 'other')): tiny_bundle(tmp/name, df, i)
    table = rows(df.file_loc, 60)
    table.loc[7, 'file_loc'] = 'gone.jpg'
    write_sky(table, tmp/'survey', 0, margin=36000.)               # so wide that the margin has rows
    return tmp,table

def go(tmp, out=None, model='model', catalog='survey', f=predict_catalog, **kw):
    return f(tmp/model, tmp/catalog, out, id_col='objid', progress=False, **{'shard_size': 16, **kw})

def same(got, want):
    pd.testing.assert_frame_equal(got[list(want)], want, check_dtype=False, rtol=1e-5)

def opened(folder): return lsdb.open_catalog(folder).compute(progress_bar=False).reset_index(drop=True)
def pixels(folder): return [(p.order, p.pixel) for p in lsdb.open_catalog(folder).get_healpix_pixels()]
def part(folder, n): return next(Path(o) for o in parquet_parts(folder) if f'Npix={n}.' in o)

@pytest.mark.slow
def test_rows_come_along_the_sky_and_the_margin_stays_where_it_is(sky):
    tmp,table = sky
    assert len(list((tmp/'survey').rglob('Npix=*.parquet')))>len(parquet_parts(tmp/'survey'))
    want = lsdb.open_catalog(tmp/'survey').compute(progress_bar=False)
    for given in (tmp/'survey', tmp/'survey'/'survey', f'hats://{tmp}/survey'):
        df = read_catalog(given, id_col='objid')
        assert df.id_str.tolist()==[str(o) for o in want.objid] and df.objid.dtype==np.int64
        stream = CatalogStream(given, id_col='objid', columns=['mag', 'objid'])
        got = pa.concat_tables([stream.rows(t) for _,t in stream.pieces(7)]).to_pandas()
        assert got.id_str.tolist()==df.id_str.tolist() and got.mag.tolist()==df.mag.tolist()
        assert got.objid.tolist()==want.objid.tolist() and sorted(got.objid)==table.objid.tolist()

def test_parts_of_several_orders_come_as_lsdb_has_them(tmp_path):
    df = rows(['a.jpg'], 500)
    df['ra'],df['dec'] = np.where(df.index<300, df.ra/20, df.ra), np.where(df.index<300, df.dec/20, df.dec)
    cat = lsdb.from_dataframe(df, ra_column='ra', dec_column='dec', lowest_order=0, highest_order=5, partition_rows=20,
                              margin_threshold=None)
    cat.write_catalog(tmp_path/'c', as_collection=False, progress_bar=False)
    assert len({o for o,_ in pixels(tmp_path/'c')})>2
    assert read_catalog(tmp_path/'c', id_col='objid').objid.tolist()==opened(tmp_path/'c').objid.tolist()

def test_only_the_columns_that_are_asked_for_are_read(sky, tmp_path):
    "A column whose bytes are damaged is in nobody's way"
    tmp,_ = sky
    shutil.copytree(tmp/'survey', tmp_path/'survey')
    file = part(tmp_path/'survey', 3)
    col = pq.read_metadata(file).row_group(0).column(3)
    assert col.path_in_schema=='mag'
    at,b = col.dictionary_page_offset or col.data_page_offset,bytearray(file.read_bytes())
    b[at:at+col.total_compressed_size] = bytes(col.total_compressed_size)
    file.write_bytes(b)
    got = predict_catalog(tmp/'model', tmp_path/'survey', id_col='objid', image_dir=tmp, progress=False)
    assert len(got)==60
    def predict(path, **kw): return predict_catalog(tmp/'model', path, columns='mag', progress=False, **kw)
    for read in (read_catalog, predict):
        with pytest.raises(CatalogError, match=r'Npix=3\.parquet'): read(tmp_path/'survey', id_col='objid')

def test_a_damaged_part_is_named(sky, tmp_path):
    tmp,_ = sky
    for cut in (0, 1000):
        shutil.copytree(tmp/'survey', tmp_path/'survey')
        file = part(tmp_path/'survey', 3)
        file.write_bytes(file.read_bytes()[:cut])
        for read in (read_catalog, CatalogStream):
            with pytest.raises(CatalogError, match=r'cannot be read as parquet: its file .*Npix=3\.parquet: '):
                read(tmp_path/'survey', id_col='objid')
        file.unlink()
        with pytest.raises(CatalogError, match='its hats.properties says 60: a part is missing'):
            CatalogStream(tmp_path/'survey', id_col='objid')
        shutil.rmtree(tmp_path/'survey')

def test_a_catalogue_without_paths(tmp_path):
    write_sky(rows(['a.jpg'], 30).drop(columns='file_loc'), tmp_path/'survey', 0)
    for read in (read_catalog, CatalogStream):
        with pytest.raises(CatalogError, match="no column 'file_loc'.*give files="):
            read(tmp_path/'survey', id_col='objid')
    df = read_catalog(tmp_path/'survey', id_col='objid', files='cutouts/{objid}.jpg')
    assert sorted(df.file_loc)[0]==str(tmp_path/'cutouts'/f'{FIRST}.jpg')

# --- written

@pytest.mark.parametrize('f', [predict_catalog, represent])
def test_the_same_rows_in_the_same_parts(sky, tmp_path, f):
    tmp,table = sky
    out = tmp_path/'made'
    saved = go(tmp, f'hats://{out}', f=f, columns='objid')
    want = go(tmp, f=f, columns=['objid', 'ra', 'dec', '_healpix_29'])
    same(saved.to_pandas(), want)
    got = opened(out)
    assert saved.n_bad==1 and len(saved)==60 and pixels(out)==pixels(tmp/'survey')
    assert got.id_str.tolist()==want.id_str.tolist() and got.objid.tolist()==want.objid.tolist()
    made = [c for c in want if c.startswith(('morphology_', 'feat_')) and c!='morphology_pred']
    np.testing.assert_allclose(got[made].to_numpy(float), want[made].to_numpy(float), rtol=1e-5)
    assert len(lsdb.open_catalog(out).cone_search(*table.loc[3, ['ra', 'dec']], 1).compute(progress_bar=False))==1
    told = json.loads((out/'_manifest.json').read_text())
    assert told['complete'] and told['bad']==1 and sum(o['rows'] for o in told['finished'])==60
    assert [o.name for o in tmp_path.iterdir()]==['made']                        # nothing is left beside it
    assert len(read_catalog(out))==60                                            # it is a catalogue itself

def test_once_more_and_with_another_model(sky, tmp_path):
    tmp,_ = sky
    out = f'hats://{tmp_path}/made'
    go(tmp, out)
    when = {o: o.stat().st_mtime_ns for o in (tmp_path/'made').rglob('*')}
    assert go(tmp, out).n_bad==1 and when=={o: o.stat().st_mtime_ns for o in (tmp_path/'made').rglob('*')}
    with pytest.raises(ImageError, match='gone.jpg'): go(tmp, out, on_bad='raise')
    with pytest.raises(CatalogError, match='holds rows that were made with another model'): go(tmp, out, 'other')
    with pytest.raises(CatalogError, match='holds rows that were made with other parameters'): go(tmp, out, tta=2)
    file = part(tmp_path/'made', 3)
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(CatalogError, match=r'Npix=3\.parquet is not as it was written; resume=False'): go(tmp, out)
    same(go(tmp, out, 'other', resume=False).to_pandas(), go(tmp, model='other'))
    (tmp_path/'made'/'notes.txt').write_text('mine')
    with pytest.raises(CatalogError, match='holds other files, such as notes.txt'): go(tmp, out, resume=False)
    assert len(opened(tmp_path/'made'))==60

def test_places_where_there_can_be_none(sky, tmp_path):
    tmp,table = sky
    for catalog in (table, tmp/'pictures'/'catalog.csv'):
        if isinstance(catalog, Path): table.to_csv(catalog, index=False)
        with pytest.raises(CatalogError, match='HATS catalogue, and .* is none: make one of it, lsdb.from_dataframe'):
            predict_catalog(tmp/'model', catalog, f'hats://{tmp_path}/made', id_col='objid')
    for out in ('survey', 'survey/new', ''):
        with pytest.raises(CatalogError, match='in the folder of the catalogue, or around it'): go(tmp, f'hats://{tmp}/{out}')
    go(tmp, tmp_path/'shards')
    (tmp_path/'file').touch()
    with pytest.raises(CatalogError, match='holds other files'): go(tmp, f'hats://{tmp_path}/shards')
    with pytest.raises(CatalogError, match='is a file'): go(tmp, f'hats://{tmp_path}/file')

def test_without_lsdb(sky, tmp_path, monkeypatch):
    tmp,_ = sky
    for o in [o for o in sys.modules if o.split('.')[0]=='hats']: monkeypatch.delitem(sys.modules, o)
    monkeypatch.setitem(sys.modules, 'hats', None)
    with pytest.raises(CatalogError, match=r"needs LSDB: pip install 'zoofast\[hats\]'"): go(tmp, f'hats://{tmp_path}/made')
    assert len(go(tmp))==60 and not list(tmp_path.iterdir())                     # reading needs nothing

def test_a_part_without_a_row_and_one_of_several_files(sky, tmp_path):
    "The catalogue of another writer: an empty part, a part that is a folder of files, and no spatial index"
    tmp,_ = sky
    home = tmp_path/'survey'
    shutil.copytree(tmp/'survey'/'survey', home)
    for o in ('_metadata', '_common_metadata'): (home/'dataset'/o).unlink()
    for o in parquet_parts(home): pq.write_table(pq.read_table(o, partitioning=None).drop(['_healpix_29']), o)
    gone,many = part(home, 5),part(home, 3)
    n,t = pq.read_metadata(gone).num_rows,pq.read_table(many, partitioning=None)
    pq.write_table(pq.read_table(gone, partitioning=None)[:0], gone)
    many.unlink()
    many.with_suffix('').mkdir()
    for i,o in enumerate((t[:2], t[2:])): pq.write_table(o, many.with_suffix('')/f'part{i}.parquet')
    about = (home/'hats.properties').read_text().replace('hats_nrows=60', f'hats_nrows={60-n}')
    for o in ('hats.properties', 'properties'): (home/o).write_text(about)
    saved = predict_catalog(tmp/'model', home, f'hats://{tmp_path}/made', id_col='objid', image_dir=tmp, progress=False)
    assert len(saved)==60-n==len(opened(tmp_path/'made'))
    assert pixels(tmp_path/'made')==[o for o in pixels(tmp/'survey') if o!=(0, 5)]
    got,want = opened(tmp_path/'made'),opened(tmp/'survey')
    assert got.id_str.tolist()==[str(i) for i,o in zip(want.objid, want.ra) if i in {int(j) for j in got.id_str}]
    index = lsdb.open_catalog(tmp_path/'made').compute(progress_bar=False).index
    there = lsdb.open_catalog(tmp/'survey').compute(progress_bar=False)
    assert dict(zip(got.id_str, index)).items()<=dict(zip(there.objid.astype(str), there.index)).items()

@pytest.mark.slow
def test_in_a_shell(sky, tmp_path, run_zoofast):
    tmp,_ = sky
    how = ['--id-col', 'objid', '--shard-size', 16]
    said = run_zoofast('predict', tmp/'model', f'hats://{tmp}/survey', '--out', f'hats://{tmp_path}/made', *how)
    assert said.returncode==0, said.stderr
    assert f'60 rows written to hats://{tmp_path}/made; 1 image could not' in said.stdout
    same(opened(tmp_path/'made')[['id_str']].astype(str), go(tmp)[['id_str']])
    said = run_zoofast('predict', tmp/'other', tmp/'survey', '--out', f'hats://{tmp_path}/made', *how)
    assert said.returncode==2 and 'made with another model' in said.stderr
    said = run_zoofast('check', f'hats://{tmp}/survey', '--id-col', 'objid', '--size', 32)
    assert said.returncode==2 and '1 of 60 rows' in said.stderr and 'gone.jpg' in said.stdout

@pytest.mark.slow
@pytest.mark.parametrize('by', [['--dask', 2], ['--slurm', 2, '--slurm-opts', 'cluster=local']], ids=['dask', 'slurm'])
def test_by_a_cluster(sky, tmp_path, run_zoofast, by):
    "The same catalogue, and nothing beside it but what the jobs say"
    tmp,_ = sky
    go(tmp, f'hats://{tmp_path}/one', engine='torch')
    said = run_zoofast('predict', tmp/'model', tmp/'survey', '--out', f'hats://{tmp_path}/made', '--id-col', 'objid',
                       '--shard-size', 16, '--engine', 'torch', *by, cwd=tmp_path)
    assert said.returncode==0, said.stderr
    assert said.stdout.startswith(f'60 rows written to hats://{tmp_path}/made; 1 image could not be read')
    pd.testing.assert_frame_equal(opened(tmp_path/'made'), opened(tmp_path/'one'), check_exact=True)
    assert {o.name for o in tmp_path.iterdir()}<={'one', 'made', 'made.jobs'}

# --- killed

CRASH = '''
import os, shutil, signal, sys
from pathlib import Path
import hats.io.parquet_metadata, hats.catalog, torch
from zoofast.bundles.bundle import load_bundle
from zoofast.catalog.tables import parquet_parts, read_table
from zoofast.predict.table import predict_catalog
from steps import killed_at
torch.set_num_threads(1)
bundle,sky,home,step = sys.argv[1],sys.argv[2],Path(sys.argv[3]),int(sys.argv[4])
model = load_bundle(bundle, device="cpu")
want = predict_catalog(model, sky, id_col="objid", progress=False)
def go(out, die=None):
    def make(): predict_catalog(model, sky, f"hats://{out}", id_col="objid", shard_size=16, progress=False)
    return killed_at(die, make, "link replace rename unlink mkdir rmdir")
n,killed = 1,0
while True:
    folder = home/f"{n}"
    folder.mkdir()
    if not (code := go(folder/"made", n)): break
    assert code==-signal.SIGKILL, (n, code)
    if (folder/"made").exists(): assert len(read_table(folder/"made"))==len(want), n      # whole or not at all
    assert go(folder/"made")==0, n
    got = read_table(folder/"made")
    assert got.id_str.tolist()==want.id_str.tolist(), n
    assert len(parquet_parts(folder/"made"))==12
    left = {o.name for o in folder.iterdir()}
    assert left=={"made"}, (n, left)
    shutil.rmtree(folder)
    n,killed = n+step,killed+1
print(killed)
'''

@pytest.mark.slow
def test_killed_at_any_step(sky, tmp_path):
    tmp,_ = sky
    env = {'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT/'tests')])}
    said = preloaded.run(['-W', 'ignore', '-c', CRASH, tmp/'model', tmp/'survey', tmp_path, 7], env=env)
    assert said.returncode==0 and int(said.stdout)>10, said.stdout+said.stderr

@pytest.mark.slow
def test_20000_rows_in_48_parts_killed_half_way(sky, tmp_path):
    tmp,_ = sky
    pictures = read_catalog(tmp/'survey', id_col='objid').file_loc
    table = rows(pictures[pictures.str.endswith('.png')|pictures.str.endswith('.jpg')], 20_000)
    home = write_sky(table, tmp_path/'survey', 1)
    assert len(pixels(home))==48
    out,parts = tmp_path/'made',tmp_path/'made.parts'
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    words = ['-m', 'zoofast.cli', 'predict', tmp/'model', home, '--out', f'hats://{out}', '--id-col', 'objid',
             '--shard-size', 500, '--columns', 'mag']
    def begin(): return preloaded.start(words, env={'PYTHONPATH': path})
    driver = begin()
    while len(list(parts.glob('part-*.parquet')))<20:
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(.01)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert not out.exists() and 20<=len(there := {o: o.stat().st_ino for o in parts.glob('part-*.parquet')})<40
    with pytest.raises(CatalogError, match='made with another model'):
        predict_catalog(tmp/'other', home, f'hats://{out}', id_col='objid', columns='mag', progress=False)
    assert {o: o.stat().st_ino for o in parts.glob('part-*.parquet')}==there
    driver = begin()
    said = driver.communicate()
    assert driver.returncode==0 and '20000 rows written' in said[0], said
    got = lsdb.open_catalog(out)
    df = got.compute(progress_bar=False)
    assert sorted(df.id_str)==[str(FIRST+i) for i in range(20_000)] and pixels(out)==pixels(home)
    few = table.sample(300, random_state=0)
    few = few.assign(z=few.mag/100)[['ra', 'dec', 'z', 'objid']]
    with_z = lsdb.from_dataframe(few, ra_column='ra', dec_column='dec', margin_threshold=5)
    both = got.crossmatch(with_z, radius_arcsec=1, suffixes=('', '_z'),
                          suffix_method='overlapping_columns').compute(progress_bar=False)
    assert len(both)==300 and (both.id_str.astype(str)==both.objid.astype(str)).all()
    np.testing.assert_allclose(both.z, both.mag/100)
