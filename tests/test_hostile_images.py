"Files that are broken, mislabelled, enormous or strange: each gives the right pixels, or an `ImageError` that says why"
import bz2, gzip, io, os, signal, struct, zlib
import numpy as np, pytest
from astropy.io import fits
from PIL import Image
from zoofast.core.errors import ImageError
from zoofast.images.reader import ImageReader

SIZE = 48
y,x = np.mgrid[:SIZE,:SIZE]
GALAXY = (10+240*np.exp(-((x-20)**2/60+(y-28)**2/30))).round()                # seen from above: row 0 at the top
RIGHT = 'the right pixels'

def saved(image, fmt, **kw):
    b = io.BytesIO()
    image.save(b, fmt, **kw)
    return b.getvalue()
def png(a=GALAXY, **kw): return saved(Image.fromarray(np.asarray(a).astype(np.uint8)), 'png', **kw)
def raster(fmt, **kw): return saved(Image.fromarray(GALAXY.astype(np.uint8)), fmt, **kw)
def fts(a=GALAXY[::-1], **header):
    b = io.BytesIO(); fits.HDUList([fits.PrimaryHDU(a, fits.Header(header))]).writeto(b); return b.getvalue()
def hdus(*hs): b = io.BytesIO(); fits.HDUList([fits.PrimaryHDU(), *hs]).writeto(b); return b.getvalue()
def head(**kw): return fits.Header({'SIMPLE': True, **kw}).tostring().encode()
def scaled(a, scale, zero):
    cards = head(BITPIX=16, NAXIS=2, NAXIS1=SIZE, NAXIS2=SIZE, BSCALE=scale, BZERO=zero)
    return cards+a.astype('>i2').tobytes().ljust(5760, b'\0')
def holes(v, n=5): a = GALAXY[::-1].copy(); a[:n,:n] = v; return a
def flip_bits(data, n=40, start=0, seed=0):
    b = bytearray(data)
    for i in np.random.default_rng(seed).integers(start, len(b), n): b[i] ^= 1<<(i%8)
    return bytes(b)
def chunk(name, data): return struct.pack('>I', len(data))+name+data+struct.pack('>I', zlib.crc32(name+data))
def png_of(width, height, data=b'', interlaced=0):
    about = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, interlaced)
    parts = chunk(b'IHDR', about)+chunk(b'IDAT', zlib.compress(data))+chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n'+parts
table = fits.BinTableHDU.from_columns([fits.Column('mag', 'E', array=np.arange(3.))])
rice = hdus(fits.CompImageHDU(np.tile(GALAXY[::-1], (3,3)).astype('i2'), compression_type='RICE_1'))
huge_rice = rice.replace(b'ZNAXIS1 =                  144', b'ZNAXIS1 =            900000000')
fixed = dict(stretch=dict(kind='linear', low=0, high=255))

# name of the file, its bytes, what to expect (a pattern of the error, or RIGHT), and the reader's parameters
CASES = [
    # what is no picture at all
    ('empty.png', b'', 'is empty', {}),
    ('empty.fits', b'', 'is empty', {}),
    ('page.jpg', b'<!DOCTYPE html><html>404', 'starts with b.<!DOCTYPE', {}),
    ('answer.png', b'{"error": "no such cutout"}', 'starts with b.{"error', {}),
    ('note.fits', b'no FITS here\n'*900, 'SIMPLE', {}),
    ('zip.png', b'PK\3\4'+b'\0'*99, 'zip archive is cut off or damaged', {}),
    ('doc.jpg', b'%PDF-1.7\n'+b'\0'*999, 'cannot identify', {}),
    ('zeros.jpg', b'\0'*5000, 'cannot identify', {}),
    ('program.eps', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch /tmp/pwned) (w) file\n',
     'cannot identify', {}),
    ('drawing.svg', b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'cannot identify', {}),
    ('noise.png', np.random.default_rng(0).bytes(9000), 'cannot identify', {}),
    ('magic.png', b'\x89PNG\r\n\x1a\n'+np.random.default_rng(1).bytes(900), '', {}),
    ('magic.jpg', b'\xff\xd8\xff\xe0'+np.random.default_rng(1).bytes(900), '', {}),
    # rasters cut short or damaged
    ('cut.jpg', raster('jpeg')[:400], 'truncated', {}),
    ('cut.png', png()[:300], 'truncated|broken', {}),
    ('cut.tiff', raster('tiff')[:1500], '', {}),
    ('cut.gif', raster('gif')[:300], '', {}),
    ('cut.webp', raster('webp')[:60], '', {}),
    ('cut.jp2', raster('jpeg2000')[:200], '', {}),
    ('start.jpg', b'\xff\xd8', '', {}),
    ('crc.png', flip_bits(png(), 6, 60), '', {}),
    ('zero.png', png_of(0, 0), '', {}),
    ('short.png', png_of(48, 48, b'\0'*100), 'truncated|broken|not enough', {}),
    ('before.jpg', b'junk'+raster('jpeg'), 'cannot identify', {}),
    ('after.png', png()+b'junk'*99, RIGHT, {}),
    # bombs
    ('bomb.png', png_of(60000, 60000), 'pixels', {}),
    ('bomb2.png', png_of(11000, 11000), 'more than', {}),
    ('bomb.gif', b'GIF89a'+struct.pack('<HH', 65535, 65535)+b'\x80\0\0'+b'\0'*6+b'!\xf9\4\0\0\0\0\0,'+b'\0'*99, '', {}),
    ('bomb.fits', head(BITPIX=-64, NAXIS=2, NAXIS1=10**6, NAXIS2=10**6)+b'\0'*2880, 'cut the galaxy out', {}),
    ('bomb3.fits', head(BITPIX=8, NAXIS=3, NAXIS1=4096, NAXIS2=4096, NAXIS3=10**5)+b'\0'*2880,
     'cut the galaxy out', {}),
    ('bomb.fits.fz', huge_rice, '', {}),
    ('bomb.fits.gz', gzip.compress(head(BITPIX=-64, NAXIS=2, NAXIS1=10**5, NAXIS2=10**5)+b'\0'*10**7),
     'cut the galaxy out', {}),
    # names that do not say what is in the file
    ('really.jpg', png(), RIGHT, {}),
    ('really_png.fits', png(), RIGHT, {}),
    ('really_fits.jpg', fts(), RIGHT, fixed),
    ('no_suffix', fts(), RIGHT, fixed),
    ('UPPER.FITS', fts(), RIGHT, fixed),
    ('a.FTS', fts(), RIGHT, fixed),
    ('gal axy \u00e9\u4e16.png', png(), RIGHT, {}),
    ('two\nlines.png', png(), RIGHT, {}),
    ('percent%20#?.fits', fts(), RIGHT, fixed),
    ('a|b.png', png(), RIGHT, {}),
    ('bracket[1].fits', fts(), RIGHT, fixed),
    ('gz.fits.gz', gzip.compress(fts()), RIGHT, fixed),
    ('bz.fits.bz2', bz2.compress(fts()), RIGHT, fixed),
    ('not_gz.fits.gz', fts(), RIGHT, fixed),
    ('is_gz.fits', gzip.compress(fts()), RIGHT, fixed),
    # FITS cut short or damaged
    ('header.fits', fts()[:2880], 'truncated', fixed),
    ('half_header.fits', fts()[:1500], '', fixed),
    ('cut.fits', fts()[:9000], 'truncated', fixed),
    ('cut.fits.gz', gzip.compress(fts())[:300], '', fixed),
    ('cut.fits.bz2', bz2.compress(fts())[:300], '', fixed),
    ('noise.fits.gz', b'\x1f\x8b'+np.random.default_rng(2).bytes(3000), '', fixed),
    ('cut.fits.fz', rice[:8000], '', {}),
    ('damaged.fits.fz', flip_bits(rice, 400, 9000), '', {}),
    ('after.fits', fts()+b'junk'*720, 'END card', fixed),
    ('padded.fits', fts()+b'\0'*2880, RIGHT, fixed),
    ('end.fits', fts().replace(b'END   ', b'ENDE  '), '', fixed),
    ('bitpix.fits', fts().replace(b'BITPIX  =                  -64', b'BITPIX  =                  -17'), '', fixed),
    ('negative.fits', head(BITPIX=16, NAXIS=2, NAXIS1=-5, NAXIS2=48)+b'\0'*2880, '', fixed),
    ('simple.fits', fts().replace(b'SIMPLE  =                    T', b'SIMPLE  =                    F'),
     'NonstandardHDU', fixed),
    # FITS without a picture
    ('table.fits', hdus(table), 'BinTableHDU', {}),
    ('nothing.fits', hdus(), 'without pixels', {}),
    ('spectrum.fits', fts(np.arange(500.)), 'of 500', {}),
    ('4d.fits', fts(np.zeros((2,2,9,9))), '2 x 2 x 9 x 9', {}),
    ('empty_axis.fits', fts(np.zeros((0,9))), '', {}),
    ('nan.fits', fts(GALAXY*np.nan), 'no finite pixel', {}),
    ('inf.fits', fts(GALAXY*np.inf), 'no finite pixel', {}),
    ('constant.fits', fts(GALAXY*0+3), 'same value, 3', {}),
    ('bscale.fits', scaled(GALAXY[::-1], 0., 7.), 'same value, 7', {}),
    ('one.fits', fts(np.where((x==3)&(y==3), 1., np.nan)), 'same value', {}),
    ('hdu9.fits', hdus(fits.ImageHDU(GALAXY)), 'no HDU 9', dict(hdu=9)),
    ('hdu_name.fits', hdus(fits.ImageHDU(GALAXY)), "no HDU 'SCI'", dict(hdu='SCI')),
    ('hdu_table.fits', hdus(table, fits.ImageHDU(GALAXY)), 'HDU 1', dict(hdu=1)),
    ('hdu_shapes.fits', hdus(fits.ImageHDU(GALAXY), fits.ImageHDU(GALAXY[:9])), 'different shapes', dict(hdu=(1,2))),
    ('bands2.fits', fts(np.stack([GALAXY]*2)), '2 bands where 3', {}),
    ('bands_name.fits', fts(np.stack([GALAXY]*3)), 'no bands', dict(bands=('z',))),
    ('bands_number.fits', fts(np.stack([GALAXY]*3)), 'no bands', dict(bands=(0,1,5))),
    ('burnt.fits', fts(), 'white everywhere', dict(stretch=dict(kind='linear', low=-9, high=-8))),
    ('dark.fits', fts(), 'black everywhere', dict(stretch=dict(kind='asinh', low=1e6, high=2e6))),
    # FITS that is strange and right
    ('dead.fits', fts(holes(np.nan)), RIGHT, fixed),
    ('infinite.fits', fts(holes(np.inf)), RIGHT, fixed),
    ('minus.fits', fts(holes(-np.inf)), RIGHT, fixed),
    ('flag.fits', fts(holes(np.finfo('f4').max).astype('f4')), RIGHT, fixed),
    ('blank.fits', fts(holes(-32768).astype('i2'), BLANK=-32768), RIGHT, fixed),
    ('cosmic.fits', fts(holes(1e30, 1)), RIGHT, fixed),
    ('u16.fits', fts(GALAXY[::-1].astype('u2')), RIGHT, fixed),
    ('u32.fits', fts(GALAXY[::-1].astype('u4')), RIGHT, fixed),
    ('i64.fits', fts(GALAXY[::-1].astype('i8')), RIGHT, fixed),
    ('u8.fits', fts(GALAXY[::-1].astype('u1')), RIGHT, fixed),
    ('little.fits', fts(GALAXY[::-1].astype('<f4')), RIGHT, fixed),
    ('scaled.fits', scaled((GALAXY[::-1]-100)/0.5, 0.5, 100.), RIGHT, fixed),
    ('radio.fits', fts(GALAXY[None,None,::-1]), RIGHT, fixed),
    ('tiny_flux.fits', fts(GALAXY[::-1]*1e-300), RIGHT, dict(stretch=dict(kind='linear', low=0, high=255e-300))),
    ('huge_flux.fits', fts(GALAXY[::-1]*1e290), RIGHT, dict(stretch=dict(kind='linear', low=0, high=255e290))),
    ('extension.fits', hdus(table, fits.ImageHDU(GALAXY[::-1])), RIGHT, fixed),
    ('last.fits', fts(np.repeat(GALAXY[::-1,:,None], 3, 2)), RIGHT, fixed),
    # stretches of the user's own
    ('own_shape.fits', fts(), 'gave the shape', dict(stretch=lambda f: f[0])),
    ('own_nan.fits', fts(), 'not finite', dict(stretch=lambda f: f*np.nan)),
    ('own_raises.fits', fts(), 'KeyError', dict(stretch=lambda f: {}['a'])),
    ('own_bytes.fits', fts(), 'from 0 to 1', dict(stretch=lambda f: f)),
    ('own.fits', fts(holes(np.nan)), RIGHT, dict(stretch=lambda f: f/255)),
    # rasters that are strange and right, or have numbers that cannot be bytes
    ('deep.tiff', None, 'integer pixels', {}),
    ('grey_alpha.png', None, RIGHT, {}),
    ('float_nan.tiff', None, 'no finite pixel', {}),
    ('interlaced.png', None, RIGHT, {}),
    ('lossless.webp', raster('webp', lossless=True), RIGHT, {}),
    ('frames.gif', raster('gif', save_all=True, append_images=[Image.new('L', (48,48))]), RIGHT, {}),
]
def test_there_are_many(): assert len(CASES)>=60 and len({c[0] for c in CASES})==len(CASES)

def write(folder, name, data):
    f = folder/name
    if data is not None: f.write_bytes(data)
    elif name=='deep.tiff': Image.fromarray((GALAXY*1e5).astype(np.int32)).save(f)
    elif name=='grey_alpha.png':
        alpha = Image.new('L', (SIZE,SIZE), 255)
        Image.merge('LA', [Image.fromarray(GALAXY.astype(np.uint8)), alpha]).save(f)
    elif name=='float_nan.tiff': Image.fromarray((GALAXY*np.nan).astype(np.float32)).save(f)
    elif name=='interlaced.png':
        # Adam7, by hand: seven small pictures one after the other
        passes = ((0,0,8,8), (0,4,8,8), (4,0,8,4), (0,2,4,4), (2,0,4,2), (0,1,2,2), (1,0,2,1))
        small = [GALAXY.astype(np.uint8)[y0::dy,x0::dx] for y0,x0,dy,dx in passes]
        f.write_bytes(png_of(SIZE, SIZE, b''.join(b'\0'+row.tobytes() for a in small for row in a), interlaced=1))
    return f

def is_right(px):
    "The galaxy, but for the corner that some files have damaged"
    off = np.abs(px.numpy().astype(int)-GALAXY)
    off[:,-5:,:5] = 0
    return off.max()<=1

@pytest.fixture
def limit():
    "No file may keep the process waiting"
    def late(*_): raise TimeoutError('the file kept the reader waiting')
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0); signal.signal(signal.SIGALRM, old)

NAMES = [c[0].encode('ascii', 'replace').decode().replace('\n', ' ') for c in CASES]
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name,data,expected,kw', CASES, ids=NAMES)
def test_hostile(tmp_path, limit, name, data, expected, kw):
    file = write(tmp_path, name, data)
    try: px = ImageReader(SIZE, **kw)(file)
    except ImageError as e:
        import re
        assert not expected==RIGHT and str(file) in str(e)
        assert len(str(e))>len(str(file))+8 and '\n' not in str(e).replace(str(file), '')
        assert re.search(expected, str(e)), str(e)
    else: assert expected.startswith(RIGHT) and px.shape==(3,SIZE,SIZE) and is_right(px)

NO_FILES = ['missing', 'folder', 'fifo', 'device', 'loop', 'broken link', 'long', 'null', 'nothing', 'none', 'part',
            'parts of two sizes']
@pytest.mark.parametrize('what', NO_FILES)
def test_what_is_no_file(tmp_path, limit, what):
    f = tmp_path/'a.fits'
    good = tmp_path/'good.png'; good.write_bytes(png())
    small = tmp_path/'small.png'; small.write_bytes(png(GALAXY[:20]))
    if what=='folder': f.mkdir()
    if what=='fifo': os.mkfifo(f)
    if what=='loop': f.symlink_to(f)
    if what=='broken link': f.symlink_to(tmp_path/'none.fits')
    paths = {
        'device': '/dev/zero',
        'long': f'{tmp_path}/{"a"*300}.png',
        'null': f'{tmp_path}/a\0b.png',
        'nothing': '',
        'none': None,
        'part': f'{good}|{f}',
        'parts of two sizes': f'{good}|{small}',
    }
    path = paths.get(what, f)
    with pytest.raises(ImageError): ImageReader(SIZE)(path)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ['jpg', 'png', 'tiff', 'fits', 'rice', 'gz'])
def test_random_damage_never_ends_the_process(tmp_path, limit, kind):
    "200 damaged files of each kind: a tensor of the right shape, or an `ImageError`"
    tiff = raster('tiff', compression='tiff_lzw')
    files = {'jpg': raster('jpeg'), 'png': png(), 'tiff': tiff, 'fits': fts(), 'rice': rice, 'gz': gzip.compress(fts())}
    whole = files[kind]
    said = 0
    for seed in range(200):
        file = tmp_path/f'a.{ {"rice": "fits.fz", "gz": "fits.gz"}.get(kind, kind) }'
        data = flip_bits(whole, 1+seed%20, seed=seed)
        file.write_bytes(data[:len(data)*(seed%7+1)//7])
        try: assert ImageReader(SIZE)(file).shape==(3,SIZE,SIZE)
        except ImageError: said += 1
    assert said>50
