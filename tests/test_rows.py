"Rows as they were meant: what is missing stays missing, the right table, names and numbers to the last digit"
import io, json, warnings
from pathlib import Path
import numpy as np, pandas as pd, pyarrow as pa, pytest
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table
from PIL import Image
from pyarrow import parquet
from zoofast.catalog.read import read_catalog
from zoofast.catalog.stream import CatalogStream
from zoofast.core.errors import CatalogError

NAMES = [f'1237648720693755{i:03d}' for i in range(60)]

def streamed(path, **kw):
    "The catalogue as prediction reads it"
    s = CatalogStream(path, **kw)
    return pa.concat_tables([s.rows(p, k*7) for k,p in s.pieces(7)]).to_pandas()

def patch_bools(path, column, rows):
    "Make truth values of a FITS table unknown: a zero byte"
    with fits.open(path) as f:
        i = next(i for i,h in enumerate(f) if isinstance(h, fits.BinTableHDU) and column in h.columns.names)
        start,wide = f.fileinfo(i)['datLoc'],f[i].header['NAXIS1']
        at = f[i].data.view(np.ndarray).dtype.fields[column][1]
    b = bytearray(path.read_bytes())
    for r in rows: b[start+r*wide+at] = 0
    path.write_bytes(b)

def survey(path, *more, name='GALAXIES', before=(), after=()):
    cols = [fits.Column('id_str', '19A', array=NAMES), fits.Column('file_loc', '5A', array=['a.jpg']*60), *more]
    hdus = [fits.BinTableHDU.from_columns([fits.Column(c, 'J', array=[1, 2])], name=n) for n,c in before]
    last = [fits.BinTableHDU.from_columns([fits.Column(c, 'J', array=[1, 2])], name=n) for n,c in after]
    table = fits.BinTableHDU.from_columns(cols, name=name)
    fits.HDUList([fits.PrimaryHDU(), *hdus, table, *last]).writeto(path)
    return path

# --- missing

@pytest.mark.parametrize('suffix', ['.fits', '.fits.gz'])
def test_unknown_truth_values_of_fits_are_missing(tmp_path, suffix):
    path = survey(tmp_path/'t.fits', fits.Column('ring', 'L', array=np.arange(60)%2==0))
    patch_bools(path, 'ring', range(20))
    if suffix=='.fits.gz':
        import gzip
        path = tmp_path/'t.fits.gz'
        path.write_bytes(gzip.compress((tmp_path/'t.fits').read_bytes()))
    for df in (read_catalog(path), streamed(path, columns='ring')):
        assert df.ring.isna().tolist()==[True]*20+[False]*40
        assert df.ring[20:].astype(bool).tolist()==[True, False]*20

def test_missing_numbers_of_fits(tmp_path):
    n,u = np.arange(60, dtype=np.int32),np.arange(60, dtype=np.uint16)
    n[3] = -99
    path = survey(tmp_path/'t.fits', fits.Column('n', 'J', null=-99, array=n),
                  fits.Column('u', 'I', bzero=2**15, null=4-2**15, array=u),
                  fits.Column('big', 'K', bzero=2**63, array=np.full(60, 2**63+1, dtype=np.uint64)),
                  fits.Column('flag', 'L', array=[True]*60))
    df = read_catalog(path)
    assert df.n.isna().tolist()==[i==3 for i in range(60)] and df.n[59]==59
    assert df.u.isna().tolist()==[i==4 for i in range(60)] and df.u[59]==59
    assert df.big[0]==2**63+1 and df.flag.dtype==bool

def test_masked_values_of_a_table_of_astropy(tmp_path):
    t = Table({'id_str': NAMES[:3], 'file_loc': [b'a.jpg', b'b.jpg', b'c.jpg'], 'spectrum': np.ones((3, 40)),
               'ring': MaskedColumn([True, False, True], mask=[1, 0, 0]), 'n': MaskedColumn([1, 2, 3], mask=[0, 1, 0]),
               'kind': MaskedColumn(['a', 'b', 'c'], mask=[0, 0, 1])})
    t.write(tmp_path/'t.ecsv')
    for source in (t, QTable(t), tmp_path/'t.ecsv'):
        df = read_catalog(source, image_dir='/x')
        assert df.id_str.tolist()==NAMES[:3] and df.file_loc[1]=='/x/b.jpg'
        assert df.ring.isna().tolist()==[True, False, False] and df.n.isna().tolist()==[False, True, False]
        assert df.kind.isna().tolist()==[False, False, True]
    assert t.colnames[2]=='spectrum'                                                # what was given stays as it was
    assert CatalogStream(t).n_rows==3

def test_an_empty_category_is_missing(tmp_path):
    t = pa.table({'id_str': ['a', 'b'], 'file_loc': ['a', 'b'], 'ring': pa.array(['yes', '']).dictionary_encode()})
    parquet.write_table(t, tmp_path/'t.parquet')
    df = read_catalog(tmp_path/'t.parquet')
    assert df.ring.isna().tolist()==[False, True] and df.ring.cat.categories.tolist()==['yes']

# --- which table

def test_the_first_table_that_has_the_columns(tmp_path):
    path = survey(tmp_path/'t.fits', before=[('ABOUT', 'version')], after=[('PSF', 'fwhm')])
    df = read_catalog(path)
    assert df.id_str.tolist()==NAMES
    assert read_catalog(path, id_col='version', files='{version}.jpg').id_str.tolist()==['1', '2']
    for hdu in (2, 'galaxies', '2'): assert read_catalog(path, table_hdu=hdu).id_str.tolist()==NAMES
    with pytest.raises(CatalogError, match="no table 'STARS'.*1 .ABOUT. has version; 2 .GALAXIES. has id_str"):
        read_catalog(path, table_hdu='STARS')
    with pytest.raises(CatalogError, match="none of its tables has the columns 'objid'.*ABOUT.*PSF"):
        read_catalog(path, id_col='objid')
    from zoofast.catalog.read import need_columns
    with pytest.raises(CatalogError, match='no column .fwhm.*reads another: 1 .ABOUT. has version; 3 .PSF. has fwhm'):
        need_columns(df, 'fwhm')

def test_two_tables_that_would_do_are_named(tmp_path):
    cols = [fits.Column('id_str', '3A', array=['J01']), fits.Column('file_loc', '5A', array=['a.jpg'])]
    hdus = [fits.BinTableHDU.from_columns(cols, name=o) for o in ('NORTH', 'SOUTH')]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path/'t.fits')
    with pytest.warns(UserWarning, match='2 .SOUTH.'): read_catalog(tmp_path/'t.fits')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read_catalog(tmp_path/'t.fits', table_hdu='SOUTH')

def test_a_csv_has_one_table(tmp_path):
    (tmp_path/'t.csv').write_text('id_str,file_loc\na,b\n')
    for read in (read_catalog, CatalogStream):
        with pytest.raises(CatalogError, match='holds one table'): read(tmp_path/'t.csv', table_hdu=1)

# --- VOTable

VOTABLE = '''<?xml version="1.0"?><VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE><TABLE>
<FIELD name="id_str"/><FIELD name="file_loc" datatype="char"/><FIELD name="kind" datatype="char" arraysize="2"/>
<FIELD name="n" datatype="long"><VALUES null="-1"/></FIELD><FIELD name="ring" datatype="boolean"/><DATA><TABLEDATA>
<TR><TD>1237648720693755001</TD><TD>a.jpg</TD><TD>spiral</TD><TD>1237648720693755001</TD><TD>T</TD></TR>
<TR><TD>1237648720693755002</TD><TD>b.jpg</TD><TD/><TD>-1</TD><TD>?</TD></TR>
</TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>'''

def test_text_of_a_votable_has_any_length(tmp_path):
    (tmp_path/'t.vot').write_text(VOTABLE)
    df = read_catalog(tmp_path/'t.vot')
    assert df.id_str.tolist()==NAMES[1:3] and df.kind[0]=='spiral' and pd.isna(df.kind[1])
    assert [Path(o).name for o in df.file_loc]==['a.jpg', 'b.jpg']
    assert df.n[0]==1237648720693755001 and df.n.isna().tolist()==[False, True]
    assert df.ring.isna().tolist()==[False, True]
    got = read_catalog(tmp_path/'t.vot', id_col='n', files='{file_loc}').id_str
    assert got.tolist()==['1237648720693755001', '']

# --- HATS

def hats(folder, parts, thumbnail=True, n=None, kind='object'):
    for order,pix,df in parts:
        path = folder/'dataset'/f'Norder={order}'/'Dir=0'/f'Npix={pix}.parquet'
        path.parent.mkdir(parents=True, exist_ok=True)
        df.to_parquet(path)
    if thumbnail: parts[0][2].head(2).to_parquet(folder/'dataset'/'data_thumbnail.parquet')
    parts[0][2].head(2).to_parquet(folder/'per_partition_statistics.parquet')
    n = sum(len(o[2]) for o in parts) if n is None else n
    said = f'#HATS catalog\nobs_collection={folder.name}\ndataproduct_type={kind}\nhats_nrows={n}\n'
    (folder/'hats.properties').write_text(said + ('hats_primary_table_url=sky\n' if kind!='object' else ''))

def test_a_hats_catalogue_and_a_collection(tmp_path):
    df = pd.DataFrame({'id_str': NAMES, 'file_loc': 'a.jpg'})
    hats(tmp_path/'c'/'sky', [(1, 3, df[:40]), (2, 17, df[40:])])
    hats(tmp_path/'c'/'margin', [(1, 3, df[40:45])], kind='margin')
    said = '#HATS Collection\nhats_primary_table_url=sky\nall_margins=margin\n'
    (tmp_path/'c'/'collection.properties').write_text(said)
    for folder in (tmp_path/'c', tmp_path/'c'/'sky'):
        assert read_catalog(folder).id_str.tolist()==NAMES==streamed(folder).id_str.tolist()
    with pytest.raises(CatalogError, match='HATS margin.*the catalogue is sky'): read_catalog(tmp_path/'c'/'margin')

def test_a_hats_catalogue_without_one_of_its_parts(tmp_path):
    df = pd.DataFrame({'id_str': NAMES, 'file_loc': 'a.jpg'})
    hats(tmp_path/'sky', [(1, 3, df[:40])], n=60)
    for read in (read_catalog, CatalogStream):
        with pytest.raises(CatalogError, match='has 40 rows, and its hats.properties says 60'): read(tmp_path/'sky')

# --- images within parquet

def png(grey):
    f = io.BytesIO()
    Image.new('L', (8, 8), grey).save(f, 'PNG')
    return f.getvalue()

def test_images_within_parquet(tmp_path, monkeypatch):
    monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path/'cache'))
    cells = [{'bytes': png(i), 'path': f'{i}.png'} for i in range(5)]
    about = {'info': {'features': {'label': {'names': ['smooth', 'ring'], '_type': 'ClassLabel'}}}}
    t = pa.table({'image': cells, 'label': [0, 1, 0, 1, -1]})
    t = t.replace_schema_metadata({'huggingface': json.dumps(about)})
    parquet.write_table(t, tmp_path/'train.parquet')
    for df in (read_catalog(tmp_path/'train.parquet'), streamed(tmp_path/'train.parquet', columns='label')):
        assert [Path(o).read_bytes() for o in df.file_loc]==[o['bytes'] for o in cells]
        assert df.label[:4].tolist()==['smooth', 'ring']*2 and pd.isna(df.label[4]) and df.id_str[4]=='row_4'
    both = pa.table({'id_str': NAMES[:5], 'stamp': [o['bytes'] for o in cells]})
    parquet.write_table(both, tmp_path/'bytes.parquet')
    df = read_catalog(tmp_path/'bytes.parquet', file_col='stamp')
    assert Path(df.file_loc[3]).read_bytes()==png(3) and df.id_str[3]==NAMES[3]

# --- text and numbers

def test_labels_that_are_bytes_are_text(tmp_path):
    kinds = [b'ring', None, b'bar']
    t = pa.table({'id_str': pa.array([b'a', b'b', b'c']), 'file_loc': ['a', 'b', 'c'], 'kind': kinds,
                  'coded': pa.array(kinds).dictionary_encode(),
                  'padded': pa.array([b'r\0', b'ss', None], pa.binary(2))})
    parquet.write_table(t, tmp_path/'t.parquet')
    given = pd.DataFrame({'id_str': ['a', 'b', 'c'], 'file_loc': 'a', 'kind': kinds, 'coded': pd.Categorical(kinds)})
    for df in (read_catalog(tmp_path/'t.parquet'), read_catalog(given)):
        assert df.id_str.tolist()==['a', 'b', 'c']
        for c in ('kind', 'coded'):
            assert df[c].isna().tolist()==[False, True, False] and list(df[c])[::2]==['ring', 'bar']
    assert read_catalog(tmp_path/'t.parquet').padded.tolist()[:2]==['r', 'ss']

def test_an_array_that_is_asked_for_is_named(tmp_path):
    path = survey(tmp_path/'t.fits', fits.Column('votes', '5E', array=np.ones((60, 5))))
    from zoofast.data.check import check_catalog
    with pytest.raises(CatalogError, match="column 'votes'.*has an array of 5 in each cell"):
        check_catalog(read_catalog(path), 'votes', open_images=False)

@pytest.mark.parametrize('ids,why', [(['6E+17', '7E+17'], 'a rounded number'),
                                     (['123.0', '124.0', ''], 'numbers with a point')])
def test_spoilt_identifiers_are_refused(tmp_path, ids, why):
    df = pd.DataFrame({'id_str': ids, 'file_loc': 'a'})
    df.to_csv(tmp_path/'t.csv', index=False)
    df.to_parquet(tmp_path/'t.parquet')
    for read in (read_catalog, CatalogStream):
        for name in ('t.csv', 't.parquet'):
            with pytest.raises(CatalogError, match=why): read(tmp_path/name)

@pytest.mark.parametrize('ids', [['1.0', '1.1', '2.0'], ['NGC 1.0'], ['J0+17'], ['2E17']])
def test_identifiers_that_look_like_numbers_stay(ids):
    assert read_catalog(pd.DataFrame({'id_str': ids, 'file_loc': 'a'})).id_str.tolist()==ids

DTYPES = ['Int64', 'UInt64', 'Float64', 'int64[pyarrow]', 'string', 'string[pyarrow]', 'category']

@pytest.mark.parametrize('dtype', DTYPES)
def test_pandas_own_types_of_identifiers(dtype):
    col = pd.Series(['12', '13'] if 'str' in dtype or dtype=='category' else [12, 13], dtype=dtype)
    assert read_catalog(pd.DataFrame({'id_str': col, 'file_loc': 'a'})).id_str.tolist()==['12', '13']

def test_an_identifier_that_is_carried_along_stays_text(tmp_path):
    (tmp_path/'t.csv').write_text('objid,file_loc\n0012,a\n0013,b\n')
    asked = dict(id_col='objid')
    for df in (read_catalog(tmp_path/'t.csv', **asked), streamed(tmp_path/'t.csv', **asked, columns='all')):
        assert df.id_str.tolist()==df.objid.tolist()==['0012', '0013']
