"Ways in which pixels or rows were once misread without a word"
import bz2, gzip, lzma, os, shutil, struct
import numpy as np, pandas as pd, pytest
from astropy.io import fits
from PIL import Image
from zoofast.data.augment import make_augment
from zoofast.core.errors import CatalogError
from zoofast.data.check import check_catalog
from zoofast.catalog.read import read_catalog
from zoofast.catalog.split import split_catalog
from zoofast.images.fits import read_fits
from zoofast.core.errors import ImageError
from zoofast.images.reader import ImageReader, fit_reader
from zoofast.catalog.write import check_out
from zoofast.data.store import ImageStore

y,x = np.mgrid[:32,:32]
FLUX = (10+200*np.exp(-((x-12)**2+(y-20)**2)/30)).astype(np.float32)
LINEAR = dict(kind='linear', low=0, high=255)

NAMES = ['obj.fits.fz+1', 'M31+2', 'a[1].fits.fz', 'b(2).fits.fz', '[2024]/c.fits.fz', 'd;e&f.fits.fz', '!g.fits.fz',
         'h,i=j.fits.fz']
@pytest.mark.parametrize('name', NAMES)
def test_names_that_cfitsio_takes_for_instructions(tmp_path, name):
    "The file beside it, without the sign, has other pixels"
    file = tmp_path/name
    file.parent.mkdir(exist_ok=True)
    beside = {tmp_path/'obj.fits.fz': FLUX*0+np.eye(32, dtype='f4'), tmp_path/'M31': FLUX.T.copy()}
    for f,a in ((file, FLUX), *beside.items()):
        image = fits.CompImageHDU(a, compression_type='GZIP_2', quantize_level=0)
        fits.HDUList([fits.PrimaryHDU(), image]).writeto(f)
    np.testing.assert_array_equal(read_fits(file)[0,::-1], FLUX)

def test_a_row_with_fewer_files_is_a_bad_row(tmp_path):
    files = []
    for k in range(3): fits.writeto(tmp_path/f'{k}.fits', FLUX*(k+1)); files.append(str(tmp_path/f'{k}.fits'))
    reader = ImageReader(16, bands=(2,1,0))
    assert reader('|'.join(files)).shape==(3,16,16)
    with pytest.raises(ImageError, match='no bands'): reader('|'.join(files[:2]))
    df = pd.DataFrame({'id_str': ['a','b'], 'file_loc': ['|'.join(files), '|'.join(files[:2])]})
    assert check_catalog(df, open_images=reader, progress=False).bad.id_str.tolist()==['b']

def test_results_are_not_written_over_the_catalogue(tmp_path, run_zoofast):
    pd.DataFrame({'id_str': ['a'], 'file_loc': ['a.png']}).to_csv(tmp_path/'c.csv', index=False)
    Image.fromarray(FLUX.astype(np.uint8)).save(tmp_path/'a.png')
    (tmp_path/'link.csv').symlink_to('c.csv')
    for out in ('c.csv', 'link.csv', './c.csv'):
        with pytest.raises(CatalogError, match='would be lost'): check_out(tmp_path/out, tmp_path/'c.csv')
    before = (tmp_path/'c.csv').read_text()
    res = run_zoofast('check', 'c.csv', '--write', 'c.csv', cwd=tmp_path)
    assert res.returncode==2 and 'would be lost' in res.stderr and (tmp_path/'c.csv').read_text()==before

@pytest.mark.parametrize('crop', [1.0, 1, None])
def test_a_crop_of_one_is_the_whole_image(tmp_path, crop):
    Image.fromarray(FLUX.astype(np.uint8)).save(tmp_path/'a.png')
    assert (ImageReader(32, crop=crop)(tmp_path/'a.png')[0].numpy()==FLUX.astype(np.uint8)).all()

@pytest.mark.parametrize('crop', [1.5, 0, -3, float('inf'), float('nan'), True, '64', 33.3])
def test_crops_that_cannot_be(crop):
    with pytest.raises(ValueError, match='crop='): ImageReader(32, crop=crop)

def test_tiffs_in_which_zero_is_white(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    grey = FLUX.astype(np.uint8)
    for dtype,name in ((np.uint8, 'a.tiff'), (np.uint16, 'b.tiff')):
        negative = (255-grey).astype(dtype)*(257 if dtype==np.uint16 else 1)
        tifffile.imwrite(tmp_path/name, negative.astype(dtype), photometric='miniswhite')
        assert (ImageReader(32)(tmp_path/name)[0].numpy()==grey).all(), name

def test_two_dots_after_a_link(tmp_path):
    (tmp_path/'other'/'sub').mkdir(parents=True); (tmp_path/'link').symlink_to(tmp_path/'other'/'sub')
    for f in (tmp_path/'x.png', tmp_path/'other'/'x.png'): f.write_bytes(b'1')
    df = pd.DataFrame({'id_str': ['a','b'], 'file_loc': ['link/../x.png', 'other/../x.png']})
    df.to_csv(tmp_path/'c.csv', index=False)
    got = read_catalog(tmp_path/'c.csv').file_loc
    assert os.path.samefile(got[0], tmp_path/'other'/'x.png') and got[1]==str(tmp_path/'x.png')

def test_one_hdu_named_twice(tmp_path):
    sci,err = fits.ImageHDU(FLUX, name='SCI'),fits.ImageHDU(FLUX*2, name='ERR')
    fits.HDUList([fits.PrimaryHDU(), sci, err]).writeto(tmp_path/'a.fits')
    for twice in (('SCI', 'SCI'), (1, 1), (1, 'SCI')):
        with pytest.raises(ImageError, match='names one HDU twice'):
            ImageReader(16, channels=2, hdu=twice)(tmp_path/'a.fits')
    assert ImageReader(16, channels=2, hdu=('SCI', 'ERR'))(tmp_path/'a.fits').shape==(2,16,16)

def test_tables_of_the_other_byte_order(tmp_path):
    y,host = np.array([1,0,1,0], dtype='>i8'),np.array([1,1,2,2], dtype='>i4')
    table = pd.DataFrame({'id_str': ['a','b','c','d'], 'file_loc': ['/a','/b','/c','/d'], 'y': y, 'host': host})
    df = read_catalog(table)
    assert check_catalog(df, 'y', open_images=False).bad.reason.str.startswith('there is no file').all()
    assert split_catalog(df, 'y', valid=0.5, group_col='host').split.notna().all()

def test_a_file_rewritten_with_its_old_time(tmp_path):
    f = tmp_path/'a.fits'
    fits.writeto(f, FLUX)
    s = os.stat(f)
    first = ImageStore([str(f)], ImageReader(32, stretch=LINEAR), tmp_path/'cache', progress=False)[[0]]
    fits.writeto(tmp_path/'b.fits', FLUX[:,::-1].copy()); shutil.copyfile(tmp_path/'b.fits', f)
    os.utime(f, ns=(s.st_atime_ns, s.st_mtime_ns))
    again = ImageStore([str(f)], ImageReader(32, stretch=LINEAR), tmp_path/'cache', progress=False)[[0]]
    assert (again==first.flip(-1)).all()

def test_mirrors_within_lists():
    assert make_augment([dict(preset='light', flip=0)], 32).flip is False
    assert make_augment(['light'], 32).flip is True and make_augment([lambda b: b], 32).flip is True

def test_a_survey_on_a_pedestal(tmp_path):
    for k in range(5): fits.writeto(tmp_path/f'{k}.fits', FLUX.astype('f8')/40+65000+k/10)
    fits.writeto(tmp_path/'empty.fits', FLUX*0+5)
    r = fit_reader(ImageReader(32, stretch='asinh'), tmp_path.glob('*.fits'))
    assert 64999<r.stretch['low']<65001.5 and 65004<r.stretch['high']<65007
    assert r(tmp_path/'2.fits').float().std()>20
    with pytest.raises(ValueError, match='there is no file'):
        fit_reader(ImageReader(32, stretch='asinh'), str(tmp_path/'none.fits'))

@pytest.mark.parametrize('name', ['MASK', 'WHT', 'dq', 'INVVAR', 'Uncert'])
def test_an_image_behind_its_mask(tmp_path, name):
    "The first image is the galaxy's, unless there is none but masks and weights, or one is asked for"
    beside,sci = fits.ImageHDU((FLUX>50).astype('u1'), name=name),fits.ImageHDU(FLUX)
    fits.HDUList([fits.PrimaryHDU(), beside, sci]).writeto(tmp_path/'a.fits')
    fits.HDUList([fits.PrimaryHDU(), beside, fits.ImageHDU(FLUX, name='PSF')]).writeto(tmp_path/'b.fits')
    np.testing.assert_array_equal(read_fits(tmp_path/'a.fits')[0,::-1], FLUX)
    for file,hdu in (('a.fits', name), ('a.fits', 1), ('b.fits', None)):
        np.testing.assert_array_equal(read_fits(tmp_path/file, hdu)[0,::-1], FLUX>50)

@pytest.mark.parametrize('n', [2, 3, 5, 7])
def test_bands_last_with_the_header_of_one_band(tmp_path, n):
    "Bands stacked behind the coordinates of a plane: the header calls columns right ascension that are bands"
    header = fits.Header(dict(CTYPE1='RA---TAN', CTYPE2='DEC--TAN'))
    fits.writeto(tmp_path/'a.fits', np.repeat(FLUX[:,:,None], n, 2), header)
    for channels in (1, n):
        got = ImageReader(32, channels, LINEAR)(tmp_path/'a.fits')
        assert (got.numpy()==FLUX[::-1].round()).all()

CUBES = [((64,40,32), 64), ((40,64,32), 40), ((64,64,32), 32), ((40,32,5), 5), ((5,40,32), 5)]
@pytest.mark.parametrize('shape,bands', CUBES)
def test_cubes_without_coordinates(tmp_path, shape, bands):
    "The last axis is that of the bands where it is by far the shortest"
    fits.writeto(tmp_path/'a.fits', np.zeros(shape, dtype='f4'))
    assert len(read_fits(tmp_path/'a.fits'))==bands

@pytest.mark.parametrize('name', ['a.gz', 'a.fit.bz2', 'a.fts.xz', 'a.fits.xz', 'galaxy', 'a.jpg', 'a.fits'])
@pytest.mark.parametrize('pack', [gzip.compress, bz2.compress, lzma.compress], ids=['gzip', 'bz2', 'xz'])
def test_packed_fits_of_any_name(tmp_path, pack, name):
    fits.writeto(tmp_path/'plain.fits', FLUX)
    (tmp_path/'packed').mkdir()
    (tmp_path/'packed'/name).write_bytes(pack((tmp_path/'plain.fits').read_bytes()))
    np.testing.assert_array_equal(read_fits(tmp_path/'packed'/name)[0,::-1], FLUX)
    assert ImageReader(32)(tmp_path/'packed'/name).shape==(3,32,32)

def test_the_name_of_a_single_band(tmp_path):
    for key in ('FILTER', 'BAND'):
        fits.writeto(tmp_path/'a.fits', FLUX, fits.Header({key: 'r '}), overwrite=True)
        assert read_fits(tmp_path/'a.fits', bands='r').shape==(1,32,32)
        with pytest.raises(ImageError, match=r"has no bands \('g',\); it has 1: r"):
            ImageReader(32, bands='g')(tmp_path/'a.fits')

def tiff(width, rows, *tags):
    "A tiff of one strip, little-endian, with more tags `(number, value)`"
    size = sum(map(len, rows))
    tags = sorted([(256, width), (257, len(rows)), (259, 1), (273, 8), (278, len(rows)), (279, size), *tags])
    data = b''.join(rows)
    head = b'II*\0'+struct.pack('<I', 8+len(data))
    entries = b''.join(struct.pack('<HHII', t, 4, 1, v) for t,v in tags)
    return head+data+struct.pack('<H', len(tags))+entries+b'\0'*4

def test_tiffs_of_12_bits(tmp_path):
    "Which Pillow gives as numbers to 4095"
    deep = FLUX.astype(int)*16
    pack = lambda a, b: bytes([a>>4, (a&15)<<4|b>>8, b&255])
    rows = [b''.join(map(pack, r[::2].tolist(), r[1::2].tolist())) for r in deep]
    (tmp_path/'a.tiff').write_bytes(tiff(32, rows, (258, 12), (262, 1), (277, 1)))
    np.testing.assert_allclose(ImageReader(32)(tmp_path/'a.tiff')[0], deep*255/4095, atol=0.5)

@pytest.mark.parametrize('bands,kind', [(2, 'minisblack'), (5, 'rgb')])
def test_tiffs_with_more_bands_than_pillow_reads(tmp_path, bands, kind):
    "Nothing is lost without a word"
    tifffile = pytest.importorskip('tifffile')
    grey = FLUX.astype('u1')
    tifffile.imwrite(tmp_path/'a.tiff', np.repeat(grey[:,:,None], bands, 2), photometric=kind, planarconfig='contig')
    with pytest.raises(ImageError, match=f'{bands} bands, of which Pillow reads'):
        ImageReader(32, bands)(tmp_path/'a.tiff')
    tifffile.imwrite(tmp_path/'b.tiff', np.repeat(grey[:,:,None], 4, 2), photometric='rgb', planarconfig='contig',
                     extrasamples=['unspecified'])
    got = ImageReader(32)(tmp_path/'b.tiff')
    assert (got.numpy()==grey).all(), 'one more than red, green and blue says nothing'
