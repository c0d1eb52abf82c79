"One table of image formats: what a new row does, and arrays that numpy has saved, right and hostile ones"
import io, os, pickle, struct
import numpy as np, pandas as pd, pytest, torch
from astropy.io import fits
from PIL import Image
from zoofast.core.errors import ImageError
from zoofast.data.check import check_catalog
from zoofast.data.store import ImageStore
from zoofast.images import reader as table
from zoofast.images.reader import FORMATS, ImageFormat, ImageReader, fit_reader, image_format

SIZE = 40
y,x = np.mgrid[:SIZE,:SIZE]
GALAXY = (100*np.exp(-((x-15)**2/60+(y-25)**2/30))+np.random.default_rng(0).normal(0, 2, (SIZE,SIZE))).astype('f4')
CUBE = np.stack([GALAXY, GALAXY*.7, GALAXY*.4])

@pytest.fixture
def galaxy_file(tmp_path):
    "Write a file of a format that nobody knows: a word, the side, floats"
    def write(name, a=GALAXY):
        (tmp_path/name).write_bytes(b'GALAXY1\0'+struct.pack('<I', len(a))+a.astype('<f4').tobytes())
        return str(tmp_path/name)
    return write

def read_galaxy(path):
    data = open(path, 'rb').read()
    side = struct.unpack('<I', data[8:12])[0]
    return np.frombuffer(data[12:], '<f4').reshape(1, side, side)

@pytest.fixture
def new_row(monkeypatch):
    "One row more, as a user would add it"
    monkeypatch.setattr(table, 'FORMATS', [*FORMATS])
    table.FORMATS.append(ImageFormat('galaxy', (b'GALAXY1\0',), ('.galaxy',), read_galaxy))

def test_a_new_format_is_one_row_and_one_function(new_row, galaxy_file, tmp_path):
    "Read, checked, cached as every other, whatever its name is; and the others are read as before"
    files = [galaxy_file('a.galaxy'), galaxy_file('b.jpg', GALAXY.T), galaxy_file('c', GALAXY[:,::-1])]
    fits.writeto(tmp_path/'same.fits', GALAXY[::-1])
    reader = ImageReader(32)
    assert torch.equal(reader(files[0]), reader(tmp_path/'same.fits'))
    open(tmp_path/'cut.galaxy', 'wb').write(open(files[0], 'rb').read()[:500])
    (tmp_path/'odd.galaxy').write_bytes(b'something else')
    all_five = [*files, str(tmp_path/'cut.galaxy'), str(tmp_path/'odd.galaxy')]
    df = pd.DataFrame(dict(id_str=list('abcde'), file_loc=all_five))
    check = check_catalog(df, progress=False)
    assert check.ok.id_str.tolist()==['a', 'b', 'c'] and check.bad.id_str.tolist()==['d', 'e']
    assert all(f in r for f,r in zip(check.bad.file_loc, check.bad.reason))
    store = ImageStore(files, reader, cache=tmp_path/'cache', progress=False)
    assert torch.equal(store[[0]][0], reader(files[0]))

def test_without_its_row_the_file_is_unknown(galaxy_file):
    with pytest.raises(ImageError, match='starts with b.GALAXY1'): ImageReader(32)(galaxy_file('a.galaxy'))

def test_rows_do_not_claim_the_same_files():
    starts = [(s, o.name) for o in FORMATS for s in o.starts]
    assert not [(a, b) for a,n in starts for b,m in starts if n!=m and a.startswith(b)]
    suffixes = [s for o in FORMATS for s in o.suffixes]
    assert len(set(suffixes))==len(suffixes) and all(s==s.lower() for s in suffixes)

@pytest.mark.parametrize('name,head,kind', [
    ('a.fits', b'\xff\xd8\xff', 'jpg'),
    ('a.npy', b'\x89PNG', 'jpg'),
    ('a.jpg', b'\x93NUMPY', 'npy'),
    ('a.fits', b'\x93NUMPY', 'npy'),
    ('a', b'SIMPLE  =', 'FITS'),
    ('a.npy', b'<html>', 'npy'),
    ('a.FITS', b'<html>', 'FITS'),
    ('a.jpg', b'<html>', 'jpg'),
    ('a.jp2', b'\0\0\0\x0cjP', 'jpg')])
def test_first_bytes_say_more_than_the_name(tmp_path, name, head, kind):
    (tmp_path/name).write_bytes(head)
    assert image_format(tmp_path/name).name.startswith(kind)

KINDS = ['f4', 'f8', '>f4', '>f8', 'i2', '>i2', 'i4', 'u2', 'i8']
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape', ['plane', 'bands first', 'bands last', 'one more axis'])
def test_an_array_is_read_as_the_same_array_in_fits(tmp_path, kind, shape):
    arrays = {'plane': GALAXY, 'bands first': CUBE, 'bands last': CUBE.transpose(1,2,0),
              'one more axis': GALAXY[None,:,:,None]}
    a = arrays[shape]
    a = (a-a.min()).astype(kind)
    np.save(tmp_path/'a.npy', a)
    fits.writeto(tmp_path/'a.fits', a.astype(a.dtype.newbyteorder('=')))
    for reader in (ImageReader(32), ImageReader(32, stretch=dict(kind='asinh', low=0, high=80), crop=.8, margin=1.2)):
        assert torch.equal(reader.wide(tmp_path/'a.npy'), reader.wide(tmp_path/'a.fits'))

def test_half_precision_and_other_orders(tmp_path):
    arrays = {'half': GALAXY.astype('f2'), 'fortran': np.asfortranarray(CUBE), 'long': GALAXY.astype(np.longdouble)}
    for name,a in arrays.items():
        np.save(tmp_path/f'{name}.npy', a)
        fits.writeto(tmp_path/f'{name}.fits', a.astype('f4'))
        assert torch.equal(ImageReader(32)(tmp_path/f'{name}.npy'), ImageReader(32)(tmp_path/f'{name}.fits')), name

@pytest.mark.parametrize('version', [(1,0), (2,0), (3,0)])
def test_versions_of_the_format(tmp_path, version):
    np.save(tmp_path/'a.npy', GALAXY)
    with open(tmp_path/'b.npy', 'wb') as f: np.lib.format.write_array(f, GALAXY, version)
    assert torch.equal(ImageReader(32)(tmp_path/'a.npy'), ImageReader(32)(tmp_path/'b.npy'))

def test_bytes_are_pixels_and_are_not_stretched(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (SIZE,SIZE,3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path/'a.png')
    for i,a in enumerate((rgb, rgb.transpose(2,0,1), np.asfortranarray(rgb))):
        np.save(tmp_path/f'{i}.npy', a)
        assert torch.equal(ImageReader(32)(tmp_path/f'{i}.npy'), ImageReader(32)(tmp_path/'a.png'))
    with pytest.raises(ValueError, match='stretched already'):
        fit_reader(ImageReader(32, stretch='asinh'), [tmp_path/'0.npy'])

def test_pixels_without_flux(tmp_path):
    a = GALAXY.copy()
    a[3,4],a[5,6],a[7,8] = np.nan,np.inf,-np.inf
    np.save(tmp_path/'a.npy', a)
    fits.writeto(tmp_path/'a.fits', a)
    assert torch.equal(ImageReader(32)(tmp_path/'a.npy'), ImageReader(32)(tmp_path/'a.fits'))

def test_bands_are_chosen(tmp_path):
    np.save(tmp_path/'a.npy', CUBE)
    np.save(tmp_path/'b.npy', CUBE[[2,0,1]])
    assert torch.equal(ImageReader(32, bands=(2,0,1))(tmp_path/'a.npy'), ImageReader(32)(tmp_path/'b.npy'))
    with pytest.raises(ImageError, match='has no bands .*it has 3: 0, 1, 2'):
        ImageReader(32, bands=('z',))(tmp_path/'a.npy')
    for n,b in zip('grz', CUBE): np.save(tmp_path/f'{n}.npy', b)
    three = '|'.join(str(tmp_path/f'{n}.npy') for n in 'grz')
    assert torch.equal(ImageReader(32)(three), ImageReader(32)(tmp_path/'a.npy'))

class Boom:
    def __reduce__(self): return os.mkdir,(os.environ['ZOOFAST_TEST_BOOM'],)

def npy(a, **kw):
    b = io.BytesIO()
    np.save(b, a, **kw)
    return b.getvalue()

def promising(shape, descr='<f4', data=b'', version=b'\1\0'):
    "A file whose header is ours"
    head = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b'\x93NUMPY'+version+struct.pack('<H' if version==b'\1\0' else '<I', len(head)+1)+head+b'\n'+data

HOSTILE = {
    'objects': (lambda: npy(np.array([[Boom()]], dtype=object), allow_pickle=True), 'holds object'),
    'text': (lambda: npy(np.full((9,9), 'galaxy')), 'holds <U6'),
    'bool': (lambda: npy(GALAXY>5), 'holds bool'),
    'complex': (lambda: npy(GALAXY.astype('c8')), 'holds complex64'),
    'dates': (lambda: npy(GALAXY.astype('M8[s]')), 'holds datetime64'),
    'fields': (lambda: npy(np.zeros((9,9), [('a', 'f4'), ('b', 'i2')])), 'not whole or floating-point numbers'),
    'number': (lambda: npy(np.float32(3)), r'shape \(\)'),
    'row': (lambda: npy(GALAXY[0]), r'shape \(40,\)'),
    'row of one': (lambda: npy(GALAXY[:1]), r'shape \(1, 40\)'),
    'four axes': (lambda: npy(CUBE[None].repeat(2, 0)), r'shape \(2, 3, 40, 40\)'),
    'no rows': (lambda: npy(GALAXY[:0]), 'empty array of 0 x 40'),
    'cut': (lambda: npy(GALAXY)[:3000], 'truncated'),
    'cut header': (lambda: npy(GALAXY)[:60], ''),
    'magic only': (lambda: b'\x93NUMPY', ''),
    'nothing': (lambda: b'', 'the file is empty'),
    'bomb': (lambda: promising((10**9, 10**9)), 'cut the galaxy out'),
    'bomb of bands': (lambda: promising((4000, 4000, 4000)), 'cut the galaxy out'),
    'overflow': (lambda: promising((2**40, 2**40)), 'cut the galaxy out'),
    'negative': (lambda: promising((-40, 40), data=b'\0'*99), 'empty array of -40 x 40'),
    'promises more': (lambda: promising((40, 40), data=b'\0'*99), r'truncated \(it has 99 of 6400 bytes\)'),
    'code in the header': (lambda: promising("__import__('os').getpid()"), 'its header cannot be read'),
    'wide numbers': (lambda: promising((40, 40), '|V1000000000'), 'not whole or floating'),
    'wrong kind': (lambda: promising((40, 40), 'galaxy'), 'its header cannot be read'),
    'future version': (lambda: promising((40, 40), version=b'\x09\0'), ''),
    'nested header': (lambda: promising('('*3000), ''),
    'long header': (lambda: promising(' '*60000+'(40, 40)'), 'header'),
    'page': (lambda: b'<html>404</html>', 'is no array that numpy has saved: it starts with b.<html>'),
    'pickle': (lambda: pickle.dumps(Boom()), 'is no array that numpy has saved'),
    'nan': (lambda: npy(GALAXY*np.nan), 'no finite pixel'),
    'constant': (lambda: npy(np.zeros((9,9))), 'the same value, 0'),
}

@pytest.mark.parametrize('case', HOSTILE)
@pytest.mark.filterwarnings('ignore')
def test_hostile_arrays(tmp_path, monkeypatch, case):
    "An error that names the file and the reason; nothing is run, and no memory asked for that is not there"
    monkeypatch.setenv('ZOOFAST_TEST_BOOM', str(tmp_path/'boom'))
    make,why = HOSTILE[case]
    file = tmp_path/'galaxy.npy'
    file.write_bytes(make())
    with pytest.raises(ImageError, match=why) as e: ImageReader(32)(file)
    assert str(file) in str(e.value) and len(str(e.value))>len(str(file))+10
    assert not (tmp_path/'boom').exists()
    df = pd.DataFrame(dict(id_str=['a'], file_loc=[str(file)]))
    assert check_catalog(df, progress=False).bad.id_str.tolist()==['a']

def test_what_follows_an_array_does_not_matter(tmp_path):
    (tmp_path/'a.npy').write_bytes(npy(GALAXY)+b'junk'*99)
    (tmp_path/'b.npy').write_bytes(npy(GALAXY))
    assert torch.equal(ImageReader(32)(tmp_path/'a.npy'), ImageReader(32)(tmp_path/'b.npy'))

def test_arrays_are_trained_on_and_predicted(tmp_path):
    "A catalogue of `.npy` gives the predictions of the same catalogue of FITS; what cannot be read has its error"
    from zoofast.bundles.model import GalaxyModel
    from zoofast.encoders.encoder import GalaxyNet
    from zoofast.encoders.sources import create_encoder
    from zoofast.data.loaders import GalaxyDataLoaders
    from zoofast.predict.table import predict_catalog
    from zoofast.tasks.classes import Classification
    rng = np.random.default_rng(0)
    for i in range(8):
        a = CUBE+rng.normal(0, 2, CUBE.shape)
        np.save(tmp_path/f'{i}.npy', a)
        fits.writeto(tmp_path/f'{i}.fits', a)
    def catalog(suffix):
        files = [str(tmp_path/f'{i}.{suffix}') for i in range(8)]
        return pd.DataFrame(dict(id_str=[str(i) for i in range(8)], file_loc=files, ring=[0, 1]*4))
    def loaders(df):
        return GalaxyDataLoaders.from_catalog(df, 'ring', size=32, batch_size=4, cache=tmp_path/'cache', augment=None,
                                              progress=False)
    tables = [catalog(s) for s in ('npy', 'fits')]
    dls = [loaders(df) for df in tables]
    assert all(torch.equal(a[0].cpu(), b[0].cpu()) for a,b in zip(dls[0].valid, dls[1].valid, strict=True))
    torch.manual_seed(0)
    net = GalaxyNet(create_encoder('test_vit', 160, pretrained=False), 2)
    model = GalaxyModel(net, Classification('ring', [0, 1]), ImageReader(160), device='cpu')
    (tmp_path/'7.npy').write_bytes(npy(CUBE)[:900])
    got,expected = (predict_catalog(model, df, progress=False) for df in tables)
    assert 'truncated' in got.error[7]
    assert got.iloc[:7].drop(columns='file_loc').equals(expected.iloc[:7].drop(columns='file_loc'))
