"""Images as surveys and users hand them out: every file of a corpus, every stretch against astropy, pairs of FITS and
png"""
import warnings
from pathlib import Path
import numpy as np, pytest, torch
from astropy.io import fits
from astropy.visualization import AsinhStretch, LinearStretch, LogStretch, make_lupton_rgb
from astropy.visualization import ManualInterval, ZScaleInterval
from PIL import Image
from zoofast.images.fits import read_fits
from zoofast.core.errors import ImageError
from zoofast.images.reader import ImageReader, crop_center, fit_reader, image_format, reader_config, reader_from_config

# What is in each file of the corpus, written down by hand after looking at it: shape of the flux, or why there is no
# image
CORPUS = {
    'awkward/1904-66_AZP.fits': (1,192,192),
    'awkward/checksum_false.fits': (1,40,30),
    'awkward/dist_lookup.fits.gz': (1,100,100),
    'awkward/dss.14.29.56-62.41.05.fits.gz': (1,100,100),
    'awkward/o4sp040b0_raw.fits': (1,44,62),
    'awkward/scale.fits': (1,21,20),
    'awkward/test0.fits': (1,40,40),
    'awkward/ascii.fits': 'TableHDU',
    'awkward/blank.fits': 'of 1 x 1',
    'awkward/chandra_time.fits': 'BinTableHDU',
    'awkward/compressed_float_bzero.fits': 'CompImageHDU of 3',
    'awkward/group.fits': 'GroupsHDU',
    'awkward/j94f05bgq_flt.fits': 'of 1 x 1',
    'awkward/lzw.fits.Z': 'LZW',
    'awkward/stddata.fits': 'BinTableHDU',
    'awkward/tb.fits': 'BinTableHDU',
    'awkward/theap-gap.fits': 'BinTableHDU',
    'awkward/verify.fits': 'without pixels',
    'awkward/vla_logical_null.fits': 'BinTableHDU',
    'awkward/zerowidth.fits': 'BinTableHDU',
    'compressed/m13.fits': (1,300,300),
    'compressed/m13_hcomp.fits': (1,300,300),
    'compressed/m13_rice.fits': (1,300,300),
    'galaxies/example_a.fits': (3,509,509),
    'galaxies/example_b.fits': (3,162,162),
    'galaxies/statmorph_slice.fits': (1,162,162),
    'galaxies/synthetic_image_104798_band_5_camera_0_bg_1.fits': (1,424,424),
    'sky/HorseHead.fits': (1,893,891),
    'sky/allsky_rosat.fits': (1,240,480),
    'sky/gc_msx_e.fits': (1,149,149),
    'sky/input_file.fits': (1,100,100),
    'sky/irac_ch1_flight.fits': (1,81,81),
    'sky/l1448_13co.fits': (53,105,105),
    'sky/reproject_aia_171_level1.fits': (1,128,128),
    'sky/reproject_equatorial_3d.fits': (4,5,7),
    'sky/reproject_galactic_2d.fits': (1,43,43),
    'sky/reproject_image_with_distortion_map.fits': 'the same value, 0',
    'sky/reproject_secchi_l0_a.fits': (1,128,128),
    'sky/reprojected_sdss_r.fits.bz2': (1,496,682),
    'sky/sep_image.fits': (1,256,256),
    'sky/spitzer_example_image.fits': (1,513,1025),
}
SENSIBLE = [k for k,v in CORPUS.items() if isinstance(v, tuple)]

@pytest.mark.filterwarnings('ignore')
def test_files_that_the_list_does_not_have(data_dir):
    """A larger corpus, and the files that astropy's own tests use: a tensor with something on it, or an error that
    says why"""
    import astropy
    folders = (data_dir/'fits_corpus', Path(astropy.__file__).parent)
    found = [(p, str(p.relative_to(folder))) for folder in folders for p in sorted(folder.rglob('*.fit*'))]
    files = [p for p,name in found if image_format(p).name=="FITS" and p.is_file() and name not in CORPUS]
    for f in files:
        try: px = ImageReader(64, channels=1)(f)
        except ImageError as e: assert str(f) in str(e) and len(str(e))>len(str(f))+10
        else: assert px.float().std()>1, f

def corpus_file(data_dir, name):
    file = data_dir/'fits_corpus'/name
    if not file.is_file(): pytest.skip(f'no {file}')
    return file

@pytest.mark.parametrize('name', CORPUS)
def test_corpus(data_dir, name):
    file,expected = corpus_file(data_dir, name),CORPUS[name]
    if isinstance(expected, str):
        with pytest.raises(ImageError, match=expected) as e: ImageReader(64)(file)
        assert str(file) in str(e.value)
        return
    flux = read_fits(file)
    assert flux.shape==expected
    px = ImageReader(96, channels=1)(file).float()
    assert px.std()>5 and px.min()<px.max() and not (px==px.median()).float().mean()>0.9
    if len(flux) in (1, 3): assert ImageReader(96)(file).shape==(3,96,96)
    else:
        with pytest.raises(ImageError, match=f'set channels={len(flux)}'): ImageReader(96)(file)
        assert ImageReader(96, channels=len(flux))(file).shape==(len(flux),96,96)

def astropys(file):
    "Flux of a file of the corpus as astropy gives it, `(bands, y, x)`, the top row first"
    with warnings.catch_warnings(), fits.open(file) as hdus:
        warnings.simplefilter('ignore')
        h = next(h for h in hdus if h.is_image and h.data is not None and h.data.ndim>1)
        d = np.array(h.data, dtype=float)
    return (d[None] if d.ndim==2 else d)[:,::-1]

@pytest.mark.slow(but=8)
@pytest.mark.parametrize('name', [n for n in SENSIBLE])
def test_pixels_and_stretches_are_astropys(data_dir, name):
    file = corpus_file(data_dir, name)
    flux = astropys(file)
    np.testing.assert_array_equal(read_fits(file), flux.astype(read_fits(file).dtype))
    side = min(flux.shape[1:])
    y,x = ((n-side)//2 for n in flux.shape[1:])
    flux = flux[:,y:y+side,x:x+side]
    good = np.isfinite(flux)
    low,high = np.percentile(flux[good], [0.5, 99.5])
    flux = np.where(good, flux, low)
    unit = ManualInterval(low, high)(flux, clip=True)
    both = np.clip((flux-low)/(high-low), 0, 1)
    zlow = np.where(good, flux, ZScaleInterval().get_limits(flux[good])[0])
    theirs = {'linear': both,
              'auto': AsinhStretch(0.1)(both.copy()),
              'asinh': AsinhStretch(0.1)(both.copy()),
              'log': LogStretch(1000)(both.copy()),
              'zscale': ManualInterval(*ZScaleInterval().get_limits(flux[good]))(zlow, clip=True)}
    mid = low+0.3*(high-low)
    to_mid = lambda: ManualInterval(low, mid)(flux, clip=True)
    fixed = {'asinh': (dict(kind='asinh', low=low, high=mid, a=0.03), AsinhStretch(0.03)(to_mid())),
             'linear': (dict(kind='linear', low=low, high=mid), LinearStretch()(to_mid()))}
    for stretch,want in [*((k, v) for k,v in theirs.items()), *fixed.values()]:
        got = ImageReader(max(side, 8), channels=len(flux), stretch=stretch)(file)
        if side<8: continue                                # resized: nothing to compare pixel by pixel
        assert np.abs(got.numpy()-want*255)[good].max()<=1.01, stretch          # where there is no flux, ours is sky
    assert np.abs(unit-both).max()<1e-6

@pytest.mark.parametrize('name', ['galaxies/example_a.fits', 'galaxies/example_b.fits'])
def test_lupton_is_astropys(data_dir, name):
    flux = astropys(data_dir/'fits_corpus'/name)
    lupton = dict(minimum=0, stretch=0.05, Q=10)
    with np.errstate(all='ignore'): theirs = make_lupton_rgb(*flux[::-1], **lupton).transpose(2,0,1)
    reader = ImageReader(flux.shape[1], stretch=dict(kind='lupton', **lupton), bands=('z','r','g'))
    got = reader(data_dir/'fits_corpus'/name)
    assert np.abs(got.numpy().astype(int)-theirs).max()<=1

def correlations(a, b):
    "Correlation of two pictures, and the largest with one of them mirrored or turned"
    a,b = (x.float().mean(0).numpy() for x in (a, b))
    c = [np.corrcoef(np.rot90(m, k).ravel(), b.ravel())[0,1] for m in (a, a[:,::-1]) for k in range(4)]
    return c[0],max(c[1:])

def test_a_fits_and_the_png_of_the_same_galaxy_are_the_same_way_up(survey, tmp_path):
    "The png is made by another program: matplotlib's `imsave` with the first row at the bottom, as DS9 shows it"
    import matplotlib.image
    for i,row in enumerate(survey[1].itertuples()):
        d = fits.getdata(row.fits_loc).astype(float)
        d = d if d.ndim==2 else d.mean(0)
        # something bright in one corner, or round galaxies would tell little
        d[:20,:20] += d.max()*0.8*np.linspace(0, 1, 20)[:,None]
        fits.writeto(tmp_path/f'{i}.fits', d)
        unit = np.clip((d-d.min())/(d.max()-d.min()), 0, 1)
        matplotlib.image.imsave(tmp_path/f'{i}.png', np.arcsinh(unit/0.1), origin='lower', cmap='gray')
        same,turned = correlations(ImageReader(64)(tmp_path/f'{i}.fits'), ImageReader(64)(tmp_path/f'{i}.png'))
        assert same>0.95 and turned<0.9, (row.id_str, same, turned)

def test_the_simulated_jpg_and_fits_agree(survey):
    for row in survey[1].head(20).itertuples():
        same,turned = correlations(ImageReader(64)(row.file_loc), ImageReader(64)(row.fits_loc))
        assert same>0.85 and same>turned

@pytest.mark.parametrize('name', ['example_a', 'example_b'])
def test_the_corpus_pairs_are_no_pairs(data_dir, name):
    """The png beside these FITS shows another galaxy, in no orientation the same; should the corpus be put right, this
    test says so"""
    folder = data_dir/'fits_corpus'/'galaxies'
    same,turned = correlations(ImageReader(128)(folder/f'{name}.fits'), ImageReader(128)(folder/f'{name}.png'))
    assert same>0.95 or max(same, turned)<0.8

@pytest.mark.parametrize('how', ['RICE_1', 'GZIP_1', 'GZIP_2', 'HCOMPRESS_1', 'PLIO_1'])
@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'int32', 'float32', 'float64'])
def test_tile_compression(tmp_path, how, dtype):
    "fitsio where it is installed, astropy where not: the same pixels"
    if how=='PLIO_1' and dtype.startswith(('float', 'uint16')): pytest.skip('not possible')
    px = np.random.default_rng(0).gamma(2, 30, (50,60)).clip(0, 255).astype(dtype)
    if dtype.startswith('float'): px[3,4] = np.nan
    fits.CompImageHDU(px, compression_type=how, quantize_level=32).writeto(tmp_path/'a.fits.fz')
    want = fits.getdata(tmp_path/'a.fits.fz', 1).astype('f8')
    np.testing.assert_array_equal(read_fits(tmp_path/'a.fits.fz')[0,::-1], want)

RASTERS = ['L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', '1', 'I;16', 'I', 'F',
           'L 16-bit png', 'LA 16-bit png', 'RGB 16-bit png', 'RGBA 16-bit png',
           'RGB 16-bit tiff', 'RGB 16-bit tiff packed', 'RGB 16-bit tiff planes',
           'RGB 8-bit tiff planes', 'RGB float tiff']

def png_of(bands):
    "The bytes of a png of 16 bits a band"
    import struct, zlib
    def chunk(name, data): return struct.pack('>I', len(data))+name+data+struct.pack('>I', zlib.crc32(name+data))
    rows = np.stack(bands, -1).astype('>u2')
    raw = b''.join(b'\0'+r.tobytes() for r in rows)
    head = struct.pack('>IIBBBBB', rows.shape[1], rows.shape[0], 16, {1:0, 2:4, 3:2, 4:6}[len(bands)], 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', head)+chunk(b'IDAT', zlib.compress(raw))+chunk(b'IEND', b'')

def write_raster(file, kind, grey):
    """A grey picture in one of the modes, by libraries other than the one that reads it where Pillow cannot write the
    mode"""
    png,tiff = file.with_suffix('.png'),file.with_suffix('.tiff')
    im = Image.fromarray(grey)
    deep = grey.astype(np.uint16)*257
    if kind in ('I;16', 'I', 'F', 'CMYK'):
        if kind=='CMYK': im = im.convert('RGB').convert('CMYK')
        else: im = Image.fromarray({'I;16': deep, 'I': deep.astype(np.int32), 'F': grey.astype(np.float32)}[kind])
        im.save(tiff)
        return tiff
    if '-bit' not in kind and 'float' not in kind:
        im.convert(kind).save(png)
        return png
    solid = np.full_like(deep, 65535)
    bands = {'L': [deep], 'LA': [deep, solid], 'RGB': [deep]*3, 'RGBA': [deep]*3+[solid]}[kind.split()[0]]
    if 'png' in kind:
        png.write_bytes(png_of(bands))
        return png
    tifffile = pytest.importorskip('tifffile')
    how = dict(compression='zlib') if 'packed' in kind else dict(planarconfig='separate') if 'planes' in kind else {}
    if '8-bit' in kind: bands = [grey]*3
    if 'float' in kind: bands = [grey.astype(np.float32)]*3
    data = np.stack(bands) if 'planes' in kind else np.stack(bands, -1)
    tifffile.imwrite(file.with_suffix('.tiff'), data, photometric='rgb', **how)
    return file.with_suffix('.tiff')

@pytest.mark.parametrize('kind', RASTERS)
@pytest.mark.parametrize('channels', [1, 3])
def test_one_galaxy_in_all_modes(tmp_path, kind, channels):
    y,x = np.mgrid[:64,:64]
    grey = (255*np.exp(-((x-30)**2/90+(y-26)**2/40))).astype(np.uint8)
    grey[2:6,2:6] = 255                       # black and white, and a corner that is not like the others
    file = write_raster(tmp_path/'a', kind, grey)
    reader = ImageReader(64, channels, dict(kind='linear', low=0, high=255) if kind=='F' else 'auto')
    if kind in ('RGB 16-bit tiff planes', 'RGB float tiff'):      # Pillow misreads the one and refuses the other
        with pytest.raises(ImageError, match='save it as FITS'): reader(file)
        return
    got = reader(file)
    assert got.shape==(channels,64,64)
    off = np.abs(got.numpy().astype(int)-grey)
    if kind=='1': assert off.mean()<80 and np.corrcoef(got[0].ravel(), grey.ravel())[0,1]>0.5
    else: assert off.max()<=1, off.max()

def test_a_reader_with_a_fixed_scale_is_saved(survey, tmp_path):
    files = survey[1].fits_loc
    r = fit_reader(ImageReader(32, stretch='asinh'), files, n=20)
    assert r.stretch['low']<r.stretch['high'] and reader_from_config(reader_config(r))==r
    shown = torch.stack([r(f) for f in files]).float().mean((1,2,3))
    flux = torch.tensor([float(np.nan_to_num(fits.getdata(f)).mean()) for f in files])
    # brighter galaxies are brighter
    assert np.corrcoef(shown.argsort().argsort(), flux.argsort().argsort())[0,1]>0.9

def test_the_margin_is_around_the_middle(survey):
    r = ImageReader(48, margin=1.25)
    f = survey[1].file_loc[0]
    assert torch.equal(crop_center(r.wide(f), 48), r(f)) and r.wide(f).shape[1]==60
