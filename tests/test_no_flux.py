"""Pixels without flux: known in every format, painted as sky, never the ends of a stretch, and said

What a survey writes where its telescope saw nothing (NaN, -9999, 1e30, 0 beside a sky of 1000) may not change what is
seen of the galaxy, and what is flux may never be taken for it."""
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from astropy.io import fits
from PIL import Image
from zoofast.core.errors import ImageError
from zoofast.data.check import check_catalog
from zoofast.images.no_flux import has_flux, background_level
from zoofast.images.reader import ImageReader, reader_config, reader_from_config
from zoofast.images.stretch import STRETCHES, fit_stretch, stretch_flux
from zoofast.simulate import galaxy_flux

SIZE = 64
Y,X = np.mgrid[:SIZE,:SIZE]
FLAGS = [np.nan, np.inf, -np.inf, -99, -999, -9999, -32768, 1e20, 1e30, 99999, np.finfo('f4').max]
# a ramp on a sky of 1000 +- 3: with the scale 990..1245 a byte is a unit of flux
LINEAR = dict(kind='linear', low=990, high=1245)
BY_BAND = [dict(kind='linear', per_band=True), dict(kind='midtones', per_band=True)]
RAMP = 1000+(X+3*Y)%7-3+np.where(np.hypot(X-40, Y-32)<12, 100., 0)

def galaxy(seed=0, kind='spiral', pedestal=0.):
    return galaxy_flux(np.random.default_rng(seed), kind, SIZE)[0]+np.float32(pedestal)

def columns(flux, v):
    out = flux.copy()
    out[...,:8] = v
    return out

# known

@pytest.mark.parametrize('v', FLAGS)
@pytest.mark.parametrize('kind', ['smooth', 'ring', 'spiral', 'edge_on', 'merger'])
def test_flags_are_known(v, kind):
    for seed in range(3): np.testing.assert_array_equal(has_flux(columns(galaxy(seed, kind), v)), X[None]+0*galaxy()>=8)

def test_several_flags_in_one_image():
    flux = galaxy()
    flux[:,:3],flux[:,3:5],flux[:,60:],flux[:,:,:4] = -9999,-99,1e30,np.nan
    np.testing.assert_array_equal(has_flux(flux), np.broadcast_to((Y>=5) & (Y<60) & (X>=4), flux.shape))

@pytest.mark.parametrize('shape', ['columns', 'frame', 'half', 'corner left', 'one column', 'single pixels'])
def test_zeros_beside_a_sky_of_1000(shape):
    rng,r = np.random.default_rng(0),np.maximum(abs(X-31.5), abs(Y-31.5))
    gone = {'columns': X<8, 'frame': r>24, 'half': X+Y<64, 'corner left': (X<44) | (Y<44), 'one column': X==30,
            'single pixels': rng.random((SIZE,SIZE))<0.03}[shape]
    flux = 1000+rng.normal(0, 20, (1,SIZE,SIZE))+800*np.exp(-np.hypot(X-32, Y-32)/4)
    assert has_flux(flux).all()
    np.testing.assert_array_equal(has_flux(np.where(gone, 0, flux))[0], ~gone)
    for v in FLAGS: np.testing.assert_array_equal(has_flux(np.where(gone, v, flux))[0], ~gone)

# what is flux

def innocent():
    rng,r = np.random.default_rng(1),np.hypot(X-32, Y-32)
    sky,g = rng.normal(0, 1, (SIZE,SIZE)),np.exp(-r/5)
    star = 1e5*np.exp(-r**2/8)+100+3*sky
    exposure = rng.normal(900, 40, (SIZE,SIZE))
    for mu in (0.003, 0.01, 0.1, 0.5, 1, 3, 10, 30):
        yield f'{mu} photons a pixel',rng.poisson(mu, (SIZE,SIZE))
        yield f'{mu} photons and a source',rng.poisson(mu+20*mu*g)
        yield f'{mu} photons a second',rng.poisson(mu+5*g)/exposure
        yield f'{mu} photons, less their mean',rng.poisson(mu+5*g)-mu
    for full in (500, 5000, 50000): yield f'saturated at {full}',np.minimum(star, full)
    yield 'bleeding',np.where(X==32, 60000, np.minimum(star, 60000))
    yield 'sharp star',np.minimum(1e6*np.exp(-r**2/2)+100+3*sky, 65535)
    yield 'clipped',np.clip(sky+50*g, -1, 10)
    yield 'like a jpg',np.clip((sky*20+300*g+60).round(), 0, 255)
    yield 'few levels',(sky/2).round()
    yield 'differences',np.where(rng.random((SIZE,SIZE))<0.02, rng.choice([-1., 1.], (SIZE,SIZE)), 0)
    yield 'radio, blanked with 0',np.where(r<28, sky, 0)
    yield 'cut out',np.where(r<12, 1+50*g, 0)
    yield 'cut out and flat',np.where(r<12, 10+g, 0)
    yield 'model without noise',np.where(r<20, 100*g, 0)
    yield 'model on a negative sky',np.where(r<12, 50*g, -2)
    yield 'mask',(r<12)*1.
    yield 'clean components',np.where(rng.random((SIZE,SIZE))<0.01, 5*abs(sky), 0)
    yield 'sky-subtracted, padded with 0',columns(sky+50*g, 0)
    yield 'magnitudes',25-2.5*np.log10(g+0.01)

@pytest.mark.parametrize('name,flux', list(innocent()), ids=[n for n,_ in innocent()])
@pytest.mark.parametrize('dtype', ['f4', 'f8'])
def test_flux_is_not_taken_for_a_flag(name, flux, dtype):
    assert has_flux(flux[None].astype(dtype)).all()

def test_nothing_changes_where_all_is_flux():
    "To the byte, with every stretch: what has no flux has its own way since, and nothing else"
    for seed,kind in enumerate(['smooth', 'ring', 'spiral', 'edge_on', 'merger']):
        for s in (*STRETCHES, *BY_BAND, LINEAR):
            flux = galaxy(seed, kind, 1000 if s is LINEAR else 0)
            np.testing.assert_array_equal(stretch_flux(flux, s), stretch_flux(flux, s, 'black'))

# painted

@pytest.mark.parametrize('v', [*FLAGS, 0])
@pytest.mark.parametrize('how', ['npy', 'fits', 'rice', 'tiff', 'array', 'masked', 'blank', 'i2'])
def test_the_right_bytes_in_every_format(tmp_path, v, how):
    "A unit of flux is a byte: the galaxy as it was, and beside it the sky, 1000, which is 10"
    whole = how in ('blank', 'i2')
    if whole and (not np.isfinite(v) or abs(v)>32768): pytest.skip('no such whole number')
    flux = columns(RAMP, v)
    f = tmp_path/f'a.{dict(npy="npy", tiff="tiff").get(how, "fits")}'
    if how=='npy': np.save(f, flux)
    elif how=='tiff':
        with np.errstate(over='ignore'): Image.fromarray(flux[::-1].astype('f4')).save(f)
    elif how=='rice': fits.CompImageHDU(flux.astype('f4'), compression_type='GZIP_2', quantize_level=0).writeto(f)
    elif how=='array': f = flux
    elif how=='masked': f = np.ma.array(columns(RAMP, 1234), mask=X<8)
    elif how=='blank':
        h = fits.PrimaryHDU(flux.astype('i2'))
        h.header['BLANK'] = int(v)
        h.writeto(f)
    else: fits.writeto(f, flux.astype('i2' if how=='i2' else 'f4'))
    px = ImageReader(SIZE, 1, LINEAR)(f).numpy()[0]
    np.testing.assert_array_equal(px[:,8:], (RAMP-990)[::-1,8:])
    np.testing.assert_array_equal(px[:,:8], 10)

@pytest.mark.parametrize('stretch', [*STRETCHES, *BY_BAND, lambda f: np.clip(f/f.max(), 0, 1)])
@pytest.mark.parametrize('v', [np.nan, -9999, 1e30])
def test_no_stretch_is_set_by_it(stretch, v):
    """The galaxy is as in an image without the columns, to the rounding of a byte; they are as bright as the sky beside
    them"""
    for kind in ('smooth', 'spiral', 'merger'):
        flux = galaxy(4, kind)
        px,alone = stretch_flux(columns(flux, v), stretch),stretch_flux(flux[:,:,8:], stretch)
        np.testing.assert_allclose(px[:,:,8:].astype(int), alone, atol=1)
        assert px[:,:,:8].std(axis=(1,2)).max()==0
        if stretch!='zscale': assert abs(np.median(px[:,:,:8])-np.median(alone[:,:,:8]))<25   # there, sky is all shades

def test_the_sky_is_the_images_own():
    for pedestal in (0, 5, -3, 1000):
        flux = columns(galaxy(2, pedestal=pedestal), np.nan)
        np.testing.assert_allclose(background_level(flux, has_flux(flux)).ravel(), pedestal, atol=0.03)

def test_each_band_has_its_own_flags_and_sky():
    flux = np.stack([RAMP, RAMP+50, RAMP+100]).astype('f4')
    flux[0,:,:8],flux[1,:8],flux[2] = -9999,np.nan,-32768             # the last band is not there
    good = has_flux(flux)
    np.testing.assert_array_equal(good, np.stack([X>=8, Y>=8, X<0]))
    px = stretch_flux(flux, LINEAR)
    assert (px[0,:,:8]==10).all() and (px[1,:8]==60).all() and (px[2]==35).all()            # that of the others

def test_a_survey_scale_is_not_set_by_it():
    images = [galaxy(i) for i in range(8)]
    want = fit_stretch(images)
    for v in FLAGS:
        got = fit_stretch([columns(o, v) for o in images])
        assert abs(got['low']-want['low'])<0.01 and abs(got['high']/want['high']-1)<0.2

# said, and refused

def test_nearly_nothing_else_is_refused():
    flux = galaxy(pedestal=1000)
    for v in (np.nan, -9999, 1e30, 0):
        gone = np.where(Y*SIZE+X<0.97*SIZE**2, v, flux)
        with pytest.raises(ImageError, match=r'no flux in 97\.0% of its pixels'): ImageReader(SIZE)(gone)
        ImageReader(SIZE)(np.where(Y<SIZE*0.9, v, flux))

def test_check_says_it(tmp_path):
    names = ['whole', 'padded', 'little', 'dead', 'flat', 'gone', 'grey', 'blue']
    flux = {o: galaxy(i, pedestal=100) for i,o in enumerate(names)}
    flux['padded'] = columns(flux['padded'], -9999)
    flux['little'][:,:,:2] = np.nan
    flux['dead'][1],flux['flat'][2] = np.nan,100
    flux['gone'][:,2:] = -9999
    for o in names[:6]: np.save(tmp_path/f'{o}.npy', flux[o])
    grey = stretch_flux(flux['grey'])
    Image.fromarray(np.stack([grey[0]]*3, -1)).save(tmp_path/'grey.png')
    Image.fromarray(np.stack([grey[0], grey[1], 0*grey[2]], -1)).save(tmp_path/'blue.png')
    files = [str(tmp_path/f'{o}.{"npy" if i<6 else "png"}') for i,o in enumerate(names)]
    df = pd.DataFrame(dict(id_str=names, file_loc=files))
    want = {'padded': 'no flux in 12% of its pixels', 'dead': 'band 1 has no flux',
            'flat': 'band 2 has the same value, 100, in all pixels',
            'blue': 'band 2 has the same value, 0, in all pixels'}
    check = check_catalog(df)
    assert dict(zip(check.suspect.id_str, check.suspect.reason))==want
    assert check.bad.id_str.tolist()==['gone'] and 'no flux in 96.9% of its pixels' in check.bad.reason[0]
    assert len(check.ok)==7
    for v in 'gz': np.save(tmp_path/f'{v}.npy', galaxy(pedestal=100)[0])
    np.save(tmp_path/'r.npy', np.full((SIZE,SIZE), 7.))
    three = pd.DataFrame(dict(id_str=['a'], file_loc=['|'.join(str(tmp_path/f'{v}.npy') for v in 'grz')]))
    assert check_catalog(three).suspect.reason.tolist()==[f'band {tmp_path}/r.npy has the same value, 7, in all pixels']

@pytest.mark.parametrize('cache', ['disk', 'memory', None])
def test_loaders_say_it_too(tmp_path, cache):
    "Also those that find the pixels in the cache, or copy them from that of another catalogue"
    from zoofast.data.loaders import GalaxyDataLoaders
    for i in range(12): np.save(tmp_path/f'{i}.npy', columns(galaxy(i), -99) if i==5 else galaxy(i))
    df = pd.DataFrame(dict(id_str=[str(i) for i in range(12)], file_loc=[str(tmp_path/f'{i}.npy') for i in range(12)],
                           kind=['a', 'b']*6))
    for rows in (df, df, df[2:]):
        dls = GalaxyDataLoaders.from_catalog(rows, 'kind', size=32, cache=cache, device='cpu', progress=False)
        assert dls.suspect[['id_str', 'reason']].to_numpy().tolist()==[['5', 'no flux in 12% of its pixels']]

# old models

def test_an_old_model_reads_as_it_was_trained():
    "A saved reader that says nothing of it paints NaN as the lowest flux, takes -9999 for flux, and is known as before"
    new = ImageReader(SIZE, 1, LINEAR)
    config = reader_config(new)
    assert config.pop('no_flux')=='sky'
    old = reader_from_config(config)
    assert old.no_flux=='black' and reader_config(old)==config and reader_from_config(reader_config(new))==new
    flux = columns(RAMP, np.nan)
    assert (old(flux)[...,:8]==0).all() and (new(flux)[...,:8]==10).all()
    auto = replace(old, stretch='auto')(columns(RAMP, -9999)).numpy()[0]
    assert auto[:,8:].min()>200 and (auto[:,:8]==0).all()             # white: so it was
    with pytest.raises(ValueError, match="no_flux='white'"): ImageReader(no_flux='white')

def test_keys_of_the_cache_differ(tmp_path):
    from zoofast.data.store import ImageStore
    np.save(tmp_path/'a.npy', columns(RAMP, np.nan))
    readers = [ImageReader(SIZE, 1, LINEAR, no_flux=o) for o in ('sky', 'black')]
    for _ in range(2):
        kept = [ImageStore([str(tmp_path/'a.npy')], r, tmp_path/'cache', progress=False) for r in readers]
        assert [int(o[[0]][0,0,0,0]) for o in kept]==[10, 0]
    assert len(list((tmp_path/'cache').glob('*.npy')))==2

# a model

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A small network that tells round galaxies from those seen edge-on, and 80 that it has not learned from"
    from zoofast.all import GalaxyDataLoaders, galaxy_learner
    folder,rows = tmp_path_factory.mktemp('trained'),[]
    for i in range(220):
        kind = ('smooth', 'edge_on')[i%2]
        flux = galaxy_flux(np.random.default_rng(i), kind, SIZE, noise=0.5, neighbours=1)[0][1]
        fits.writeto(folder/f'{i}.fits', flux)
        split = 'train' if i<140 else 'valid'
        rows.append(dict(id_str=str(i), file_loc=str(folder/f'{i}.fits'), kind=kind, split=split))
    df = pd.DataFrame(rows)
    dls = GalaxyDataLoaders.from_catalog(df, 'kind', size=SIZE, batch_size=16, device='cpu', cache='memory',
                                         progress=False)
    learn = galaxy_learner(dls, 'test_convnext', pretrained=False, learning_rate=3e-3, dims=(16, 32, 48, 64),
                           depths=(1, 1, 2, 1))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(12)
    learn.save_bundle(folder/'bundle')
    return folder/'bundle',df[df.split=='valid'].drop(columns='split').reset_index(drop=True)

def accuracy(trained, folder, change, no_flux='sky'):
    "Of the model from its bundle, with files that `change` made of the galaxies"
    from zoofast.bundles.bundle import load_bundle
    from zoofast.predict.table import predict_catalog
    bundle,df = trained
    files = [str(folder/f'{i}.fits') for i in df.id_str]
    for old,new in zip(df.file_loc, files): fits.writeto(new, change(fits.getdata(old)).astype('f4'), overwrite=True)
    model = load_bundle(bundle, device='cpu')
    model.reader = replace(model.reader, no_flux=no_flux)
    preds = predict_catalog(model, df.assign(file_loc=files), engine='torch', progress=False)
    return (preds.kind_pred.to_numpy()==df.kind.to_numpy()).mean()

@pytest.mark.slow
def test_a_model_sees_the_galaxy_beside_padding(trained, tmp_path):
    "Eight columns without flux took models to 0.5 before; now they cost no more than columns of perfect sky"
    whole = accuracy(trained, tmp_path, lambda o: o)
    zeros = accuracy(trained, tmp_path, lambda o: columns(o, 0))
    assert whole>0.9 and abs(whole-zeros)<0.06
    for v in (np.nan, -9999, 1e30, -99):
        got = accuracy(trained, tmp_path, lambda o: columns(o, v))
        assert got>whole-0.06 and abs(got-zeros)<0.06, (v, got, whole)
    assert accuracy(trained, tmp_path, lambda o: columns(o+1000, 0))>whole-0.06
    assert accuracy(trained, tmp_path, lambda o: columns(o, -9999), 'black')<0.7
