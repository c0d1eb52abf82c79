"Structure fainter than one step of 256: kept by dtype='float16' from the file to the answer, and bytes stay bytes"
import hashlib, json, struct, zlib
from dataclasses import replace
import numpy as np, pandas as pd, pytest, torch
import zoofast.bundles.onnx, zoofast.bundles.save  # noqa: F401 (models get export_onnx, learners save_bundle)
from astropy.io import fits
from PIL import Image
from zoofast.core.errors import ImageError
from zoofast.data.store import ImageStore
from zoofast.images.reader import ImageReader, reader_config, reader_from_config, to_bytes
from zoofast.images.stretch import STRETCHES

SIZE = 32
STEP = 1/255                                # of a linear scale from 0 to 1
SCALE = dict(kind='linear', low=0, high=1)
DEEP = ImageReader(SIZE, 1, SCALE, dtype='float16')
BYTES = replace(DEEP, dtype='uint8')

def core(): return .2+.75*np.exp(-(np.hypot(*(np.mgrid[:SIZE,:SIZE]-SIZE/2))/5)**2)

def with_tail(faint=STEP/4):
    "A galaxy, and the same with a tail two bits below the last of the eight"
    a,b = np.round(core()*255)/255,np.round(core()*255)/255
    b[14:18,24:] += faint
    return a.astype(np.float32),b.astype(np.float32)

@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "Two FITS that differ by the tail alone"
    folder = tmp_path_factory.mktemp('pair')
    for n,a in zip(('plain', 'tail'), with_tail()): fits.writeto(folder/f'{n}.fits', a)
    return [str(folder/f'{n}.fits') for n in ('plain', 'tail')]

def tail_of(pixels):
    "By how many steps of 256 the tail stands out, of a batch of the pair; the tail lies at the same rows upside down"
    a,b = (o.float().mean(0) for o in pixels)
    return float((b-a)[14:18,24:].mean())

def is_there(pixels, steps=.25): return abs(tail_of(pixels)-steps)<.05*steps

# --- the reader

def test_the_reader_keeps_it(pair):
    deep,plain = ([r(f) for f in pair] for r in (DEEP, BYTES))
    assert {o.dtype for o in deep}=={torch.float16} and {o.dtype for o in plain}=={torch.uint8}
    assert is_there(deep) and (plain[0]==plain[1]).all()
    assert 0<=min(o.min() for o in deep) and max(o.max() for o in deep)<=255

@pytest.mark.parametrize('stretch', [*STRETCHES, np.sqrt], ids=str)
@pytest.mark.parametrize('how', [{}, dict(zoom=1.3), dict(crop=20), dict(margin=1.4), dict(size=17)], ids=str)
def test_it_is_the_picture_of_bytes_but_for_their_rounding(pair, stretch, how):
    args = dict(size=SIZE, channels=3, stretch=stretch) | how
    a,b = (ImageReader(**args, dtype=d).wide(pair[1]) for d in ('uint8', 'float16'))
    assert a.shape==b.shape and (a.float()-b.float()).abs().max()<=1.6
    assert (b!=b.round()).any()

@pytest.mark.parametrize('grey', ['mean', 'luma'])
def test_colour_becomes_one_channel_without_rounding(grey):
    rgb = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    a,b = (ImageReader(SIZE, 1, grey=grey, dtype=d)(rgb).float() for d in ('uint8', 'float16'))
    assert (a-b).abs().max()<.6 and (b!=b.round()).any()

def test_what_lies_within_one_step_is_a_picture_in_float16_alone():
    flux = np.full((SIZE, SIZE), .5, np.float32)
    flux[8:16] += STEP/8
    with pytest.raises(ImageError, match='everywhere'): BYTES(flux)
    assert len(DEEP(flux).unique())>1
    with pytest.raises(ImageError, match='white everywhere'): DEEP(flux+10)

def png16(a):
    "A png of 16 bits of `(y, x)` or `(y, x, colours)`, as Pillow cannot write it"
    a = a[...,None] if a.ndim==2 else a
    def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))
    head = struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 16, {1: 0, 2: 4, 3: 2, 4: 6}[a.shape[2]], 0, 0, 0)
    rows = b''.join(b'\0'+r.astype('>u2').tobytes() for r in a)
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', head)+chunk(b'IDAT', zlib.compress(rows))+chunk(b'IEND', b'')

def raster(kind, bits, path):
    "A raster of 16 bits"
    if kind=='grey tiff': return Image.fromarray(bits).save(path.with_suffix('.tiff')) or path.with_suffix('.tiff')
    opaque = np.full_like(bits, 65535)
    bands = dict(grey=bits, rgb=np.stack([bits]*3, -1), rgba=np.stack([bits]*3+[opaque], -1),
                 la=np.stack([bits, opaque], -1))
    path = path.with_suffix('.png')
    path.write_bytes(png16(bands[kind]))
    return path

@pytest.mark.parametrize('kind', ['grey', 'grey tiff', 'rgb', 'rgba', 'la'])
def test_rasters_of_16_bits_keep_it(kind, tmp_path):
    files = [raster(kind, np.round(a*65535).astype(np.uint16), tmp_path/n) for n,a in zip('ab', with_tail())]
    deep = [replace(DEEP, channels=3)(f).flip(1) for f in files]
    assert abs(tail_of([o.flip(1) for o in deep])-.25)<.02
    # what readers of bytes get is Pillow's, as ever
    plain = [replace(BYTES, channels=3)(f) for f in files]
    assert max((p.float()-d.flip(1).float()).abs().max() for p,d in zip(plain, deep))<=1.1
    assert plain[0].dtype==torch.uint8

def test_alpha_of_16_bits_is_on_black(tmp_path):
    a = np.zeros((SIZE, SIZE, 4), np.uint16)
    a[...,:3],a[8:,:,3] = 40000,32768
    (tmp_path/'a.png').write_bytes(png16(a))
    px = ImageReader(SIZE, dtype='float16')(tmp_path/'a.png').float()
    assert px[:,:8].max()==0 and (px[:,8:]-40000/257/2).abs().max()<.1

def test_8_bit_rasters_are_the_same_numbers(tmp_path):
    px = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    for name in ('a.png', 'a.jpg', 'a.tiff', 'a.webp'):
        Image.fromarray(px).save(tmp_path/name)
        a,b = (ImageReader(SIZE, dtype=d)(tmp_path/name) for d in ('uint8', 'float16'))
        assert (a.half()==b).all()

def test_16_bits_in_an_archive_and_in_files_a_band(tmp_path):
    import zipfile
    bits = [np.round(a*65535).astype(np.uint16) for a in with_tail()]
    names = [raster('rgb', b, tmp_path/n) for n,b in zip('ab', bits)]
    with zipfile.ZipFile(tmp_path/'s.zip', 'w') as z:
        for n in names: z.write(n, n.name)
    deep = [DEEP(f'{tmp_path/"s.zip"}::{n.name}') for n in names]
    assert all((a==DEEP(n)).all() for a,n in zip(deep, names)) and abs(tail_of(deep)-.25)<.02
    grey = [str(raster('grey', b, tmp_path/f'g{i}')) for i,b in enumerate(bits)]
    bands = replace(DEEP, channels=2)('|'.join(grey))
    assert (bands[0]!=bands[1]).any() and bands.dtype==torch.float16

def test_a_format_of_ones_own_gives_uint16_as_flux(tmp_path, monkeypatch):
    from zoofast.images import reader as m
    flux = np.arange(SIZE*SIZE, dtype=np.uint16).reshape(1, SIZE, SIZE)
    own = m.ImageFormat('own', (b'OWN',), ('.own',), lambda path: flux)
    monkeypatch.setattr(m, 'FORMATS', [own, *m.FORMATS])
    (tmp_path/'a.own').write_bytes(b'OWN')
    assert BYTES.flux(tmp_path/'a.own').dtype==np.float32
    assert ImageReader(SIZE)(tmp_path/'a.own').max()==255                # stretched

# --- uint8 is what it was

def test_the_usual_reader_is_unchanged(pair):
    "Digests of before this parameter was there"
    found = {s: hashlib.sha256(ImageReader(SIZE, stretch=s)(pair[1]).numpy().tobytes()).hexdigest()[:16]
             for s in ('auto', 'linear', 'asinh', 'log', 'zscale', 'midtones', 'lupton')}
    assert found==BEFORE
    assert 'dtype' not in reader_config(ImageReader()) and reader_from_config(reader_config(BYTES))==BYTES
    assert reader_config(DEEP)['dtype']=='float16' and reader_from_config(reader_config(DEEP))==DEEP

BEFORE = {'auto': 'ed6a3948589f9ae8', 'linear': 'f2cd280e0394e2b3',
          'asinh': 'ed6a3948589f9ae8', 'log': '58a1c03f5b897a82', 'zscale': '348c0f6b8411d68f',
          'midtones': '75b0299d56dc5992', 'lupton': 'da6f932a20e54faf'}

@pytest.mark.parametrize('wrong', ['float32', 'uint16', 'half', None, 16])
def test_a_wrong_dtype_is_said(wrong):
    with pytest.raises(ValueError, match='dtype=.*uint8.*float16'): ImageReader(dtype=wrong)

# --- the cache

@pytest.mark.parametrize('cache', ['disk', 'memory', 'device', None])
def test_every_cache_keeps_it(pair, cache, tmp_path):
    place = str(tmp_path/'maps') if cache=='disk' else cache
    if cache=='disk': (tmp_path/'maps').mkdir()
    for _ in range(2):                                       # built, and read back
        store = ImageStore(pair, DEEP, place, progress=False)
        px = store[[0, 1]]
        assert px.dtype==torch.float16 and is_there(px)
        assert all((o==DEEP(f)).all() for o,f in zip(px, pair))
    one = store[[1]][0]
    assert (one==px[1]).all()

def test_maps_of_both_depths_lie_side_by_side(pair, tmp_path):
    from zoofast.data.cache import list_cache
    (tmp_path/'maps').mkdir()
    stores = [ImageStore(pair, r, str(tmp_path/'maps'), progress=False) for r in (BYTES, DEEP)]
    assert [s[[0]].dtype for s in stores]==[torch.uint8, torch.float16]
    sizes = sorted(p.stat().st_size for p in (tmp_path/'maps').glob('*.npy'))
    assert sizes[1]-sizes[0]==2*SIZE*SIZE                    # twice the bytes of two galaxies
    assert sorted('float16' in r for r in list_cache(tmp_path/'maps').reader)==[False, True]

def test_room_on_the_disk_is_asked_for_two_bytes_a_pixel(pair, tmp_path, monkeypatch):
    monkeypatch.setenv('ZOOFAST_CACHE_GB', str(3*SIZE*SIZE/1e9))       # two galaxies of bytes, not of float16
    (tmp_path/'maps').mkdir()
    assert ImageStore(pair, BYTES, str(tmp_path/'maps'), progress=False)[[0]].dtype==torch.uint8
    with pytest.raises(ValueError, match='more than the limit'):
        ImageStore(pair, DEEP, str(tmp_path/'maps'), progress=False)

def test_a_map_cut_off_is_built_again(pair, tmp_path):
    (tmp_path/'maps').mkdir()
    ImageStore(pair, DEEP, str(tmp_path/'maps'), progress=False)
    path, = (tmp_path/'maps').glob('*.npy')
    path.write_bytes(path.read_bytes()[:-SIZE*SIZE])
    assert is_there(ImageStore(pair, DEEP, str(tmp_path/'maps'), progress=False)[[0, 1]])

@pytest.mark.slow
def test_processes_read_what_threads_read(pair, monkeypatch):
    files = [pair[i%2] for i in range(64)]
    from zoofast.bundles.model import each_batch
    found = []
    for n in (0, 3):
        monkeypatch.setenv('ZOOFAST_READERS', str(n))
        found.append(torch.cat([x for x,_ in each_batch(DEEP, files, 16, progress=False)]))
    assert found[0].dtype==torch.float16 and (found[0]==found[1]).all() and is_there(found[1][:2])

# --- batches, model, bundle

@pytest.mark.parametrize('augment', [None, dict(preset='none', flip=1.), [lambda x: x.flip(-1)]],
                         ids=['none', 'galaxy', 'own'])
def test_a_batch_has_it(pair, augment):
    from zoofast.data.augment import BatchViews, make_augment
    px = torch.stack([DEEP(f) for f in pair])
    x, = BatchViews(SIZE, make_augment(augment, SIZE))((px,))
    assert x.dtype==torch.float32 and 0<=x.min() and x.max()<=1
    x = x*255
    assert is_there(x) if augment is None else is_there(x.flip(-1))

@pytest.fixture(scope='module')
def learn(pair, tmp_path_factory):
    "A learner of 24 galaxies of both kinds, whose model has never been trained for more than its head"
    from zoofast.data.loaders import GalaxyDataLoaders
    from zoofast.training.finetune import galaxy_learner
    df = pd.DataFrame(dict(id_str=[f'g{i}' for i in range(24)], file_loc=[pair[i%2] for i in range(24)],
                           tail=[('no', 'yes')[i%2] for i in range(24)]))
    folder = tmp_path_factory.mktemp('many')
    for i in range(24):                                      # each a file of its own
        a = fits.getdata(pair[i%2])+np.float32(i//2*1e-5)
        fits.writeto(folder/f'{i}.fits', a)
        df.loc[i, 'file_loc'] = str(folder/f'{i}.fits')
    dls = GalaxyDataLoaders.from_catalog(df, 'tail', reader=DEEP, cache='memory', batch_size=8, progress=False)
    return galaxy_learner(dls, 'resnet10t', pretrained=False, training_mode='head_only', seed=1)

def probabilities(table): return table.select_dtypes('number').filter(like='tail_').to_numpy(float)

def answers(model, files, **how): return probabilities(model.predict(files, progress=False, **how))

@pytest.fixture(scope='module')
def wide_pair(tmp_path_factory):
    "Two FITS of which one has a veil over its right half, as faint as the tail, which rounding of float32 cannot hide"
    folder,(a,_) = tmp_path_factory.mktemp('wide'),with_tail()
    fits.writeto(folder/'plain.fits', a)
    fits.writeto(folder/'veil.fits', a+np.float32(STEP/4)*(np.arange(SIZE)>=SIZE//2).astype(np.float32))
    files = [str(folder/f'{n}.fits') for n in ('plain', 'veil')]
    assert (BYTES(files[0])==BYTES(files[1])).all()
    return files

@pytest.fixture
def sees_it(learn, wide_pair):
    "The learner with a head that says no to the galaxy without the veil and yes to that with it"
    net,was = learn.model.cpu().eval(),{k: v.clone() for k,v in learn.model.state_dict().items()}
    with torch.no_grad():
        a,b = net.features(torch.stack([learn.dls.reader(f) for f in wide_pair]).float()/255).double()
        w = 4*(b-a)/(b-a).square().sum()
        net.head[-1].weight.copy_(torch.stack([-w/2, w/2]))
        net.head[-1].bias.copy_(torch.stack([w@(a+b)/4, -w@(a+b)/4]))
    yield learn
    net.load_state_dict(was)

def test_validation_prediction_and_bundle(sees_it, wide_pair, tmp_path):
    from zoofast.bundles.bundle import load_bundle
    from zoofast.predict.table import predict_catalog
    learn,pair = sees_it,wide_pair
    def sees(p): return p[0][1]<.2 and p[1][1]>.8            # columns are no, yes
    assert sees([learn.predict(f)[2].numpy() for f in pair])
    assert sees(learn.get_preds(dl=learn.dls.test_dl(pair))[0].numpy())
    assert sees(learn.to_model().predict(pair, progress=False)[['tail_no', 'tail_yes']].to_numpy())
    learn.save_bundle(tmp_path/'bundle')
    assert json.loads((tmp_path/'bundle'/'config.json').read_text())['reader']['dtype']=='float16'
    model = load_bundle(tmp_path/'bundle', device='cpu')
    assert model.reader==replace(DEEP, margin=model.reader.margin)
    assert sees(model.predict(pair, progress=False)[['tail_no', 'tail_yes']].to_numpy())
    df = pd.DataFrame(dict(id_str=['a', 'b'], file_loc=pair))
    assert sees(predict_catalog(model, df, progress=False)[['tail_no', 'tail_yes']].to_numpy())
    model.reader = replace(model.reader, dtype='uint8')                 # the test can fail
    assert not sees(model.predict(pair, progress=False)[['tail_no', 'tail_yes']].to_numpy())

def test_it_trains(learn):
    assert learn.dls.train.one_batch()[0].dtype==torch.float32
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(pd.DataFrame(learn.history).valid_loss.iloc[-1])

def test_features_of_the_head_alone_have_it(learn, pair):
    from zoofast.training.freezing import feature_loaders
    f = feature_loaders(learn.dls, learn.model, progress=False)
    x = f.valid_ds.store
    assert x.dtype==torch.float32
    images = learn.dls.valid_ds.batch(list(range(len(x))))[0]
    assert images.dtype==torch.float16
    from zoofast.images.reader import crop_center
    with torch.no_grad(): want = learn.model.eval().features(crop_center(images, SIZE).float()/255)
    torch.testing.assert_close(x, want, atol=1e-4, rtol=1e-4)

@pytest.mark.slow
@pytest.mark.parametrize('engine', ['torch', 'onnx', 'openvino'])
def test_engines_take_it(learn, pair, tmp_path, engine):
    from zoofast.bundles.bundle import load_bundle
    if engine!='torch': pytest.importorskip('onnxruntime' if engine=='onnx' else engine)
    learn.save_bundle(tmp_path/'bundle')
    model = load_bundle(tmp_path/'bundle', device='cpu')
    np.testing.assert_allclose(answers(model, pair, engine=engine), answers(model, pair), atol=1e-4)
    model.set_engine(engine)
    a,b = model.encode(torch.stack([DEEP(f) for f in pair])),model.encode(torch.stack([BYTES(f) for f in pair]))
    assert (a[0]-a[1]).abs().max()>0 and (b[0]==b[1]).all()           # each kind of numbers has its own program

@pytest.mark.slow
def test_the_onnx_file_takes_it(learn, pair, tmp_path):
    ort = pytest.importorskip('onnxruntime')
    from zoofast.bundles.bundle import load_bundle
    learn.save_bundle(tmp_path/'bundle')
    model = load_bundle(tmp_path/'bundle', device='cpu')
    s = ort.InferenceSession(str(model.export_onnx(tmp_path/'m.onnx')))
    got = s.run(None, {'images': torch.stack([model.reader(f) for f in pair]).numpy()})[0]
    np.testing.assert_allclose(np.sort(got, 1), np.sort(answers(model, pair), 1), atol=1e-4)
    assert 'float16' in s.get_modelmeta().custom_metadata_map['input']

def test_a_bundle_with_a_dtype_that_is_none_is_refused(learn, tmp_path):
    from zoofast.bundles.bundle import BundleError, load_bundle
    learn.save_bundle(tmp_path/'bundle')
    path = tmp_path/'bundle'/'config.json'
    config = json.loads(path.read_text())
    config['reader']['dtype'] = 'float8'
    path.write_text(json.dumps(config))
    with pytest.raises(BundleError, match='dtype'): load_bundle(tmp_path/'bundle')
    del config['reader']['dtype']                            # as bundles of before
    path.write_text(json.dumps(config))
    assert load_bundle(tmp_path/'bundle').reader.dtype=='uint8'

# --- shown

def test_pictures_are_shown_as_bytes_are(pair, learn):
    import base64, io
    import matplotlib
    matplotlib.use('Agg')
    from zoofast.plots.galaxies import pixels
    from zoofast.reports.content import _thumbnail
    for n in (1, 3):
        a,b = (np.asarray(pixels(pair[1], replace(r, channels=n))).astype(float) for r in (BYTES, DEEP))
        assert abs(a-b).max()<=1
        jpgs = [base64.b64decode(_thumbnail(pair[1], replace(r, channels=n))) for r in (BYTES, DEEP)]
        thumbs = [np.asarray(Image.open(io.BytesIO(o))).astype(int) for o in jpgs]
        assert abs(thumbs[0]-thumbs[1]).max()<=6
    learn.dls.show_batch()
    learn.dls.show_augmentations(4)
    from matplotlib import pyplot as plt
    shown = [im.get_array() for ax in plt.gcf().axes for im in ax.images]
    assert shown and all(0<=o.min() and .5<o.max()<=1 for o in shown)
    plt.close('all')
    assert to_bytes(torch.tensor([-1., 2.4, 300.]).half()).tolist()==[0, 2, 255]

# --- the command line

@pytest.mark.slow
def test_the_command_line_keeps_it_from_check_to_prediction(run_zoofast, tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(32):
        a = with_tail()[i%2]+rng.normal(0, 1e-4, (SIZE, SIZE)).astype(np.float32)
        fits.writeto(tmp_path/f'{i}.fits', a.astype(np.float32))
        rows.append(dict(id_str=f'g{i}', file_loc=f'{i}.fits', tail=['no', 'yes'][i%2]))
    pd.DataFrame(rows).to_csv(tmp_path/'cat.csv', index=False)
    how = ['--size', SIZE, '--channels', 1, '--stretch', json.dumps(SCALE), '--dtype', 'float16']
    def ok(*args):
        r = run_zoofast(*args, cwd=tmp_path)
        assert r.returncode==0, r.stdout+r.stderr
        return r.stdout
    ok('check', 'cat.csv', '--label', 'tail', *how)
    ok('finetune', 'cat.csv', '--label', 'tail', '--encoder', 'resnet10t', '--random-weights', '--epochs', 1,
       '--save-dir', 'run', '--batch-size', 8, '--no-report', *how)
    ok('predict', 'run', 'cat.csv', '--out', 'p.csv')
    ok('represent', 'resnet10t', 'cat.csv', '--random-weights', '--out', 'f.parquet', *how)
    ok('represent', 'run', 'cat.csv', '--out', 'f2.parquet')
    from zoofast.bundles.bundle import load_bundle
    model = load_bundle(tmp_path/'run', device='cpu')
    assert model.reader.dtype=='float16' and len(pd.read_csv(tmp_path/'p.csv'))==32
    said = pd.read_csv(tmp_path/'p.csv', dtype={'id_str': str})
    want = answers(model, [str(tmp_path/f'{i}.fits') for i in range(32)])
    np.testing.assert_allclose(probabilities(said), want, atol=1e-5)
    for command in (('check', 'cat.csv'), ('finetune', 'cat.csv', '--label', 'tail', '--save-dir', 'r2'),
                    ('represent', 'resnet10t', 'cat.csv', '--out', 'x.csv')):
        r = run_zoofast(*command, '--dtype', 'float32', cwd=tmp_path)
        assert r.returncode==2 and '--dtype' in r.stderr+r.stdout and 'float16' in r.stderr+r.stdout

@pytest.mark.slow
def test_a_sweep_takes_it_for_all_trials_or_tries_both(run_zoofast, survey, tmp_path):
    folder,df = survey
    df[['id_str', 'file_loc', 'morphology']].to_csv(tmp_path/'cat.csv', index=False)
    from zoofast.data.loaders import GalaxyDataLoaders
    from zoofast.training.finetune import galaxy_learner
    dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=SIZE, progress=False)
    galaxy_learner(dls, 'resnet10t', pretrained=False).save_encoder(tmp_path/'enc')
    (tmp_path/'s.yaml').write_text('method: grid\nmetric: {name: valid_loss, goal: minimize}\n'
                                   'parameters: {dtype: {values: [uint8, float16]}}\n')
    r = run_zoofast('sweep', 's.yaml', '--catalog', 'cat.csv', '--label', 'morphology', '--epochs', 1,
                    '--encoder', f'local-dir:{tmp_path/"enc"}', '--size', SIZE, '--save-dir', 'sw', cwd=tmp_path)
    assert r.returncode==0, r.stdout+r.stderr
