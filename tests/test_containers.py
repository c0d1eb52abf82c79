"Many pictures in one file: npy, npz, HDF5, Zarr, zip, tar. Each is read in place, as if it were a file of its own"
import gzip, io, os, pickle, subprocess, sys, tarfile, zipfile
import h5py, numpy as np, pandas as pd, pytest, torch, zarr
from astropy.io import fits
from PIL import Image
from zoofast.catalog.read import read_catalog
from zoofast.core.errors import CatalogError, ImageError
from zoofast.data.check import check_catalog
from zoofast.data.pictures import make_catalog
from zoofast.data.store import ImageStore
from zoofast.images.parallel import read_batches
from zoofast.images.reader import ImageReader

N,SIZE = 24,40
rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
FLUX = rng.normal(5, 1, (N, SIZE, SIZE)).astype('f4')
FIXED = dict(stretch=dict(kind='linear', low=0, high=10))

def as_png(px):
    f = io.BytesIO()
    Image.fromarray(px).save(f, 'png')
    return f.getvalue()

def as_fits(flux):
    f = io.BytesIO()
    fits.PrimaryHDU(flux).writeto(f)
    return f.getvalue()

def as_npy(a):
    f = io.BytesIO()
    np.save(f, a)
    return f.getvalue()

FILES = {'spiral/1.png': as_png(RGB[1]), './2.fits': as_fits(FLUX[2]), 'a b/3.fits.gz': gzip.compress(as_fits(FLUX[3])),
         '../../4.npy': as_npy(FLUX[4]), 'stack.npy': as_npy(RGB), '/abs/5.png': as_png(RGB[5])}

def write(path, **arrays):
    "Arrays as a file of the kind that its name says"
    name = str(path)
    if name.endswith('.npy'): np.save(path, arrays['images'])
    elif name.endswith('packed.npz'): np.savez_compressed(path, **arrays)
    elif name.endswith('.npz'): np.savez(path, **arrays)
    elif '.h5' in name:
        how = dict(chunked=dict(compression='gzip', chunks=True), rows=dict(chunks=1), plain={})
        kind = next((v for k,v in how.items() if k in name), {})
        with h5py.File(path, 'w') as f:
            for k,v in arrays.items():
                of = 7 if 'compression' in kind else 1
                if 'chunks' in kind: kind['chunks'] = (of, *(min(n, 9) for n in v.shape[1:]))
                f.create_dataset(k, data=v, **(kind if v.ndim>2 else {}))
    else:
        version = 2 if 'v2' in name else 3
        root = zarr.open_group(name, mode='w', zarr_format=version)
        for k,v in arrays.items():
            a = root.create_array(k, shape=v.shape, dtype=v.dtype, chunks=(5, *v.shape[1:]) if v.ndim>1 else v.shape)
            a[...] = v
    return str(path)

def archive(path, files=FILES, kind=zipfile.ZIP_DEFLATED):
    if str(path).endswith('.tar'):
        with tarfile.open(path, 'w') as t:
            for k,v in files.items():
                info = tarfile.TarInfo(k)
                info.size = len(v)
                t.addfile(info, io.BytesIO(v))
    else:
        with zipfile.ZipFile(path, 'w', kind) as z:
            for k,v in files.items(): z.writestr(k, v)
    return str(path)

KINDS = ['a.npy', 'a.npz', 'packed.npz', 'plain.h5', 'chunked.h5', 'rows.h5', 'no_suffix.h5.data', 'v2.zarr', 'v3.zarr']

@pytest.mark.parametrize('name', KINDS)
@pytest.mark.parametrize('axes', ['nyx', 'nyxc', 'ncyx', 'flux', 'big-endian'])
def test_a_picture_of_a_stack_is_the_array_s_row(tmp_path, name, axes):
    "Byte for byte what the same array gives, in any order of the pictures, whatever the axes and the numbers"
    stack = dict(nyx=RGB[...,0], nyxc=RGB, ncyx=RGB.transpose(0,3,1,2), flux=FLUX)
    images = stack['flux'].astype('>f4') if axes=='big-endian' else stack[axes]
    images = np.ascontiguousarray(images)
    if axes=='big-endian' and name.endswith('zarr') and '3' in name: pytest.skip('Zarr 3 has no byte order of its own')
    file = write(tmp_path/name, images=images, ans=np.arange(N))
    key = '' if name=='a.npy' else 'images'
    reader = ImageReader(SIZE, **FIXED)
    for i in (17, 0, 23, 18, 17):
        assert torch.equal(reader(f'{file}::{key}[{i}]'), reader(images[i]))
    if 'flux' in axes:
        one = tmp_path/'one.fits'
        fits.writeto(one, images[17])
        assert torch.equal(reader(f'{file}::{key}[17]'), reader(one))

PACKED = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]

@pytest.mark.parametrize('name,kind', [*(('a.zip', o) for o in PACKED), ('a.tar', None), ('no_suffix', PACKED[0])])
def test_a_file_in_an_archive_is_read_as_if_it_lay_on_the_disk(tmp_path, name, kind):
    "png, FITS, packed FITS, npy, a picture of a stack; names that would lead elsewhere are names"
    file = archive(tmp_path/name, kind=kind)
    reader = ImageReader(SIZE, **FIXED)
    for k,data in FILES.items():
        if k=='stack.npy': continue
        alone = tmp_path/('alone'+k.rpartition('/')[2])
        alone.write_bytes(data)
        assert torch.equal(reader(f'{file}::{k}'), reader(alone))
    for i in (17, 3, 18): assert torch.equal(reader(f'{file}::stack.npy[{i}]'), reader(RGB[i]))
    assert sorted(o.name for o in tmp_path.parent.iterdir())==[tmp_path.name] or not (tmp_path.parent/'4.npy').exists()

def test_bands_of_stacks(tmp_path):
    "One place a band, and bands by number"
    file = write(tmp_path/'a.h5', g=FLUX, r=FLUX*2)
    reader = ImageReader(SIZE, channels=2, **FIXED)
    assert torch.equal(reader(f'{file}::g[3]|{file}::r[3]'), reader(np.stack([FLUX[3], FLUX[3]*2])))
    rgb = write(tmp_path/'a.npz', images=RGB)
    assert torch.equal(ImageReader(SIZE, bands=(2,1,0))(f'{rgb}::images[3]'), ImageReader(SIZE)(RGB[3,...,::-1]))

def test_arrays_that_are_one_picture(tmp_path):
    "A group a galaxy, as some HDF5 files have them"
    with h5py.File(tmp_path/'a.h5', 'w') as f: f['galaxy_1/image'] = RGB[1]
    np.savez(tmp_path/'a.npz', one=RGB[1])
    for o in ('a.h5::galaxy_1/image', 'a.h5::/galaxy_1/image', 'a.npz::one'):
        assert torch.equal(ImageReader(SIZE)(f'{tmp_path}/{o}'), ImageReader(SIZE)(RGB[1]))

@pytest.fixture
def there(tmp_path):
    write(tmp_path/'a.npy', images=RGB)
    write(tmp_path/'a.npz', images=RGB, ans=np.arange(N))
    write(tmp_path/'a.h5', images=RGB, ans=np.arange(N))
    write(tmp_path/'a.zarr', images=RGB, ans=np.arange(N))
    archive(tmp_path/'a.zip'); archive(tmp_path/'a.tar')
    (tmp_path/'png').write_bytes(as_png(RGB[0]))
    return tmp_path

ABSENT = [
    ('a.npy::[24]', 'no picture 24: the stack of 24 x 40 x 40 x 3 has the numbers 0 to 23'),
    ('a.npy::[-1]', 'holds one array'), ('a.npy::images[1]', 'holds one array'), ('a.npy', r'as in stack.npy::\[17\]'),
    ('a.npz::images[24]', 'no picture 24'), ('a.npz::image[1]', "did you mean 'images.npy'"),
    ('a.npz::ans[1]', 'no stack'),
    ('a.npz', 'named as in ::images.npy'),
    ('a.h5::images[24]', 'no picture 24'),
    ('a.h5::imges[1]', r"no array 'imges' \(did you mean 'images'\?\); it has: images \(24"),
    ('a.h5::ans[1]', 'no stack'), ('a.h5::images', r'shape \(24, 40, 40, 3\)'),
    ('a.h5', r'named as in ::\w+\[0\]; it has: images'),
    ('a.h5::../a.h5', 'has no array'),
    ('a.zarr::images[24]', 'no picture 24'), ('a.zarr::imges[1]', 'did you mean'), ('a.zarr::../b[1]', 'has no array'),
    ('a.zip::spiral/2.png', "did you mean 'spiral/1.png'.*it holds 6 files: spiral/1.png"),
    ('a.zip', 'named as in ::spiral/1.png'),
    ('a.zip::stack.npy[24]', 'no picture 24'), ('a.tar::spiral/2.png', 'it holds 6 files'), ('a.tar', 'is an archive'),
    ('a.zip::spiral/1.png::[1]', 'is no array'), ('png::[0]', 'is one picture'),
    ('gone.h5::images[1]', 'there is no file'),
    ('a.zarr', 'is a folder'),
]
@pytest.mark.parametrize('place,why', ABSENT)
def test_what_is_not_there_is_said_with_what_is(there, place, why):
    with pytest.raises(ImageError, match=why) as e: ImageReader(SIZE)(f'{there}/{place}')
    assert f'{there}/{place.partition("::")[0]}' in str(e.value) and '\n' not in str(e.value)


def bytes_read():
    return int(next(o for o in open('/proc/self/io') if o.startswith('rchar')).split()[1])

@pytest.mark.slow(but=1)
@pytest.mark.skipif(not os.path.exists('/proc/self/io'), reason='the system does not count')
@pytest.mark.parametrize('name', ['a.npy', 'a.npz', 'plain.h5', 'rows.h5', 'v3.zarr', 'a.zip', 'a.tar'])
def test_one_picture_costs_its_bytes(tmp_path, name):
    "Once the file is known: 500 pictures of 120 kB, of which one is read"
    big = np.random.default_rng(0).integers(0, 256, (500, 200, 200, 3), dtype=np.uint8)
    if name[2:] in ('zip', 'tar'):
        file,place = archive(tmp_path/name, {f'{i}.npy': as_npy(big[i]) for i in range(500)}),'{}.npy'
    else: file,place = write(tmp_path/name, images=big),'[{}]' if name=='a.npy' else 'images[{}]'
    reader = ImageReader(64)
    reader(f'{file}::{place.format(3)}')
    before = bytes_read()
    reader(f'{file}::{place.format(400)}')
    pictures = 5 if 'zarr' in name else 1                            # the chunks have five
    assert bytes_read()-before<pictures*120_000+100_000

@pytest.mark.slow(but=4)
@pytest.mark.parametrize('name', KINDS+['a.zip', 'a.tar'])
def test_threads_and_forked_processes_read_what_one_reads(tmp_path, name):
    "What is open in one is never used by another, whose place in the file is another"
    pictures = {f'{i}.png': as_png(RGB[i]) for i in range(N)}
    if name in ('a.zip', 'a.tar'): file,place = archive(tmp_path/name, pictures),'{}.png'
    else: file,place = write(tmp_path/name, images=RGB),'[{}]' if name=='a.npy' else 'images[{}]'
    jobs = [f'{file}::{place.format(i)}' for i in list(range(N))*8]
    reader = ImageReader(SIZE)
    right = torch.stack([reader(RGB[i]) for i in range(N)]*8)
    def one(job, px):
        px[:] = reader(job).numpy()
        return job
    for n in ('0', '3'):
        os.environ['ZOOFAST_READERS'] = n
        try: got = list(read_batches(one, [('all', jobs)], (3, SIZE, SIZE), len(jobs)))
        finally: del os.environ['ZOOFAST_READERS']
        assert np.array_equal(got[0][1], right.numpy())

def test_a_file_that_changes_is_opened_anew(tmp_path):
    reader = ImageReader(SIZE)
    for i in (1, 2):
        (tmp_path/'a.h5').unlink(missing_ok=True)
        places = {'a.npy': '[0]', 'a.npz': 'images[0]', 'a.h5': 'images[0]'}
        files = [f'{write(tmp_path/o, images=RGB[i:])}::{k}' for o,k in places.items()]
        files.append(f"{archive(tmp_path/'a.zip', {'1.png': as_png(RGB[i])})}::1.png")
        for f in files: assert torch.equal(reader(f), reader(RGB[i]))

def cut(data, n): return data[:int(len(data)*n)]

class Bomb:
    def __reduce__(self): return os.system, ('touch unpickled',)

def objects(): return np.array([[Bomb()]*40]*40, dtype=object)

def lying_zip(declared):
    "A zip whose list says that the file unpacks to so many bytes"
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('1.png', as_png(RGB[1]))
    b = bytearray(data.getvalue())
    at = b.rindex(b'PK\1\2')
    b[at+24:at+28] = declared.to_bytes(4, 'little')
    return bytes(b)

def encrypted():
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as z: z.writestr('1.png', as_png(RGB[1]))
    b = bytearray(data.getvalue())
    b[b.rindex(b'PK\1\2')+8] |= 1
    b[6] |= 1
    return bytes(b)

def of(path, make):
    make(path)
    return open(path, 'rb').read()

def damaged(data, at, n=40): return data[:at]+np.random.default_rng(0).bytes(n)+data[at+n:]

HOSTILE = [
    ('cut.npy', lambda d: cut(as_npy(RGB), .5), '[17]', 'truncated'),
    ('objects.npy', lambda d: of(d/'o.npy', lambda p: np.save(p, np.array([objects()]*2))), '[1]', 'holds object'),
    ('objects.npz', lambda d: of(d/'o.npz', lambda p: np.savez(p, a=np.array([objects()]*2))), 'a[1]', 'holds object'),
    ('one.npz', lambda d: of(d/'o.npz', lambda p: np.savez(p, images=objects())), 'images', 'holds object'),
    ('fortran.npy', lambda d: as_npy(np.asfortranarray(RGB)), '[1]', 'Fortran'),
    ('text.npy', lambda d: as_npy(np.full((9, 40, 40), 'abc')), '[1]', 'holds <U3'),
    ('bomb.npy', lambda d: as_npy(RGB).replace(b'(24, 40, 40, 3)', b'(24, 99999999,)'), '[1]', 'no stack|truncated'),
    ('cut.npz', lambda d: cut(of(d/'o.npz', lambda p: np.savez(p, images=RGB)), .7), 'images[1]', 'cut off or damaged'),
    ('cut.h5', lambda d: cut(of(d/'o.h5', lambda p: write(p, images=RGB)), .5), 'images[1]', 'truncated'),
    ('noise.h5', lambda d: b'\x89HDF\r\n\x1a\n'+rng.bytes(9000), 'images[1]', ''),
    ('named.h5', lambda d: as_png(RGB[0]), 'images[1]', 'is one picture'),
    ('cut.zip', lambda d: cut(of(d/'o.zip', archive), .9), 'spiral/1.png', 'cut off or damaged'),
    ('encrypted.zip', lambda d: encrypted(), '1.png', 'is encrypted'),
    ('bomb.zip', lambda d: lying_zip(2**32-2), '1.png', 'unpacks to 4.29 GB, more than'),
    ('lies.zip', lambda d: lying_zip(10), '1.png', ''),
    ('longer.zip', lambda d: lying_zip(10**6), '1.png', 'cut off'),
    ('damaged.zip', lambda d: damaged(of(d/'o.zip', archive), 900), 'spiral/1.png', ''),
    ('elsewhere.zip', lambda d: damaged(lying_zip(4000), 0, 4), '1.png', 'not where its list says'),
    ('zip_in.zip', lambda d: of(d/'o.zip', lambda p: archive(p, {'a.zip': of(d/'i.zip', archive)})), 'a.zip',
     'within an archive'),
    ('text.zip', lambda d: of(d/'o.zip', lambda p: archive(p, {'1.png': b'hello'})), '1.png', 'of no kind'),
    ('empty.zip', lambda d: of(d/'o.zip', lambda p: archive(p, {})), '1.png', 'it is empty'),
    ('cut.tar', lambda d: cut(of(d/'o.tar', archive), .7), 'stack.npy[23]', 'cut off'),
    ('noise.tar', lambda d: rng.bytes(9000), '1.png', 'cut off or damaged'),
    ('packed.tar.gz', lambda d: gzip.compress(of(d/'o.tar', archive)), 'spiral/1.png', 'packed tar'),
    ('packed.tgz', lambda d: gzip.compress(of(d/'o.tar', archive)), 'spiral/1.png', 'packed tar'),
]
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name,make,place,why', HOSTILE, ids=[o[0] for o in HOSTILE])
def test_hostile(tmp_path, monkeypatch, name, make, place, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path/name).write_bytes(make(tmp_path))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ImageError, match=why) as e: ImageReader(SIZE)(f'{tmp_path/name}::{place}')
    assert str(e.value).startswith(f'{tmp_path/name}::{place}: ') and '\n' not in str(e.value)
    assert sorted(tmp_path.iterdir())==before and not os.path.exists('unpickled')

def test_numbers_in_another_file_are_not_read(tmp_path):
    "HDF5 can point to any file of the machine"
    (tmp_path/'secret').write_bytes(RGB.tobytes())
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        f.create_dataset('images', shape=RGB.shape, dtype='u1', external=[(str(tmp_path/'secret'), 0, RGB.nbytes)])
        f['link'] = h5py.ExternalLink(str(tmp_path/'b.h5'), 'images')
    write(tmp_path/'b.h5', images=RGB)
    with pytest.raises(ImageError, match="'images' are in another file"):
        ImageReader(SIZE)(f'{tmp_path}/a.h5::images[1]')
    with h5py.File(tmp_path/'c.h5', 'w') as f: f['link'] = h5py.ExternalLink(str(tmp_path/'b.h5'), 'images')
    with pytest.raises(ImageError, match="has no array 'link'"): ImageReader(SIZE)(f'{tmp_path}/c.h5::link[1]')

@pytest.mark.parametrize('at', ['filters', 'compressor'])
def test_zarr_never_unpickles(tmp_path, monkeypatch, at):
    import json
    monkeypatch.chdir(tmp_path)
    file,codec = tmp_path/'a.zarr',dict(id='pickle', protocol=5)
    (file/'images').mkdir(parents=True)
    (file/'.zgroup').write_text('{"zarr_format": 2}')
    about = dict(zarr_format=2, shape=[2, 40, 40], chunks=[2, 40, 40], dtype='|u1', fill_value=0, order='C',
                 compressor=None, filters=None) | {at: [codec] if at=='filters' else codec}
    (file/'images/.zarray').write_text(json.dumps(about))
    (file/'images/0.0.0').write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ImageError, match='pickle'): ImageReader(SIZE)(f'{file}::images[1]')
    assert not os.path.exists('unpickled')

@pytest.mark.parametrize('package,file', [('h5py', 'a.h5'), ('zarr', 'a.zarr')])
def test_without_the_package_the_pip_line_is_said(there, package, file):
    code = (f"import sys; sys.modules['{package}'] = None\n"
            f"from zoofast.images.reader import ImageReader\nImageReader(32)('{there}/{file}::images[1]')")
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stderr
    extra = dict(h5py='hdf5', zarr='zarr')[package]
    assert f"pip install 'zoofast[{extra}]'" in said and 'ImageError' in said


# Catalogues of pictures that have none

LABELS = np.array(['ring', 'spiral', 'disk'])[np.arange(N)%3]

@pytest.mark.parametrize('name', KINDS[1:])
def test_arrays_beside_the_pictures_become_columns(tmp_path, name):
    "Each row's picture and label are those of the array's row, also when the catalogue was written and read again"
    ans,z = np.arange(N)%3,np.linspace(0, 1, N)
    file = write(tmp_path/name, images=RGB, ans=ans.astype('>i4'), z=z, votes=np.zeros((N, 5)), seed=np.array([3]))
    with pytest.warns(UserWarning, match=r'left out: .*(votes|seed) \('): df = make_catalog(file)
    assert df.columns.tolist()[:2]==['id_str', 'file_loc'] and sorted(df.columns[2:])==['ans', 'z']
    assert df.id_str.is_unique and df.ans.tolist()==ans.tolist() and np.allclose(df.z, z)
    df.to_csv(tmp_path/'a.csv', index=False)
    again = read_catalog(tmp_path/'a.csv')
    assert again.id_str.tolist()==df.id_str.tolist() and again.file_loc.tolist()==df.file_loc.tolist()
    assert torch.equal(ImageReader(SIZE)(again.file_loc[17]), ImageReader(SIZE)(RGB[17]))
    assert check_catalog(again, 'ans', progress=False).bad.empty

def test_texts_are_labels(tmp_path):
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        f['images'],f['kind'],f['fixed'],f['id_str'] = RGB,LABELS.tolist(),LABELS.astype('S'),np.arange(N)+10**18
    df = make_catalog(tmp_path/'a.h5')
    assert df.kind.tolist()==df.fixed.tolist()==LABELS.tolist() and str(df.id_str[1])==str(10**18+1)
    np.savez(tmp_path/'a.npz', images=RGB, kind=LABELS, odd=np.array([{}]*N, dtype=object))
    with pytest.warns(UserWarning, match='left out: odd .*not unpickled'): df = make_catalog(tmp_path/'a.npz')
    assert df.kind.tolist()==LABELS.tolist()

@pytest.mark.parametrize('name', ['a.zip', 'a.tar', 'folder'])
def test_folders_are_labels(tmp_path, name):
    files = {f'all/{LABELS[i]}/{i}.png': as_png(RGB[i]) for i in range(N)}
    files |= {'all/README.txt': b'by hand', 'all/ring/.hidden.png': b'', '__MACOSX/all/ring/1.png': b''}
    if name=='folder':
        for k,v in files.items():
            (tmp_path/name/k).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path/name/k).write_bytes(v)
        file = tmp_path/name
    else: file = archive(tmp_path/name, files)
    with pytest.warns(UserWarning, match='left out: all/README.txt$'): df = make_catalog(file)
    assert len(df)==N and df.label.tolist()==[LABELS[int(o)] for o in df.id_str]
    for r in df.itertuples(): assert torch.equal(ImageReader(SIZE)(r.file_loc), ImageReader(SIZE)(RGB[int(r.id_str)]))

def test_bands_in_arrays_of_their_own(tmp_path):
    file = write(tmp_path/'a.h5', g=FLUX, r=FLUX*2)
    with pytest.raises(CatalogError, match=r'several arrays.*g \(24 x 40 x 40\), r.*images='): make_catalog(file)
    df = make_catalog(file, images=['r', 'g'])
    px = ImageReader(SIZE, channels=2, **FIXED)(df.file_loc[3])
    assert torch.equal(px, ImageReader(SIZE, channels=2, **FIXED)(np.stack([FLUX[3]*2, FLUX[3]])))

NO_CATALOG = [
    ('gone.h5', 'no such file'), ('table.csv', 'a table is read by read_catalog'), ('empty', 'holds no images'),
    ('labels.h5', r'no array of pictures.*it has: ans \(24\)'), ('notes.zip', 'holds no images, but 1 others: a.txt'),
    ('bar.zip', 'has a bar'), ('cut.zip', 'cut off or damaged'),
    ('s3://survey/a.h5', 's3://survey/a.h5 is a web address'),
]
@pytest.mark.parametrize('name,why', NO_CATALOG)
def test_what_no_catalogue_can_be_made_of(tmp_path, name, why):
    (tmp_path/'table.csv').write_text('id_str,file_loc\n1,1.jpg\n')
    (tmp_path/'empty').mkdir()
    write(tmp_path/'labels.h5', ans=np.arange(N))
    archive(tmp_path/'notes.zip', {'a.txt': b'hello'}); archive(tmp_path/'bar.zip', {'a|b.png': b''})
    (tmp_path/'cut.zip').write_bytes((tmp_path/'notes.zip').read_bytes()[:50])
    with pytest.raises(CatalogError, match=why): make_catalog(name if ':' in name else tmp_path/name)

REMOTE = ['s3://survey/a.fits', 'gs://survey/a.fits', 'https://sky.org/a.fits', 's3://survey/a.h5::images[3]']
@pytest.mark.parametrize('address', REMOTE)
def test_what_is_on_the_web_is_refused_by_name(tmp_path, address):
    "As an image, in a catalogue, as the catalogue, as the folder of images"
    with pytest.raises(ImageError, match='is a web address; download the image'): ImageReader(SIZE)(address)
    df = read_catalog(pd.DataFrame(dict(id_str=['a'], file_loc=[address])))
    assert 'is a web address; download the image' in check_catalog(df, progress=False).bad.reason[0]
    with pytest.raises(CatalogError, match='is a web address; download the table'): read_catalog(address)
    with pytest.raises(CatalogError, match='image_dir=.*is a web address'): read_catalog(df, image_dir=address)
    if '::' not in address: assert not os.path.exists(address.split(':')[0])

def test_pictures_of_one_file_are_kept_and_told_apart(tmp_path):
    "Each has its row of the cache, which is left when the file changes"
    file = write(tmp_path/'a.npz', images=RGB)
    files,reader = make_catalog(file).file_loc.tolist(),ImageReader(SIZE)
    store = ImageStore(files, reader, tmp_path/'cache', progress=False)
    assert torch.equal(store[[17, 3]], torch.stack([reader(RGB[i]) for i in (17, 3)]))
    write(tmp_path/'a.npz', images=RGB[::-1])
    again = ImageStore(files, reader, tmp_path/'cache', progress=False)
    assert torch.equal(again[[17]][0], reader(RGB[N-1-17]))

@pytest.mark.slow
@pytest.mark.parametrize('name', ['galaxy10.h5', 'a.zip'])
def test_from_the_shell(tmp_path, run_zoofast, name):
    "catalog, check, finetune, predict and the report's pictures, from a file of many"
    labels = np.arange(N*2)%2
    px = np.concatenate([RGB, RGB[::-1]//2+90])
    px[labels==1,10:30,10:30] = 255
    files = {f"{'ring' if a else 'disk'}/{i}.png": as_png(px[i]) for i,a in enumerate(labels)}
    if name=='a.zip': archive(tmp_path/name, files)
    else: write(tmp_path/name, images=px, ans=labels)
    def run(*args):
        res = run_zoofast(*args, cwd=tmp_path)
        assert res.returncode==0, res.stderr
        return res.stdout
    said = run('catalog', name, '--out', 'a.csv')
    label = 'label' if name=='a.zip' else 'ans'
    assert f'48 pictures in {name}' in said and f'zoofast check a.csv --label {label}' in said
    assert 'all 48 rows of a.csv can be used' in run('check', 'a.csv', '--label', label)
    run('finetune', 'a.csv', '--label', label, '--encoder', 'test_efficientnet', '--random-weights', '--size', 32,
        '--epochs', 2, '--save-dir', 'run')
    html = (tmp_path/'run'/'report.html').read_text()
    assert html.count('data:image/jpeg')>5
    run('predict', 'run', 'a.csv', '--out', 'preds.csv')
    preds = pd.read_csv(tmp_path/'preds.csv')
    assert len(preds)==48 and preds.error.isna().all() and preds.file_loc[0].startswith(str(tmp_path/name)+'::')
    res = run_zoofast('catalog', name, '--out', 'a.csv', cwd=tmp_path)
    assert res.returncode==2 and 'a.csv is there already; --overwrite' in res.stderr
