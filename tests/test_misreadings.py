"Ways in which pixels or rows were once misread without a word"
import os, shutil
import numpy as np, pandas as pd, pytest
from astropy.io import fits
from PIL import Image
from zoofast.augment import make_augment
from zoofast.catalog import CatalogError, check_catalog, read_catalog, split_catalog
from zoofast.fits import read_fits
from zoofast.images import ImageError, ImageReader, fit_reader
from zoofast.predict import check_out
from zoofast.store import ImageStore

y,x = np.mgrid[:32,:32]
FLUX = (10+200*np.exp(-((x-12)**2+(y-20)**2)/30)).astype(np.float32)
LINEAR = dict(kind='linear', low=0, high=255)

@pytest.mark.parametrize('name', ['obj.fits.fz+1', 'M31+2', 'a[1].fits.fz', 'b(2).fits.fz', '[2024]/c.fits.fz', 'd;e&f.fits.fz', '!g.fits.fz', 'h,i=j.fits.fz'])
def test_names_that_cfitsio_takes_for_instructions(tmp_path, name):
    "The file beside it, without the sign, has other pixels"
    file = tmp_path/name
    file.parent.mkdir(exist_ok=True)
    for f,a in ((file, FLUX), (tmp_path/'obj.fits.fz', FLUX*0+np.eye(32, dtype='f4')), (tmp_path/'M31', FLUX.T.copy())): fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(a, compression_type='GZIP_2', quantize_level=0)]).writeto(f)
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
        tifffile.imwrite(tmp_path/name, ((255-grey).astype(dtype)*(257 if dtype==np.uint16 else 1)).astype(dtype), photometric='miniswhite')
        assert (ImageReader(32)(tmp_path/name)[0].numpy()==grey).all(), name

def test_two_dots_after_a_link(tmp_path):
    (tmp_path/'other'/'sub').mkdir(parents=True); (tmp_path/'link').symlink_to(tmp_path/'other'/'sub')
    for f in (tmp_path/'x.png', tmp_path/'other'/'x.png'): f.write_bytes(b'1')
    df = pd.DataFrame({'id_str': ['a','b'], 'file_loc': ['link/../x.png', 'other/../x.png']})
    df.to_csv(tmp_path/'c.csv', index=False)
    got = read_catalog(tmp_path/'c.csv').file_loc
    assert os.path.samefile(got[0], tmp_path/'other'/'x.png') and got[1]==str(tmp_path/'x.png')

def test_one_hdu_named_twice(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(FLUX, name='SCI'), fits.ImageHDU(FLUX*2, name='ERR')]).writeto(tmp_path/'a.fits')
    with pytest.raises(ImageError, match='names one HDU twice'): ImageReader(16, channels=2, hdu=('SCI', 1))(tmp_path/'a.fits')
    assert ImageReader(16, channels=2, hdu=('SCI', 2))(tmp_path/'a.fits').shape==(2,16,16)

def test_tables_of_the_other_byte_order(tmp_path):
    df = read_catalog(pd.DataFrame({'id_str': ['a','b','c','d'], 'file_loc': ['/a','/b','/c','/d'], 'y': np.array([1,0,1,0], dtype='>i8'), 'host': np.array([1,1,2,2], dtype='>i4')}))
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
    assert make_augment([dict(preset='light', flip=0)], 32).flip is False and make_augment(['light'], 32).flip is True and make_augment([lambda b: b], 32).flip is True

def test_a_survey_on_a_pedestal(tmp_path):
    for k in range(5): fits.writeto(tmp_path/f'{k}.fits', FLUX.astype('f8')/40+65000+k/10)
    fits.writeto(tmp_path/'empty.fits', FLUX*0+5)
    r = fit_reader(ImageReader(32, stretch='asinh'), tmp_path.glob('*.fits'))
    assert 64999<r.stretch['low']<65001.5 and 65004<r.stretch['high']<65007
    assert r(tmp_path/'2.fits').float().std()>20
    with pytest.raises(ValueError, match='no such file'): fit_reader(ImageReader(32, stretch='asinh'), str(tmp_path/'none.fits'))
