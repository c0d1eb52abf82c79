"Tables of every format hold the same galaxies afterwards; broken ones are refused in a sentence that names them"
import bz2, gzip, io, lzma, os, time, unicodedata, warnings, zipfile
from pathlib import Path
from urllib.parse import quote
import numpy as np, pandas as pd, pytest
from astropy.io import fits
from astropy.table import Table
from PIL import Image
from zoofast.core.errors import CatalogError, ImageError
from zoofast.data.check import check_catalog
from zoofast.catalog.paths import absent_files, file_parts
from zoofast.catalog.read import read_catalog
from zoofast.images.reader import ImageReader

IDS = ['5877229527674394001', '5877229527674394002', '0000000000000000012', '1237648720693755918',
       '9223372036854775807']
NUMBERS = [i for i in IDS if not i.startswith('0')]       # those that can be whole numbers of 64 bits

def galaxies(ids=IDS):
    n = len(ids)
    return pd.DataFrame({
        'id_str': ids,
        'file_loc': [f'my images/Galáxia {i}.jpg' for i in range(n)],
        'shape': (['ring', 'spiral', None]*2)[:n],
        'n_arms': np.arange(n),
        'mag': np.arange(n)/4+15})

def as_table(df, encode=lambda o: o):
    "An astropy table, with missing labels masked"
    numeric = lambda c: df[c].dtype.kind in 'if'
    numbers = {c: df[c].to_numpy() for c in ('id_str', 'n_arms', 'mag') if numeric(c)}
    text_columns = [c for c in ('id_str', 'file_loc', 'shape') if not numeric(c)]
    texts = {c: np.array([encode(o) for o in df[c].fillna('')]) for c in text_columns}
    t = Table(numbers | texts, masked=True)
    t['shape'].mask = df['shape'].isna().to_numpy()
    return t[list(df)]

def to_fits(df, p):
    "The table is the second extension of a file with another table, and has a column with arrays"
    t = as_table(df, str.encode)
    t['spectrum'] = np.zeros((len(df), 7))
    image,other = np.zeros((4,4)),Table({'other': [1]})
    hdus = [fits.PrimaryHDU(image),
            fits.ImageHDU(image),
            fits.BinTableHDU(t, name='GALAXIES'),
            fits.BinTableHDU(other)]
    fits.HDUList(hdus).writeto(p)

def packed(pack, sep=','): return lambda df, p: p.write_bytes(pack(df.to_csv(index=False, sep=sep).encode()))

def zipped(b):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z: z.writestr('inside.csv', b)
    return out.getvalue()

def parts(df, p):
    p.mkdir()
    for i in range(0, len(df), 2): df.iloc[i:i+2].to_parquet(p/f'part-{i}.parquet')
    (p/'_SUCCESS').touch()

def dataset(df, p):
    import datasets
    datasets.Dataset.from_pandas(df, preserve_index=False).save_to_disk(p)

def to_ecsv_gz(df, p):
    plain = p.with_name('o.ecsv')
    as_table(df).write(plain, format='ascii.ecsv')
    p.write_bytes(gzip.compress(plain.read_bytes()))

def as_format(fmt): return lambda df, p: as_table(df).write(p, format=fmt)

FORMATS = {
    'c.csv': packed(bytes),
    'c.CSV': packed(bytes),
    'c.csv.gz': packed(gzip.compress),
    'c.csv.bz2': packed(bz2.compress),
    'c.csv.xz': packed(lzma.compress),
    'c.csv.zip': packed(zipped),
    'c.tsv': packed(bytes, '\t'),
    'c.tsv.gz': packed(gzip.compress, '\t'),
    'bom.csv': packed(lambda b: b'\xef\xbb\xbf'+b),
    'crlf.csv': packed(lambda b: b.replace(b'\n', b'\r\n')),
    'c.parquet': lambda df, p: df.to_parquet(p),
    'index.parquet': lambda df, p: df.set_index('id_str').to_parquet(p),
    'odd.parquet': lambda df, p: df[df.n_arms>=0].iloc[::-1].iloc[::-1].to_parquet(p),
    'parts': parts,
    'c.fits': to_fits,
    'c.fits.gz': to_fits,
    'c.FIT': to_fits,
    'c.vot': as_format('votable'),
    'c.xml': as_format('votable'),
    'c.ecsv': as_format('ascii.ecsv'),
    'c.ecsv.gz': to_ecsv_gz,
    'saved': dataset}

@pytest.mark.parametrize('ids', [IDS, NUMBERS], ids=['text', 'numbers'])
@pytest.mark.parametrize('name', list(FORMATS))
def test_every_format_holds_the_same(tmp_path, name, ids):
    if name=='saved': pytest.importorskip('datasets')
    df = galaxies(ids)
    FORMATS[name](df.assign(id_str=df.id_str.astype('int64')) if ids is NUMBERS else df, tmp_path/name)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        got = read_catalog(tmp_path/name)
    assert got.id_str.tolist()==ids
    assert got.file_loc.tolist()==[str(tmp_path/o) for o in df.file_loc]
    shapes = lambda o: o['shape'].astype(object).where(o['shape'].notna(), None).tolist()
    assert shapes(got)==shapes(df)
    assert got.n_arms.tolist()==df.n_arms.tolist() and got.mag.tolist()==df.mag.tolist() and got.mag.dtype.isnative
    assert list(got)==['id_str', 'file_loc', 'shape', 'n_arms', 'mag']

@pytest.mark.parametrize('name', ['c.parquet', 'c.fits', 'c.vot', 'c.ecsv', 'c.csv'])
def test_a_missing_id_costs_the_others_no_digit(tmp_path, name):
    "A column of whole numbers with a gap is one of floating-point numbers to pandas; here it is not"
    import pyarrow as pa, pyarrow.parquet as pq
    ids = [int(NUMBERS[0]), None, int(NUMBERS[2])]
    files = ['a.jpg', 'b.jpg', 'c.jpg']
    masked = np.ma.masked_array([i or 0 for i in ids], [i is None for i in ids], dtype='int64')
    t = Table({'id_str': masked, 'file_loc': files})
    if name=='c.parquet': pq.write_table(pa.table({'id_str': pa.array(ids), 'file_loc': files}), tmp_path/name)
    elif name=='c.csv': t.write(tmp_path/name, format='ascii.csv')
    else: t.write(tmp_path/name, format={'c.fits': 'fits', 'c.vot': 'votable', 'c.ecsv': 'ascii.ecsv'}[name])
    df = read_catalog(tmp_path/name)
    assert df.id_str.tolist()==[NUMBERS[0], '', NUMBERS[2]]
    assert 'the id is empty' in check_catalog(df, open_images=False).bad.reason[1]

@pytest.mark.parametrize('column', [
    [1, None, 3],
    np.array([1, 2, 3], dtype='>i4'),
    pd.Categorical(['a', 'b', 'a']),
    [b'x', b'y', b'z'],
    [True, False, True],
    pd.array([2**62+1, None, 3], dtype='Int64'),
    ['x', None, float('nan')]])
def test_identifiers_of_any_type_in_a_data_frame(column):
    df = pd.DataFrame({'id_str': pd.Series(column), 'file_loc': ['a.jpg']*3})
    def want(o):
        if isinstance(o, bytes): return o.decode()
        if o is None or o is pd.NA or o!=o: return ''
        return str(int(o)) if isinstance(o, float) else str(o)
    assert read_catalog(df).id_str.tolist()==[want(o) for o in df.id_str.tolist()]

def test_other_large_numbers_keep_their_digits(tmp_path):
    "Also in a column that is not the id, with gaps"
    rows = f'a,a.jpg,{IDS[0]},{2**64-1}\nb,b.jpg,,1\nc,c.jpg,{IDS[1]},\n'
    (tmp_path/'c.csv').write_text('id_str,file_loc,host,serial\n'+rows)
    df = read_catalog(tmp_path/'c.csv')
    assert [str(o) for o in df.host]==[IDS[0], '<NA>', IDS[1]] and str(df.serial[0])==str(2**64-1)

def test_columns_of_text_numbers_and_booleans(tmp_path):
    rows = '1,1.jpg, 1,1.5,True,x,\n2,2.jpg,2 ,NA,false,1,NA\n3,3.jpg,3,inf,TRUE,NA,nan\n'
    (tmp_path/'c.csv').write_text('id_str,file_loc,a,b,c,d,e\n'+rows)
    df = read_catalog(tmp_path/'c.csv')
    assert df.a.tolist()==[1, 2, 3] and df.b.tolist()[::2]==[1.5, np.inf] and df.c.tolist()==[True, False, True]
    assert df.d.tolist()[:2]==['x', '1'] and df.d.isna()[2] and df.e.isna().all()

# --- paths

def test_paths_start_where_a_user_expects(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    some = ['a.jpg', './a.jpg', 'sub//b.jpg', '../c.jpg', '~/d.jpg', '/e/../f.jpg', 'ü n ï.jpg',
            'https://sky.org/a//b.jpg', '', '..', 'x/..', '~', '.hidden.jpg', 'a.b/..c']
    df = pd.DataFrame({'id_str': [str(i) for i in range(len(some))], 'file_loc': some})
    (tmp_path/'cat').mkdir()
    df.to_csv(tmp_path/'cat'/'c.csv', index=False)
    def want(base):
        whole = lambda o: os.path.normpath(os.path.join(base, os.path.expanduser(o)))
        return [o if '://' in o or not o else whole(o) for o in some]
    assert read_catalog(tmp_path/'cat'/'c.csv').file_loc.tolist()==want(tmp_path/'cat')
    assert read_catalog(tmp_path/'cat'/'c.csv', image_dir='~/img').file_loc.tolist()==want(tmp_path/'home'/'img')
    monkeypatch.chdir(tmp_path)
    assert read_catalog('cat/c.csv').file_loc.tolist()==want(tmp_path/'cat')
    assert read_catalog(df).file_loc.tolist()==want(tmp_path)
    twice = read_catalog(read_catalog(df))
    assert twice.file_loc.tolist()==want(tmp_path)

@pytest.mark.parametrize('start', ['file://', 'file:', 'file://localhost'])
@pytest.mark.parametrize('write', [str, quote], ids=['plain', 'quoted'])
def test_addresses_of_local_files(tmp_path, start, write):
    "As other programs write them, with `%20` for a blank or without; also one a band"
    for name in ('ü n#1.png', '100%25.png'): Image.new('L', (40,40), 7).save(tmp_path/name)
    some = [start+write(str(tmp_path/name)) for name in ('ü n#1.png', '100%25.png')]
    df = read_catalog(pd.DataFrame({'id_str': list('abc'), 'file_loc': [*some, '|'.join(some)]}))
    a,b = str(tmp_path/'ü n#1.png'),str(tmp_path/'100%25.png')
    assert df.file_loc.tolist()==[a, b, f'{a}|{b}']
    assert len(check_catalog(df, open_images=False).ok)==3

@pytest.mark.parametrize('on_disk,written', [('NFC', 'NFD'), ('NFD', 'NFC'), ('NFC', 'NFC')])
def test_accents_are_found_however_they_are_written(tmp_path, on_disk, written):
    name = 'Amélie ñ.png'
    Image.new('L', (40,40), 7).save(tmp_path/unicodedata.normalize(on_disk, name))
    df = pd.DataFrame({'id_str': ['a'], 'file_loc': [unicodedata.normalize(written, name)]})
    df = read_catalog(df, image_dir=tmp_path)
    assert Path(df.file_loc[0]).is_file() and check_catalog(df).bad.empty

def test_one_file_a_band(tmp_path):
    for b in 'grz':
        for i in range(3): Image.new('L', (40,40), i).save(tmp_path/f'{i} {b}.png')
    df = pd.DataFrame({'id_str': list('abc'), **{f'{b}_file': [f'{i} {b}.png' for i in range(3)] for b in 'grz'}})
    df.to_csv(tmp_path/'c.csv', index=False)
    got = read_catalog(tmp_path/'c.csv', file_col=['z_file', 'g_file'])
    assert [file_parts(o) for o in got.file_loc]==[[str(tmp_path/f'{i} {b}.png') for b in 'zg'] for i in range(3)]
    assert got.g_file.tolist()==df.g_file.tolist()                                     # the columns themselves stay
    got.to_parquet(tmp_path/'joined.parquet')
    assert read_catalog(tmp_path/'joined.parquet').file_loc.tolist()==got.file_loc.tolist()
    relative = df.assign(file_loc=df.z_file+'|'+df.g_file)
    assert read_catalog(relative, image_dir=tmp_path).file_loc.tolist()==got.file_loc.tolist()
    assert check_catalog(got, open_images=False).bad.empty

def test_a_band_without_a_file_is_named(tmp_path):
    for o in ('g0.png', 'r0.png', 'g1.png', 'r2.png'): (tmp_path/o).touch()
    df = pd.DataFrame({
        'id_str': list('abcd'),
        'g': ['g0.png', 'g1.png', 'g2.png', None],
        'r': ['r0.png', '', 'r2.png', None]})
    check = check_catalog(read_catalog(df, image_dir=tmp_path, file_col=['g', 'r']), open_images=False)
    assert check.ok.id_str.tolist()==['a'] and check.bad.id_str.tolist()==['b', 'c', 'd']
    assert not read_catalog(df, file_col=['g', 'r']).file_loc[3]
    said = ['no file is given for band 2 of 2', f'there is no file {tmp_path}/g2.png', 'no image file is given']
    assert check.bad.reason.tolist()==said

def test_a_bar_in_a_name_is_no_second_band(tmp_path):
    (tmp_path/'a|b.png').touch()
    df = read_catalog(pd.DataFrame({'id_str': ['a', 'c'], 'file_loc': ['a|b.png', 'c|d.png']}), image_dir=tmp_path)
    assert df.file_loc.tolist()==[f'{tmp_path}/a|b.png', f'{tmp_path}/c|{tmp_path}/d.png']
    assert check_catalog(df, open_images=False).bad.id_str.tolist()==['c']

@pytest.mark.parametrize('wrong', [[], ['file_loc', 'file_loc'], 'nothing'])
def test_a_wrong_file_column_is_said(wrong):
    df = pd.DataFrame({'id_str': ['a'], 'file_loc': ['a.jpg']})
    with pytest.raises(CatalogError, match='file_col'): read_catalog(df, file_col=wrong)

# --- Hugging Face datasets

def picture(i, kind='PNG'):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (24,24,3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()

def with_images(n, start=0, **more):
    datasets = pytest.importorskip('datasets')
    pictures = [{'bytes': picture(start+i, 'PNG' if i%2 else 'JPEG'), 'path': None} for i in range(n)]
    labels = [i%2 if i!=2 else -1 for i in range(n)]
    features = datasets.Features({
        'image': datasets.Image(),
        'label': datasets.ClassLabel(names=['ring', 'spiral']),
        **{k: datasets.Value('int64') for k in more}})
    return datasets.Dataset.from_dict({'image': pictures, 'label': labels, **more}, features=features)

def test_a_dataset_brings_its_images(tmp_path):
    datasets = pytest.importorskip('datasets')
    train = with_images(5, objid=[int(NUMBERS[0])+i for i in range(5)])
    validation = with_images(3, 5, objid=[1, 2, 3])
    test = with_images(2, 8, objid=[4, 5])
    datasets.DatasetDict(train=train, validation=validation, test=test).save_to_disk(tmp_path/'d')
    df = read_catalog(tmp_path/'d', id_col='objid')
    assert df.id_str.tolist()==[str(int(NUMBERS[0])+i) for i in range(5)]+['1', '2', '3', '4', '5']
    assert df.split.tolist()==['train']*5+['valid']*3+['test']*2
    labels = df.label.astype(object).where(df.label.notna(), None).tolist()
    assert labels[:5]==['ring', 'spiral', None, 'spiral', 'ring']
    for i,f in enumerate(df.file_loc):
        k = i if i<5 else i-5 if i<8 else i-8
        assert Path(f).read_bytes()==picture(i, 'PNG' if k%2 else 'JPEG') and f.endswith('.png' if k%2 else '.jpg')
    assert os.environ['ZOOFAST_CACHE'] in df.file_loc[0]
    folder = Path(df.file_loc[0]).parent
    before = {o: o.stat().st_mtime_ns for o in folder.iterdir()}
    Path(df.file_loc[1]).write_bytes(b'cut')                                # what a killed machine may leave
    assert read_catalog(tmp_path/'d').id_str.tolist()[4:6]==['train_4', 'validation_0']
    after = {o: o.stat().st_mtime_ns for o in folder.iterdir()}
    changed = [o for o in after if before[o]!=after[o]]
    assert set(before)==set(after) and len(after)==10 and changed==[Path(df.file_loc[1])]
    assert check_catalog(df).bad.empty

def test_a_dataset_of_one_split_is_not_split(tmp_path):
    datasets = pytest.importorskip('datasets')
    datasets.DatasetDict(train=with_images(4)).save_to_disk(tmp_path/'d')
    df = read_catalog(tmp_path/'d', image_dir=tmp_path/'img')
    assert 'split' not in df and df.id_str[0]=='row_0' and len(list((tmp_path/'img').rglob('*.*')))==4
    with_images(4).select([3, 1]).save_to_disk(tmp_path/'e')                            # rows in another order
    assert Path(read_catalog(tmp_path/'e').file_loc[0]).read_bytes()==picture(3)

def test_images_given_as_paths_stay_where_they_are(tmp_path):
    datasets = pytest.importorskip('datasets')
    (tmp_path/'a.png').write_bytes(picture(0))
    ds = datasets.Dataset.from_dict({'image': [str(tmp_path/'a.png'), None]}).cast_column('image', datasets.Image())
    import zoofast.catalog.tables
    path = zoofast.catalog.tables._write_images(ds, 'image', tmp_path/'out', '').to_pylist()
    assert path==[str(tmp_path/'a.png'), ''] and not list((tmp_path/'out').iterdir())

def test_two_columns_of_images(tmp_path):
    datasets = pytest.importorskip('datasets')
    images = lambda *numbers: [{'bytes': picture(i), 'path': None} for i in numbers]
    features = datasets.Features({'g': datasets.Image(), 'r': datasets.Image()})
    ds = datasets.Dataset.from_dict({'g': images(0, 1), 'r': images(2, 3)}, features=features)
    ds.save_to_disk(tmp_path/'d')
    with pytest.raises(CatalogError, match='several columns of images: g, r'): read_catalog(tmp_path/'d')
    df = read_catalog(tmp_path/'d', file_col=['r', 'g'])
    got = [[Path(p).read_bytes() for p in file_parts(o)] for o in df.file_loc]
    assert got==[[picture(2), picture(0)], [picture(3), picture(1)]]

@pytest.mark.slow
def test_a_dataset_laid_out_as_on_the_hub(tmp_path, monkeypatch):
    pytest.importorskip('datasets')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    data = tmp_path/'user'/'galaxies'/'data'
    data.mkdir(parents=True)
    for name,ds in (('train', with_images(4)), ('test', with_images(2, 4))):
        ds.to_parquet(data/f'{name}-00000-of-00001.parquet')
    monkeypatch.chdir(tmp_path)
    df = read_catalog('hf_dataset:user/galaxies')
    assert df.split.tolist()==['train']*4+['test']*2 and df.label.tolist()[:2]==['ring', 'spiral']
    assert Path(df.file_loc[5]).read_bytes()==picture(5)
    with pytest.raises(CatalogError, match='hf_dataset:nobody/nothing: cannot be read as'):
        read_catalog('hf_dataset:nobody/nothing')

def test_without_the_package_a_dataset_is_refused(tmp_path, monkeypatch):
    import sys
    pytest.importorskip('datasets')
    with_images(2).save_to_disk(tmp_path/'d')
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(CatalogError, match='pip install datasets'): read_catalog(tmp_path/'d')

# --- hostile input

HEAD = 'id_str,file_loc,ring\n'
ROWS = HEAD+''.join(f'{i},{c}.jpg,{k%2}\n' for k,(i,c) in enumerate(zip(IDS[:4], 'abcd')))

def table_bytes(fmt, cut=None, **columns):
    t,out = Table(columns or {'id_str': IDS[:4], 'file_loc': list('abcd')}),io.BytesIO()
    t.write(out, format=fmt)
    return out.getvalue()[:cut]

def parquet_bytes(df=None):
    out = io.BytesIO()
    (galaxies() if df is None else df).to_parquet(out)
    return out.getvalue()

def image_fits():
    out = io.BytesIO()
    fits.PrimaryHDU(np.zeros((9,9))).writeto(out)
    return out.getvalue()

def junk(low, high): return np.random.default_rng(0).integers(low, high, 5000, dtype=np.uint8).tobytes()

# two parts of a catalogue that do not fit together
BROKEN_PART = {'0.parquet': parquet_bytes(), '1.parquet': b'PAR1 no'}
OTHER_TYPE = {'0.parquet': parquet_bytes(), '1.parquet': parquet_bytes(galaxies().assign(mag='faint'))}
FILES_OF_BANDS = dict(id_str=IDS[:2], file_loc=np.array([['g', 'r'], ['g', 'r']]))

HOSTILE = {       # name of the file, its content, and what the sentence must say; `None` for the content: no file
    'missing': ('none.csv', None, 'there is no such catalogue'),
    'missing folder': ('none', None, 'there is no such catalogue'),
    'folder': ('folder.csv', {}, 'cannot tell the format'),
    'folder of other things': ('folder', {'a.txt': b'x'}, 'neither parquet files nor'),
    'unknown suffix': ('c.xlsx', b'PK', 'cannot tell the format'),
    'empty': ('c.csv', b'', 'is empty'),
    'blank': ('c.csv', b'\n\n  \n', 'is empty'),
    'only a header': ('c.csv', HEAD, 'has no rows'),
    'web page': ('c.csv', '<!DOCTYPE html>\n<html><body>404, not found</body></html>', 'a web page'),
    'web page in gzip': ('c.csv.gz', gzip.compress(b'\n <html>'), 'a web page'),
    'binary junk': ('c.csv', junk(0, 256), 'null bytes'),
    'junk without null': ('c.csv', junk(128, 256), ''),
    'parquet named csv': ('c.csv', parquet_bytes(), 'null bytes'),
    'csv named parquet': ('c.parquet', ROWS, 'cannot be read as parquet'),
    'csv named gz': ('c.csv.gz', ROWS, 'cannot be read as csv.gz'),
    'gzip cut off': ('c.csv.gz', gzip.compress((ROWS*100).encode())[:-9], 'cannot be read as csv.gz'),
    'zip of two': ('c.csv.zip', b'', 'cannot be read as csv.zip'),
    'semicolons': ('c.csv', ROWS.replace(',', ';'), "separated by ';'"),
    'a comment first': ('c.csv', '# made by hand, from the survey\n'+ROWS,
                        "its first line is '# made by hand, from the survey'"),
    'what Excel writes first': ('c.csv', 'sep=,\n'+ROWS, "its first line is 'sep=,'"),
    'tabs': ('c.csv', ROWS.replace(',', '\t'), 'separated by '),
    'commas named tsv': ('c.tsv', ROWS, "separated by ','"),
    'two columns of a name': ('c.csv', ROWS.replace('ring', 'id_str'), "two columns are named 'id_str'"),
    'utf-16': ('c.csv', ROWS.encode('utf-16'), 'UTF-16'),
    'latin-1 label': ('c.csv', ROWS.replace('a.jpg,0', 'a.jpg,größe').encode('latin-1'), 'not UTF-8'),
    'latin-1 path': ('c.csv', ROWS.replace('b.jpg', 'é.jpg').encode('latin-1'), 'not UTF-8'),
    'row too long': ('c.csv', ROWS.replace('b.jpg', 'b,2.jpg'), 'Row #3: Expected 3 columns, got 4'),
    'row too short': ('c.csv', ROWS.replace('c.jpg,0', 'c.jpg'), 'Row #4: Expected 3 columns, got 2'),
    'cut off': ('c.csv', ROWS[:-7], 'Row #5: Expected 3 columns, got'),
    'first row too long': ('c.csv', ROWS.replace('a.jpg', 'a,2.jpg'), 'Expected 4 columns, got 3'),
    'all rows too long': ('c.csv', ROWS.replace('jpg', 'jpg,x'), '4 cells where the header names 3'),
    'quote never closed': ('c.csv', ROWS.replace('b.jpg,1', 'b.jpg,"1'), 'never closed'),
    'null bytes': ('c.csv', ROWS.replace('c.jpg', 'c\0.jpg'), 'null bytes'),
    'no id column': ('c.csv', ROWS.replace('id_str', 'objid'), "no column 'id_str'"),
    'header of 100,000 characters': ('c.csv', ROWS.replace('id_str', 'x'*10**5), "no column 'id_str'"),
    'formula as id': ('c.csv', ROWS.replace(IDS[0], '"=""'+IDS[0]+'"""'), 'a formula from a spreadsheet'),
    'rounded id': ('c.csv', ROWS.replace(IDS[1], '5.87723E+18'), 'a rounded number'),
    'float ids': ('c.parquet', parquet_bytes(galaxies(NUMBERS).astype({'id_str': float})),
                  'digits of the identifiers are lost'),
    'one fractional id': ('c.parquet', parquet_bytes(galaxies(NUMBERS).assign(id_str=[1, 2, 3.5, 4])),
                          'numbers such as 3.5, so'),
    'fractional ids': ('c.parquet', parquet_bytes(galaxies(NUMBERS).assign(id_str=0.5)),
                       'digits of the identifiers are lost'),
    'lists of files': ('c.parquet', parquet_bytes(galaxies().assign(file_loc=[['g.fits', 'r.fits']]*5)), 'holds lists'),
    'lists of ids': ('c.parquet', parquet_bytes(galaxies().assign(id_str=[[1]]*5)), 'holds lists'),
    'parquet cut off': ('c.parquet', parquet_bytes()[:-20], 'cannot be read as parquet'),
    'parquet with text that is none': ('c.parquet', parquet_bytes().replace('Galáxia'.encode(), b'Gal\xff\xffxia'),
                                       'cannot be read as parquet'),
    'parquet without rows': ('c.parquet', parquet_bytes(galaxies().head(0)), 'has no rows'),
    'folder with a broken part': ('parts', BROKEN_PART, 'cannot be read as parquet'),
    'parts that disagree': ('parts', OTHER_TYPE, 'cannot be read as parquet'),
    'FITS without a table': ('c.fits', image_fits(), 'cannot be read as fits'),
    'FITS cut off': ('c.fits', table_bytes('fits', 4000), 'cannot be read as fits'),
    'FITS in damaged gzip': ('c.fits.gz', gzip.compress(table_bytes('fits'))[:-12]+bytes(8),
                             'cannot be read as fits.gz'),
    'junk named FITS': ('c.fits', b'x'*10000, 'cannot be read as fits'),
    'FITS with arrays for files': ('c.fits', table_bytes('fits', **FILES_OF_BANDS),
                                   "column 'file_loc' has an array in each cell"),
    'VOTable broken': ('c.vot', table_bytes('votable', 700), 'cannot be read as vot'),
    'web page named VOTable': ('c.vot', '<html><body>404</body></html>', 'cannot be read as vot'),
    'ECSV without its header': ('c.ecsv', ROWS, 'cannot be read as ecsv'),
    'broken dataset': ('d', {'state.json': b'{}', 'dataset_info.json': b'{}'}, 'cannot be read as dataset'),
}

def put(folder, name, content):
    path = folder/name
    if isinstance(content, dict):
        path.mkdir()
        for k,v in content.items(): (path/k).write_bytes(v)
    elif content is not None: path.write_bytes(content.encode() if isinstance(content, str) else content)
    if name=='c.csv.zip':
        with zipfile.ZipFile(path, 'w') as z: z.writestr('a.csv', ROWS); z.writestr('b.csv', ROWS)
    return path

@pytest.mark.parametrize('what', list(HOSTILE))
def test_a_hostile_catalogue_is_one_sentence(tmp_path, what):
    name,content,said = HOSTILE[what]
    if what=='broken dataset': pytest.importorskip('datasets')
    path = put(tmp_path, name, content)
    with pytest.raises(CatalogError) as e: read_catalog(path)
    text = str(e.value)
    assert said in text and str(path) in text and '\n' not in text and len(text)<1500

ODD = {       # catalogues that can be read, and the rows that cannot be used, with what the reason must say
    'blank ids': (ROWS.replace(IDS[1], ' '), {1: 'the id is empty'}),
    'no ids': (ROWS.replace(IDS[1], '').replace(IDS[2], ''), {1: 'the id is empty', 2: 'the id is empty'}),
    'NaN as id': (ROWS, {}),
    'the same id': (ROWS.replace(IDS[3], IDS[0]), {3: 'the same as that of row 1'}),
    'no path': (ROWS.replace('b.jpg', ''), {1: 'no image file is given'}),
    'a path of 100,000 characters': (ROWS.replace('b.jpg', 'b'*10**5), {1: 'there is no file'}),
    'a web address': (ROWS.replace('b.jpg', 'http://sky.org/b.jpg'), {1: 'is a web address'}),
    'a blank before a path': (ROWS.replace(',b.jpg', ', b.jpg'), {1: 'white space before or after a name'}),
    'a blank after a path': (ROWS.replace('b.jpg', 'b.jpg '), {1: 'white space before or after a name'}),
    'a folder': (ROWS.replace('b.jpg', '.'), {1: 'is a folder'}),
    'backslashes': (ROWS.replace('b.jpg', 'img\\b.jpg'), {1: 'not a backslash'}),
    'a line break in a path': (ROWS.replace('b.jpg', '"b\n.jpg"'), {1: 'there is no file'}),
    'a missing label': (ROWS.replace('b.jpg,1', 'b.jpg,'), {1: "no label in 'ring'", 3: "class '1"}),
    'formulas as labels': (ROWS.replace('b.jpg,1', 'b.jpg,"=HYPERLINK(""http://x"")"'),
                           {1: 'only one galaxy', 3: 'only one galaxy'}),
    'a blank line': (ROWS.replace(IDS[2], '\n'+IDS[2]), {}),
    'old Mac line ends': (ROWS.replace('\n', '\r'), {}),
    'no line break at the end': (ROWS[:-1], {}),
    'a quoted comma': (ROWS.replace('b.jpg', '"b,2.jpg"'), {1: 'there is no file'}),
}

DAMAGED = ['c.csv', 'c.tsv.gz', 'c.csv.zip', 'c.parquet', 'c.fits', 'c.fits.gz', 'c.vot', 'c.ecsv']
@pytest.mark.parametrize('name', DAMAGED)
def test_damage_anywhere_is_read_or_refused(tmp_path, name):
    "Bytes changed, lost, added, or cut off: a table or a CatalogError, in no time"
    FORMATS[name](galaxies(), tmp_path/name)
    whole,rng,refused = (tmp_path/name).read_bytes(),np.random.default_rng(0),0
    for _ in range(40):
        b,i = bytearray(whole),int(rng.integers(len(whole)))
        how,some = rng.integers(4),rng.integers(0, 256, int(rng.integers(1, 20)), dtype=np.uint8).tobytes()
        if how==0: b[i:i+len(some)] = some
        elif how==1: del b[i:i+len(some)]
        elif how==2: b[i:i] = some
        else: b = b[:i]
        (tmp_path/name).write_bytes(b)
        start = time.perf_counter()
        try: check_catalog(read_catalog(tmp_path/name), open_images=False)
        except CatalogError as e: refused += str(tmp_path/name) in str(e)
        assert time.perf_counter()-start<20
    assert refused>5

@pytest.mark.parametrize('what', list(ODD))
def test_an_odd_catalogue_loses_and_shifts_no_row(tmp_path, what):
    text,bad = ODD[what]
    for c in 'abcd': (tmp_path/f'{c}.jpg').touch()
    (tmp_path/'c.csv').write_text(text, newline='')
    df = read_catalog(tmp_path/'c.csv')
    check = check_catalog(df, 'ring', open_images=False)
    reasons = dict(zip(check.bad.file_loc+check.bad.id_str, check.bad.reason))
    assert len(df)==4 and len(check.ok)==4-len(bad) and len(check.bad)==len(bad)
    for i,said in bad.items(): assert said in reasons[df.file_loc[i]+df.id_str[i]], reasons
    assert all(len(o)<1000 for o in check.bad.reason)
    rest = [i for i in range(4) if i not in bad]
    assert check.ok.id_str.tolist()==[df.id_str[i] for i in rest]
    assert [Path(o).name for o in check.ok.file_loc]==['abcd'[i]+'.jpg' for i in rest]

@pytest.mark.parametrize('name,says', [
    ('gone.jpg', 'there is no file {}'), ('folder', '{} is a folder; give the path of an image in it'),
    ('pipe', '{} is no ordinary file'), ('/dev/zero', '{} is no ordinary file'), ('name .jpg ', 'there is no file {}')])
def test_the_catalogue_and_the_reader_say_the_same_of_no_file(tmp_path, name, says):
    (tmp_path/'folder').mkdir()
    os.mkfifo(tmp_path/'pipe')
    path = str(tmp_path/name)
    with pytest.raises(ImageError) as e: ImageReader(32)(path)
    assert absent_files([path])=={path: str(e.value)} and str(e.value).startswith(says.format(path))
