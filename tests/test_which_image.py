"""Which image of a FITS file is read: by default, and with which option the others

Files of survey products are written by astropy to their documented layouts, each image with pixels of its own.

`python tests/test_which_image.py` writes the table of them, docs/survey_products.md."""
import dataclasses, zlib
from pathlib import Path
import numpy as np, pandas as pd, pytest
from astropy.io import fits
from zoofast.cli.options import image_reader
from zoofast.core.errors import ImageError
from zoofast.data.check import check_catalog
from zoofast.images.reader import ImageReader, fit_reader, reader_config, reader_from_config

DOC = Path(__file__).parent.parent/'docs'/'survey_products.md'
SIZE = 32
LINEAR = dict(kind='linear', low=0, high=255)

def plane(word):
    "Pixels that only the image of this name has, whole numbers of bytes"
    return np.random.default_rng(zlib.crc32(word.encode())).integers(0, 256, (SIZE, SIZE)).astype('f4')

def cube(word, n): return np.stack([plane(f'{word} {k}') for k in range(n)])

def image(name, data=None, ver=None, header=None, packed=False):
    "An extension with pixels of its own; in `packed` ones the flux is kept exactly"
    data = plane(name if ver is None else f'{name},{ver}') if data is None else data
    head = None if header is None else fits.Header(header)
    if not packed: return fits.ImageHDU(data, head, name=name, ver=ver)
    return fits.CompImageHDU(data.astype('i2'), head, name=name, compression_type='RICE_1')

def table(name): return fits.BinTableHDU.from_columns([fits.Column('mag', 'E', array=np.arange(3.))], name=name)

def empty(**header): return fits.PrimaryHDU(header=fits.Header(header))

SKY = dict(CTYPE1='RA---TAN', CTYPE2='DEC--TAN')
RADIO = dict(SKY, CTYPE3='FREQ', CTYPE4='STOKES', CRVAL4=1., CRPIX4=1., CDELT4=1.)

# ---- The products, as their documentation describes them

def sdss_frame():
    return [fits.PrimaryHDU(plane('frame')), fits.ImageHDU(np.ones(2048, 'f4')), table(''), table('')]

def legacy_cutout():
    header = dict(SKY, BANDS='grz', BAND0='g', BAND1='r', BAND2='z')
    return [fits.PrimaryHDU(cube('cutout', 3), fits.Header(header))]

def legacy_coadd(): return [empty(), image('COMPRESSED_IMAGE', packed=True)]

def des_tile(): return [empty(), *(image(o, packed=True) for o in ('SCI', 'MSK', 'WGT'))]

def hsc_coadd(): return [empty(), *map(image, ('IMAGE', 'MASK', 'VARIANCE')), table('ARCHIVE_INDEX')]

def euclid_vis():
    return [empty(), *(image(f'1-1.{q}.{o}') for q in 'EF' for o in ('SCI', 'RMS', 'FLG'))]

def euclid_bands(): return [empty(), *map(image, ('VIS', 'NIR-Y', 'NIR-H'))]

def jwst_i2d():
    context = image('CON', np.ones((2, SIZE, SIZE), 'i4'))
    variances = map(image, ('VAR_POISSON', 'VAR_RNOISE', 'VAR_FLAT'))
    return [empty(), image('SCI'), image('ERR'), context, image('WHT'), *variances, table('HDRTAB'), table('ASDF')]

def hst_flc():
    chips = [image(o, ver=v) for v in (1, 2) for o in ('SCI', 'ERR', 'DQ')]
    distortion = [image(o, np.zeros((8, 8), 'f4'), v) for v in (1, 2) for o in ('D2IMARR', 'WCSDVARR')]
    return [empty(), *chips, *distortion, table('WCSCORR')]

def hst_drz(): return [empty(), *map(image, ('SCI', 'WHT', 'CTX')), table('HDRTAB')]

def manga():
    header = dict(SKY, CTYPE3='WAVE-LOG')
    def like_flux(o): return image(o, cube(o, 6), header=header)
    wave = fits.ImageHDU(np.ones(6, 'f4'), name='WAVE')
    views = map(image, ('GIMG', 'RIMG', 'IIMG', 'ZIMG', 'GPSF', 'RPSF', 'IPSF', 'ZPSF'))
    return [empty(), *map(like_flux, ('FLUX', 'IVAR', 'MASK')), wave, table('OBSINFO'), *views]

def muse():
    header = dict(SKY, CTYPE3='AWAV')
    return [empty(), *(image(o, cube(o, 6), header=header) for o in ('DATA', 'STAT'))]

def first(): return [fits.PrimaryHDU(plane('FIRST')[None,None], fits.Header(RADIO))]

def lofar(): return [fits.PrimaryHDU(cube('LOFAR', 4)[:,None], fits.Header(RADIO))]

@dataclasses.dataclass
class Product:
    name:str
    build:callable    # The HDUs of a file
    default:tuple     # What is read, by the names of its planes
    said:str=''       # What that is, where the names do not say it
    options:tuple=()  # (options as in the shell, names of the planes that are read, what that is)
    unread:list=()    # What `check` names
    channels:int=0    # Of the reader; 0: one for each band

def planes(word, *numbers): return tuple(f'{word} {k}' for k in numbers)

PRODUCTS = [
    Product('SDSS frame', sdss_frame, ('frame',), 'the calibrated image'),
    Product('Legacy Survey cutout of several bands', legacy_cutout, planes('cutout', 0, 1, 2), 'g, r, z', (
        (dict(bands='z,r,g'), planes('cutout', 2, 1, 0), 'z, r, g: the reddest band is red'),
        (dict(bands='r'), planes('cutout', 1), 'r alone'))),
    Product('Legacy Survey coadd of one band, `.fits.fz`', legacy_coadd, ('COMPRESSED_IMAGE',), 'its only image'),
    Product('DES coadd tile of one band', des_tile, ('SCI',), '', ((dict(hdu='WGT'), ('WGT',), ''),)),
    Product('HSC coadd of one band', hsc_coadd, ('IMAGE',), '', ((dict(hdu='VARIANCE'), ('VARIANCE',), ''),)),
    Product('Euclid VIS, calibrated exposure', euclid_vis, ('1-1.E.SCI',), '',
            ((dict(hdu='1-1.F.SCI'), ('1-1.F.SCI',), ''),), ['1-1.E.SCI', '1-1.F.SCI']),
    Product('Euclid cutouts of several bands in one file', euclid_bands, ('VIS',), '', (
        (dict(hdu='NIR-H,NIR-Y,VIS'), ('NIR-H', 'NIR-Y', 'VIS'), 'three bands'),
        (dict(hdu='NIR-H'), ('NIR-H',), '')), ['VIS', 'NIR-Y', 'NIR-H']),
    Product('JWST `i2d`', jwst_i2d, ('SCI',), '', (
        (dict(hdu='ERR'), ('ERR',), ''), (dict(hdu='SCI,ERR'), ('SCI', 'ERR'), 'image and error as two bands'))),
    Product('HST `flc`, `flt`', hst_flc, ('SCI,1',), '', (
        (dict(hdu='SCI,2'), ('SCI,2',), 'the other chip'), (dict(hdu='ERR,2'), ('ERR,2',), '')),
        [('SCI', 1), ('SCI', 2)]),
    Product('HST `drz`, `drc`', hst_drz, ('SCI',), '', ((dict(hdu='WHT'), ('WHT',), ''),)),
    Product('MaNGA `LOGCUBE`', manga, planes('FLUX', *range(6)), '`FLUX`, a band for each wavelength', (
        (dict(hdu='RIMG'), ('RIMG',), ''), (dict(hdu='IIMG,RIMG,GIMG'), ('IIMG', 'RIMG', 'GIMG'), 'three bands'),
        (dict(hdu='FLUX', bands='4,2,0'), planes('FLUX', 4, 2, 0), 'three wavelengths'))),
    Product('MUSE cube', muse, planes('DATA', *range(6)), '`DATA`, a band for each wavelength', (
        (dict(bands='4,2,0'), planes('DATA', 4, 2, 0), 'three wavelengths'),)),
    Product('FIRST', first, ('FIRST',), 'its only image'),
    Product('LOFAR and other cubes of polarizations', lofar, planes('LOFAR', 0), 'Stokes I for one channel', (
        (dict(bands='V'), planes('LOFAR', 3), 'Stokes V'), (dict(bands='I'), planes('LOFAR', 0), 'Stokes I'),
        (dict(bands='I,Q,U,V'), planes('LOFAR', 0, 1, 2, 3), 'all four')), channels=1),
]
PRODUCTS_BY_NAME = pytest.mark.parametrize('product', PRODUCTS, ids=[o.name for o in PRODUCTS])

def pixels(words):
    "What the reader gives of these planes: the last row first"
    return np.stack([plane(o)[::-1] for o in words]).astype('u1')

def write(path, hdus):
    fits.HDUList(hdus).writeto(path)
    return path

def read(path, channels, **kw): return ImageReader(SIZE, channels, LINEAR, **kw)(path).numpy()

@PRODUCTS_BY_NAME
def test_what_is_read_by_default(product, tmp_path):
    file = write(tmp_path/'a.fits', product.build())
    got = read(file, product.channels or len(product.default))
    np.testing.assert_array_equal(got, pixels(product.default))

@PRODUCTS_BY_NAME
def test_what_is_read_with_an_option(product, tmp_path):
    file = write(tmp_path/'a.fits', product.build())
    for asked,words,_ in product.options:
        reader = image_reader(SIZE, len(words), 'linear', asked.get('bands'), asked.get('hdu'))
        reader = dataclasses.replace(reader, stretch=LINEAR)
        np.testing.assert_array_equal(reader(file).numpy(), pixels(words), err_msg=str(asked))

@PRODUCTS_BY_NAME
def test_what_the_check_names(product, tmp_path):
    file = write(tmp_path/'a.fits', product.build())
    assert ImageReader().unread(file)==list(product.unread)
    if not product.unread: return
    seen = check_catalog(pd.DataFrame(dict(id_str=['a'], file_loc=[str(file)])), progress=False)
    assert len(seen.ok)==1 and str(file) in seen.notes[0] and seen.notes[0] in repr(seen)

# ---- A name and its version

@pytest.mark.parametrize('hdu', [('SCI', 2), ['sci', np.int64(2)]])
def test_a_name_and_a_number_is_a_version(hdu, tmp_path):
    "Not `SCI,1` and, as HDU 2, `ERR,1`"
    file = write(tmp_path/'a.fits', hst_flc())
    for channels in (1, 3): np.testing.assert_array_equal(read(file, channels, hdu=hdu), pixels(['SCI,2']*channels))

def test_a_version_that_is_not_there(tmp_path):
    file = write(tmp_path/'a.fits', hst_flc()[:4])
    for hdu in (('SCI', 2), ('SCI', 3), (1, 'ERR')):
        with pytest.raises(ImageError, match="what accompanies it.*2 'ERR',1: ImageHDU of 32 x 32"):
            read(file, 1, hdu=hdu)
    with pytest.raises(ImageError, match='no HDU 9'): read(file, 1, hdu=('SCI', 9))

def test_a_version_that_is_not_written_is_the_first(tmp_path):
    file = write(tmp_path/'a.fits', jwst_i2d())
    np.testing.assert_array_equal(read(file, 1, hdu=('SCI', 1)), pixels(['SCI']))

@pytest.mark.parametrize('hdu', [('VIS', 2), (1, 'NIR-Y'), ('VIS', 'NIR-Y'), (1, 2)])
def test_bands_by_name_and_by_number(hdu, tmp_path):
    "As they were read before versions were"
    file = write(tmp_path/'a.fits', euclid_bands())
    np.testing.assert_array_equal(read(file, 2, hdu=hdu), pixels(['VIS', 'NIR-Y']))

@pytest.mark.parametrize('hdu', [('SCI', 2), 'ERR', ('SCI', 'ERR'), 1])
def test_a_saved_reader_reads_the_same(hdu, tmp_path):
    file = write(tmp_path/'a.fits', hst_flc())
    reader = ImageReader(SIZE, 2, LINEAR, hdu=hdu)
    saved = reader_from_config(reader_config(reader))
    assert saved==reader and (saved(file)==reader(file)).all()

@pytest.mark.parametrize('hdu', [(), 1.5, True, (('SCI', 1), ('SCI', 2)), ('SCI', None), {}])
def test_an_hdu_that_cannot_be(hdu):
    with pytest.raises(ValueError, match='hdu=.*must be a number, a name, a name and its version'): ImageReader(hdu=hdu)

# ---- The image before what accompanies it

@pytest.mark.parametrize('name', ['WEIGHT', 'wht', 'MASK', 'ERROR', 'EXPOSURE', 'DQ', 'VAR', 'IVAR', 'CONTEXT', 'CTX',
                                  'RMS', 'FLG', 'STAT', 'VAR_POISSON', 'G_INVVAR', '1-1.E.RMS', 'NEXP', 'UNCERT'])
def test_a_companion_goes_after_its_image(name, tmp_path):
    for sci in ('SCI', 'DATA', 'VIS', '1-1.E.SCI', 'PSF_MATCHED', 'NOISE_FREE'):
        file = write(tmp_path/f'{sci}.fits', [empty(), image(name), image(sci)])
        np.testing.assert_array_equal(read(file, 1), pixels([sci]))
    alone = write(tmp_path/'alone.fits', [empty(), image(name)])
    np.testing.assert_array_equal(read(alone, 1), pixels([name]))

@pytest.mark.parametrize('packed', [False, True])
def test_sci_goes_before_all(packed, tmp_path):
    "Whatever the others are called"
    hdus = [empty(), image('HITS', packed=packed), image('DEPTH', packed=packed), image('SCI', packed=packed)]
    np.testing.assert_array_equal(read(write(tmp_path/'a.fits', hdus), 1), pixels(['SCI']))
    np.testing.assert_array_equal(read(write(tmp_path/'b.fits', hdus[:3]), 1), pixels(['HITS']))

# ---- Several images of one shape

@pytest.mark.slow
def test_the_shell_names_images_that_are_not_read(tmp_path, run_zoofast):
    for k in range(3): write(tmp_path/f'{k}.fits', euclid_bands())
    write(tmp_path/'hst.fits', hst_flc())
    rows = pd.DataFrame({'id_str': list('abcd'), 'file_loc': ['0.fits', '1.fits', '2.fits', 'hst.fits']})
    rows.to_csv(tmp_path/'c.csv', index=False)
    said = run_zoofast('check', tmp_path/'c.csv', '--size', '32').stdout
    assert '3 of 4 files hold 3 images of one shape' in said and '--hdu VIS,NIR-Y,NIR-H --channels 3' in said
    assert '1 of 4 files hold 2 images of one shape' in said and '--hdu SCI,2' in said
    rows[:3].to_csv(tmp_path/'c.csv', index=False)
    res = run_zoofast('check', tmp_path/'c.csv', '--size', '32', '--hdu', 'VIS,NIR-Y,NIR-H', '--channels', '3')
    assert res.returncode==0 and 'of one shape' not in res.stdout

NUMBERED = [('', ''), ('A', ''), ('A', '7'), ('A', 'A,B'), ('A', 'A')]
@pytest.mark.parametrize('names,ways', [*((o, [1, 2]) for o in NUMBERED), (('A', 'B'), ['A', 'B'])])
def test_images_without_a_name_that_an_option_can_have_are_numbered(names, ways, tmp_path):
    hdus = [fits.ImageHDU(plane(str(k)), name=o) for k,o in enumerate(names)]
    file = write(tmp_path/'a.fits', [empty(), *hdus])
    assert ImageReader().unread(file)==ways
    reader = image_reader(SIZE, 2, 'linear', None, ','.join(map(str, ways)))
    np.testing.assert_array_equal(dataclasses.replace(reader, stretch=LINEAR)(file).numpy(), pixels(['0', '1']))

# ---- Polarizations

def polarizations(path, *values, axis=4):
    "A cube with an axis of Stokes numbers, one after the other"
    step = values[1]-values[0]
    header = {**RADIO, 'CRVAL4': values[0]+step, 'CRPIX4': 2., 'CDELT4': step}
    if axis==3: header = {k.replace('4', '3'): v for k,v in header.items() if k!='CTYPE3'}
    data = cube('LOFAR', len(values))
    fits.writeto(path, data[:,None] if axis==4 else data, fits.Header(header))
    return path

@pytest.mark.parametrize('axis', [3, 4])
@pytest.mark.parametrize('values,at', [((1, 2, 3, 4), 0), ((4, 3, 2, 1), 3), ((1, 2), 0), ((0, 1, 2), 1)])
def test_one_channel_is_stokes_i(values, at, axis, tmp_path):
    file = polarizations(tmp_path/'a.fits', *values, axis=axis)
    for kw in ({}, dict(bands='I'), dict(bands=('I',)), dict(bands=at)):
        np.testing.assert_array_equal(read(file, 1, **kw), pixels(planes('LOFAR', at)))
    np.testing.assert_array_equal(read(file, 3, bands='I'), pixels(planes('LOFAR', at, at, at)))
    np.testing.assert_array_equal(read(file, len(values)), pixels(planes('LOFAR', *range(len(values)))))
    np.testing.assert_array_equal(ImageReader(SIZE, 1).flux(file)[0], plane(f'LOFAR {at}')[::-1])

def test_cubes_of_polarizations_as_bands(tmp_path):
    "A file a band, each a cube"
    files = [polarizations(tmp_path/f'{k}.fits', *values) for k,values in enumerate(((1, 2, 3, 4), (4, 3, 2, 1)))]
    np.testing.assert_array_equal(read('|'.join(map(str, files)), 2), pixels(planes('LOFAR', 0, 3)))

def test_one_polarization_is_called_by_its_name(tmp_path):
    file = write(tmp_path/'a.fits', first())
    np.testing.assert_array_equal(read(file, 1, bands='I'), pixels(['FIRST']))
    with pytest.raises(ImageError, match='it has 1: I'): read(file, 1, bands='V')

def test_polarizations_without_i(tmp_path):
    file = polarizations(tmp_path/'qu.fits', 2, 3)
    with pytest.raises(ImageError, match='has the polarizations Q, U, and no I for one channel; choose with bands='):
        read(file, 1)
    np.testing.assert_array_equal(read(file, 1, bands='U'), pixels(planes('LOFAR', 1)))
    both = polarizations(tmp_path/'rl.fits', -1, -2)
    want = pixels(planes('LOFAR', 0, 1)).mean(0).round()
    np.testing.assert_array_equal(read(both, 1)[0], want)

def test_a_filter_called_i_is_no_polarization(tmp_path):
    fits.writeto(tmp_path/'a.fits', cube('VRI', 3), fits.Header(dict(SKY, BANDS='VRI')))
    np.testing.assert_array_equal(read(tmp_path/'a.fits', 1)[0], pixels(planes('VRI', 0, 1, 2)).mean(0).round())
    np.testing.assert_array_equal(read(tmp_path/'a.fits', 1, bands='I'), pixels(planes('VRI', 2)))

def test_the_scale_of_a_survey_is_that_of_stokes_i(tmp_path):
    for k in range(3):
        data = cube('LOFAR', 4)[:,None]*np.array([1, 1000, 1000, 1000])[:,None,None,None]
        fits.writeto(tmp_path/f'{k}.fits', data.astype('f4'), fits.Header(RADIO))
    fitted = fit_reader(ImageReader(SIZE, 1, 'linear'), tmp_path.glob('*.fits'))
    assert fitted.stretch['high']<=255

# ---- The page

ABOUT = """# Which image of a survey's file is read

Each file is written by `tests/test_which_image.py` with the survey's names, order and kinds of images as we know them,
each image with pixels of its own, and read back. `python tests/test_which_image.py` writes this page. The options are
those of the shell; in Python, `--hdu SCI,2` is `ImageReader(hdu=("SCI", 2))` and `--bands z,r,g` is
`ImageReader(bands=("z", "r", "g"))`.

| product | what is in the file | read by default | with an option |
| --- | --- | --- | --- |
"""

AFTER = """
- Without `hdu`, the image called `SCI` is read, or else the first one that is not a mask, weight, error, exposure map
  or the like by its name. Nothing is looked for behind an image in the primary, or one called `DATA`, `IMAGE` or
  `FLUX`.
- A name and a number, `SCI,2`, is the extension of this name and version (`EXTNAME`, `EXTVER`). Several names or
  several numbers are one band each, of one shape.
- `zoofast check` names files that hold several images of one shape, and the `--hdu` that reads the others.
- A cube whose axis is called `STOKES` gives Stokes I to a reader of one channel (`--channels 1`), and all of its planes
  to one of as many channels.
- With other numbers of bands than channels, choose with `--bands`, or set `--channels`; one channel of several bands is
  their mean.
"""

def within(h):
    "An HDU in a word"
    name = h.name if h.name not in ('', 'PRIMARY') else 'the primary' if isinstance(h, fits.PrimaryHDU) else 'no name'
    name = f'`{h.name},{h.ver}`' if 'EXTVER' in h.header else name if ' ' in name else f'`{name}`'
    if not h.is_image: return f'{name} (table)'
    if not h.shape: return f'{name} (empty)'
    kind = {1: 'row of numbers', 2: 'image', 3: 'cube'}[sum(n>1 for n in h.shape)]
    ones = ', with axes of length one' if 1 in h.shape else ''
    return name if kind=='image' and ' ' not in name else f'{name} ({kind}{ones})'

def named(words): return ', '.join(f'`{o}`' for o in words)

def option(options, words, said):
    "An option and what it gives, where that is more than it says itself"
    text = ' '.join(f'--{k} {v}' for k,v in options.items())
    return f'`{text}`'+(f' ({said})' if said else '')

def row(product):
    inside = ', '.join(map(within, fits.HDUList(product.build())))
    rest = '<br>'.join(option(*o) for o in product.options)
    return f'| {product.name} | {inside} | {product.said or named(product.default)} | {rest} |\n'

def page(): return ABOUT+''.join(map(row, PRODUCTS))+AFTER

def test_the_page_says_what_was_run(): assert DOC.read_text(encoding='utf-8')==page()

if __name__=='__main__': DOC.write_text(page(), encoding='utf-8')
