"Random views are what they say: compared with scipy and numpy, measured on blobs whose places and shapes are known"
import json
import numpy as np, pytest, torch
from scipy import ndimage
from zoofast.all import *
from zoofast.images.reader import crop_center
from zoofast.data.augment import AddGaussianNoise, BatchViews, make_augment
from zoofast.data.augment import PRESETS, augments_galaxies, sky_level

OFF = dict(rotate=0, flip=False, zoom=1, shift=0, shear=0, erase=0, noise=0)
SIZE,WIDE = 96,116

def blobs(places, sigma=4., n=1, wide=WIDE, shape=None):
    "Images `(n, channels, wide, wide)`, one Gaussian blob in each channel, at places (x, y) in pixels from the centre"
    y,x = np.mgrid[:wide,:wide]-(wide-1)/2
    inv = np.linalg.inv(np.eye(2)*sigma**2 if shape is None else shape)
    one = lambda px, py: np.exp(-0.5*(inv[0,0]*(x-px)**2 + 2*inv[0,1]*(x-px)*(y-py) + inv[1,1]*(y-py)**2))
    return torch.tensor(np.stack([one(*p) for p in places]), dtype=torch.float32).expand(n, -1, -1, -1)

def moments(v):
    "Centroid `(n, c, 2)`, x and y in pixels from the centre, and covariance `(n, c, 2, 2)`"
    at = torch.arange(v.shape[-1])-(v.shape[-1]-1)/2
    w = v.double()/v.double().sum((2,3), keepdim=True)
    cx,cy = (w.sum(2)*at).sum(-1),(w.sum(3)*at).sum(-1)
    dx,dy = at-cx[...,None],at-cy[...,None]
    xx,yy,xy = (w.sum(2)*dx**2).sum(-1),(w.sum(3)*dy**2).sum(-1),torch.einsum('ncyx,ncy,ncx->nc', w, dy, dx)
    return torch.stack([cx, cy], -1),torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], -2)

def views(x, seed=0, **kw):
    torch.manual_seed(seed)
    return GalaxyAugment(SIZE, **{**OFF, **kw})(x)

@pytest.fixture(scope='module')
def wide(survey):
    "Real enough images: 60 simulated galaxies with their margin, bytes"
    r = ImageReader(SIZE, margin=1.2)
    return torch.stack([r.wide(f) for f in survey[1].file_loc])

@pytest.fixture(scope='module')
def dls(survey): return GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, batch_size=16, progress=False)

# --- the resampling ---------------------------------------------------------------------------------------------------

GEOMETRY = [dict(rotate=360), dict(zoom=(0.7, 1.6)), dict(shift=0.2), dict(shear=30), dict(flip=1),
            dict(rotate=360, quarters=True, flip=True, zoom=(0.6, 1.4), shift=0.1, shear=20)]
@pytest.mark.parametrize('kw', GEOMETRY, ids=str)
def test_pixels_are_those_of_scipy(wide, kw):
    "Also where a view reaches beyond the image, which goes on as its reflection"
    aug = GalaxyAugment(SIZE, **{**OFF, **kw})
    torch.manual_seed(1); m = aug.matrices(6, wide.shape[-1]).double().numpy()
    torch.manual_seed(1); got = aug(wide[:6]).numpy()
    n = wide.shape[-1]
    for k in range(6):
        xy = m[k,:,:2]*n/SIZE                                    # in pixels; scipy's axes are (y, x)
        a = xy[::-1,::-1]
        c = (m[k,::-1,2]*n/2) + (n-1)/2 - a@np.full(2, (SIZE-1)/2)
        view = lambda band: ndimage.affine_transform(band, a, c, (SIZE, SIZE), order=1, mode='reflect')
        want = np.stack([view(b.astype(float)/255) for b in wide[k].numpy()])
        assert np.abs(got[k]-want).max()<2e-3 and np.abs(got[k]-want).mean()<1e-5

def test_exact_cases(wide):
    mid = crop_center(wide, SIZE).numpy()/255
    assert np.allclose(views(wide), mid, atol=1e-5)
    assert np.allclose(views(wide, flip=1), np.flip(mid, 3), atol=1e-5)
    turned = views(wide, quarters=True).numpy()
    which = [int(np.argmin([np.abs(t-np.rot90(m, k, (1, 2))).max() for k in range(4)])) for t,m in zip(turned, mid)]
    assert all(np.allclose(t, np.rot90(m, k, (1, 2)), atol=1e-4) for t,m,k in zip(turned, mid, which))
    assert min(np.bincount(which, minlength=4))>=5                # 60 views, four turns

# --- each lever, measured ---------------------------------------------------------------------------------------------

def test_rotation_takes_every_angle():
    c,_ = moments(views(blobs([(20, 0)], n=400), rotate=360))
    angle = torch.atan2(c[:,0,1], c[:,0,0])
    assert torch.allclose(c.norm(dim=-1), torch.tensor(20.).double(), atol=0.1)
    assert min(torch.histc(angle.float(), 8, -np.pi, np.pi))>25
    c,_ = moments(views(blobs([(20, 0)], n=400), rotate=60))
    angle = torch.rad2deg(torch.atan2(c[:,0,1], c[:,0,0]))
    assert 27<angle.max()<30.5 and -30.5<angle.min()<-27

def test_zoom_magnifies():
    c,s = moments(views(blobs([(15, 0)], n=300), zoom=(0.7, 1.4)))
    z = c[:,0,0]/15
    assert 0.69<z.min()<0.75 and 1.33<z.max()<1.41
    assert torch.allclose(s[:,0,0,0].sqrt()/4, z, atol=0.02)      # sizes as distances
    assert 0.4<(z<1).double().mean()<0.6                          # as often smaller as larger

def test_shift_moves_by_a_fraction_of_the_view():
    c,_ = moments(views(blobs([(0, 0)], n=300), shift=0.1))
    far = c[:,0].abs().max(0).values/SIZE
    assert (far<0.1005).all() and (far>0.09).all() and (c[:,0].mean(0).abs()<1).all()
    c,_ = moments(views(blobs([(0, 0)], n=300, sigma=3), shift=0.1, zoom=1.5, rotate=360))
    far = c[:,0].abs().max(0).values/SIZE
    assert (far<0.1005).all() and (far>0.09).all()                # of the view, whatever its magnification

def test_shear():
    "Squares become parallelograms of the same area, by angles up to the given one"
    places = [(-10, -10), (10, -10), (-10, 10)]
    c,_ = moments(views(blobs(places, n=400, sigma=2.5), shear=20))
    a = torch.stack([(c[:,1]-c[:,0])/20, (c[:,2]-c[:,0])/20], -1)       # what became of the axes
    det = torch.linalg.det(a)
    assert torch.allclose(det, torch.ones_like(det), atol=0.02)
    most = (a-torch.eye(2)).abs().amax((1,2)).max()
    assert 0.3<most<np.tan(np.radians(20))+0.15
    inv = torch.linalg.inv(a)                                      # = [[1+tan tan, tan(sx)], [tan(sy), 1]]
    for tan in (inv[:,0,1], inv[:,1,0]):
        assert 18<torch.rad2deg(tan.max().atan())<20.5
        assert -20.5<torch.rad2deg(tan.min().atan())<-18
    one = GalaxyAugment(SIZE, shear=(0, 20)).matrices(400, SIZE)
    assert GalaxyAugment(SIZE, shear=(0, 20)).shear==(0, 20) and (torch.linalg.det(one[:,:,:2])!=0).all()

def test_flip_is_a_fraction():
    for flip,want in ((False, 0), (0.25, 0.25), (True, 0.5), (1, 1)):
        m = GalaxyAugment(SIZE, flip=flip).matrices(4000, WIDE)
        assert (torch.linalg.det(m[:,:,:2])<0).double().mean()==pytest.approx(want, abs=0 if want in (0, 1) else 0.03)

SHEARED = [dict(shear=30, zoom=(0.8, 1.2), quarters=True), dict(preset='zoobot', shear=(-20, 20))]
@pytest.mark.slow(but=1)
@pytest.mark.parametrize('kw', [dict(preset=p) for p in PRESETS]+SHEARED, ids=str)
def test_without_flips_nothing_is_ever_mirrored(kw):
    aug = make_augment(kw, SIZE, flip=False)
    torch.manual_seed(0)
    wild = make_augment({**kw, 'shear': 60, 'zoom': (0.2, 5)}, SIZE, flip=False)
    for a in (aug, wild): assert (torch.linalg.det(a.matrices(20000, WIDE)[:,:,:2])>0).all()
    triangle = blobs([(0, -4), (3.5, 3), (-3.5, 3)], n=300, sigma=1.2)
    aug = make_augment({**kw, 'noise': 0, 'erase': 0}, SIZE, flip=False)
    def sense(v):
        "In which sense red, green and blue follow each other"
        c,_ = moments(v)
        a,b = c[:,1]-c[:,0],c[:,2]-c[:,0]
        return (a[:,0]*b[:,1]-a[:,1]*b[:,0]).sign()
    assert (sense(aug(triangle))==sense(triangle)[0]).all()
    mirror = sense(make_augment({**kw, 'noise': 0, 'erase': 0, 'flip': 0.5}, SIZE)(triangle))
    assert 0.3<(mirror!=sense(triangle)[0]).double().mean()<0.7    # the measure sees a mirror where there is one

def test_erasing(wide):
    x = (0.3+0.6*torch.rand(400, 3, WIDE, WIDE)).contiguous()
    kept = views(x)
    many = dict(erase=1., erasures=(2, 4), erase_side=(0.05, 0.05))
    for kw,frac,counts in ((dict(erase=0.25), 0.25, (1, 1)), (many, 1., (2, 4))):
        v = views(x, **kw)
        hit = (v-kept).abs().amax(1)>0
        assert hit.any(2).any(1).double().mean()==pytest.approx(frac, abs=0.07)
        area = hit[hit.any(2).any(1)].double().sum((1,2))
        low,high = kw.get('erase_side', (0.08, 0.25))
        assert area.max()<=counts[1]*(round(high*SIZE)+1)**2 and area.min()>=0.9*(low*SIZE-1)**2
        i = int(hit.any(2).any(1).nonzero()[0])
        assert torch.equal(v[i][:,hit[i]], sky_level(kept[i:i+1])[0,:,0].expand(-1, int(hit[i].sum())))
        if counts==(1, 1):                                         # one rectangle, anywhere
            rows,cols = hit[i].any(1).sum(),hit[i].any(0).sum()
            assert hit[i].sum()==rows*cols
    some = views(x, erase=1.)!=kept
    assert some.any(0).any(0).double().mean()>0.95                # anywhere

def test_noise():
    grey = torch.full((400, 2, WIDE, WIDE), 0.5)
    sd = views(grey, noise=0.04, noise_p=0.5).flatten(1).std(1)
    assert (sd>1e-4).double().mean()==pytest.approx(0.5, abs=0.08)
    assert 0.037<sd.max()<0.0405 and sd[sd>1e-4].mean()==pytest.approx(0.02, abs=0.002)
    v = AddGaussianNoise(mean=0.1, std=0.02)(grey)
    assert v.mean()==pytest.approx(0.6, abs=1e-3) and v.std()==pytest.approx(0.02, abs=1e-3) and (grey==0.5).all()
    loud = AddGaussianNoise(std=1.)(grey)
    assert loud.min()==0 and loud.max()==1
    noisy = AddGaussianNoise(std=0.05)(grey)[0].flatten(1)
    assert torch.corrcoef(noisy)[0,1].abs()<0.05                  # bands have noise of their own

def test_noise_of_a_whole_batch_at_once():
    "As a GPU adds it: to the same views and as strong as one after the other, and the others are left alone"
    noise,x = AddGaussianNoise(mean=0.1, std=(0.01, 0.04), p=0.5),torch.full((60, 2, 32, 32), 0.5)
    x[0] = 2.                                     # out of the range, and not among the chosen
    torch.manual_seed(1); a = noise(x)
    torch.manual_seed(1); u,strong = torch.rand(2, 60)
    assert u[0]>=0.5
    b = noise._at_once(x.clone(), *(o[:,None,None,None] for o in (u<0.5, 0.01+strong*0.03)))
    same = [(o==x).flatten(1).all(1) for o in (a, b)]
    assert torch.equal(*same) and 15<same[0].sum()<45
    a,b = a.flatten(1),b.flatten(1)
    assert torch.allclose(a.std(1), b.std(1), rtol=0.1) and torch.allclose(a.mean(1), b.mean(1), atol=0.005)

def test_band_dropout(wide):
    "A band is painted with its sky in a known fraction of views, and never all of them"
    x = wide.repeat(8, 1, 1, 1)
    kept = views(x)
    for p,channels in ((0.2, 3), (1., 3), (1., 2)):
        v = views(x[:,:channels], band_dropout=p)
        flat = v.amax((2,3))==v.amin((2,3))
        assert flat.sum(1).max()<=channels-1
        assert torch.equal(v[~flat], kept[:,:channels][~flat])
        assert torch.equal(v[flat][:,:1,0], sky_level(kept[:,:channels])[flat][:,:,0])
        if p==1:
            assert (flat.sum(1)==channels-1).all()
            left = torch.bincount((~flat).int().argmax(1), minlength=channels)
            assert min(left)>0.2*len(x)/channels
        else: assert flat.double().mean()==pytest.approx((p-p**3*(1-2/3)), abs=0.03)          # 3 gone of 3 becomes 2
    assert torch.equal(views(x[:,:1], band_dropout=1.), kept[:,:1])

def test_colours_stay():
    "With the defaults, every view of a uniform colour is that colour"
    colour = torch.tensor([0.9, 0.5, 0.2])[:,None,None].expand(100, 3, WIDE, WIDE)
    for p in PRESETS:
        got = make_augment(dict(preset=p, noise=0), SIZE)(colour)
        assert torch.allclose(got, colour[...,:SIZE,:SIZE], atol=1e-5)

# --- corners ----------------------------------------------------------------------------------------------------------

def _auc(a, b):
    "Probability that a value of `a` is above one of `b`"
    return ((a[:,None]>b[None]).double()+0.5*(a[:,None]==b[None]).double()).mean().item()

def _corner_statistics(x, k=8):
    """Of the four corners, over those of the middles of the four sides: brightness, darkest pixel, and scatter; so that
    blurring, which is the same everywhere, does not count"""
    ends,mid = (slice(0, k), slice(-k, None)),slice(SIZE//2-k//2, SIZE//2+k//2)
    corner = torch.stack([x[:,:,a,b] for a in ends for b in ends], 1)
    side = torch.stack([x[:,:,a,b] for a,b in ((ends[0], mid), (ends[1], mid), (mid, ends[0]), (mid, ends[1]))], 1)
    f = lambda o: (o.mean((2,3,4)).median(1).values, o.amin((2,3,4)).amin(1), o.std((3,4)).mean(2).median(1).values)
    return {n: (c+1e-3)/(s+1e-3) for n,c,s in zip(('brightness', 'darkest', 'scatter'), f(corner), f(side))}

def test_corners_do_not_tell_that_a_view_is_turned(tmp_path):
    df = simulate_survey(tmp_path, n=120, size=116, fits=False, progress=False, seed=3)
    r = ImageReader(SIZE, margin=1.2)
    x = torch.stack([r.wide(f) for f in df.file_loc])
    still = _corner_statistics(views(x, shift=0.02))              # interpolated, as turned views are
    torch.manual_seed(0)
    aug = GalaxyAugment(SIZE, **{**OFF, 'rotate': 360})
    m = aug.matrices(len(x), x.shape[-1])
    grid = torch.nn.functional.affine_grid(m*x.shape[-1]/SIZE, [len(x), 3, SIZE, SIZE], align_corners=False)
    black = torch.nn.functional.grid_sample(crop_center(x, SIZE)/255, grid, align_corners=False)
    here,usual = _corner_statistics(views(x, rotate=360)),_corner_statistics(black)
    for name in still:
        tells = abs(_auc(here[name], still[name])-0.5)
        assert tells<0.1, f'{name}: {tells}'
    # black corners are seen by the same statistics
    assert max(abs(_auc(usual[n], still[n])-0.5) for n in still)>0.3
    v = views(x, rotate=360)
    for a in (slice(0, 6), slice(-6, None)):
        for b in (slice(0, 6), slice(-6, None)):
            corner = v[:,:,a,b]
            assert (corner.std((2,3)).amax(1)>0).all()                          # never constant
            assert (corner.amax((1,2,3))>0).all()                               # never black

# --- shapes, seeds ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['galaxy', 'zoobot', 'light', dict(band_dropout=0.5)], ids=str)
@pytest.mark.parametrize('n,c', [(1, 1), (1, 3), (2, 5), (9, 3), (17, 2)])
def test_any_batch(name, n, c):
    aug = make_augment(name, 64)
    x = torch.randint(0, 256, (n, c, 76, 76), dtype=torch.uint8)
    for o in (x, x/255):
        torch.manual_seed(5); v = aug(o)
        assert v.shape==(n, c, 64, 64) and v.dtype==torch.float32 and v.isfinite().all() and v.min()>=0 and v.max()<=1
        torch.manual_seed(5); assert torch.equal(v, aug(o))
    assert not torch.equal(v, aug(o)) or n==1
    assert aug(torch.zeros(0, c, 76, 76)).shape==(0, c, 64, 64)

def test_bytes_and_numbers_are_the_same(wide):
    torch.manual_seed(2); a = GalaxyAugment(SIZE)(wide)
    torch.manual_seed(2); b = GalaxyAugment(SIZE)(wide/255)
    assert torch.allclose(a, b, atol=1e-6)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU (--gpu)')
@pytest.mark.parametrize('name', ['galaxy', 'zoobot', dict(band_dropout=0.3)], ids=str)
def test_on_a_gpu(wide, name):
    "The same geometry as on the CPU, and no waiting for the device"
    aug = make_augment(name if isinstance(name, dict) else dict(preset=name), SIZE)
    aug.noise = 0.
    x = wide.cuda()
    torch.manual_seed(3); a = aug(wide)
    torch.manual_seed(3); aug(x)
    torch.manual_seed(3)
    torch.cuda.set_sync_debug_mode('error')
    try: b = aug(x)
    finally: torch.cuda.set_sync_debug_mode('default')
    assert (a-b.cpu()).abs().max()<1e-3

# --- by name, and your own --------------------------------------------------------------------------------------------

def test_presets():
    assert make_augment('none', 64) is None and make_augment(None, 64) is None
    for name in ('galaxy', 'zoobot', 'light'):
        aug = make_augment(name, 64)
        assert isinstance(aug, GalaxyAugment) and aug.flip==0.5
        assert make_augment(name, 64, flip=False).flip==0
    assert vars(make_augment('galaxy', 64))==vars(GalaxyAugment(64))
    own = make_augment(dict(preset='zoobot', noise=0.1, flip=0.3), 64)
    assert (own.noise, own.flip, own.shift, own.erasures)==(0.1, 0.3, 0.1, (5, 5))
    assert 'shift=0.1' in repr(own) and 'shear=(0, 20)' in repr(own)

def test_zoobot_shows_what_the_peer_shows():
    "With the loaders' margin: 1/1.2 to 1/1.4 of the whole image along each side, whatever the shear"
    from zoofast.data.loaders import MARGIN
    m = make_augment('zoobot', 240).matrices(5000, 240*MARGIN)
    side = torch.linalg.det(m[:,:,:2]).abs().sqrt()
    assert 1/1.4-1e-4<=side.min()<1/1.39 and 1/1.21<side.max()<=1/1.2+1e-4

def test_light_interpolates_nothing(wide):
    "The pixels of a view are those of the image, in another order"
    torch.manual_seed(0); v = make_augment('light', SIZE)(wide)
    for a,b in zip(v, crop_center(wide, SIZE)/255):
        assert torch.allclose(a.flatten(1).sort(1).values, b.flatten(1).sort(1).values, atol=2e-4)

def test_fastai_transforms(wide):
    from fastai.vision.augment import RandomErasing, aug_transforms
    from fastai.data.transforms import IntToFloatTensor, Normalize
    # what is left is the mirror
    tfms = aug_transforms(max_lighting=0, max_rotate=0, max_zoom=1, max_warp=0, p_affine=0)
    torch.manual_seed(0); v = make_augment([IntToFloatTensor(), *tfms], SIZE)(wide)
    mid = crop_center(wide, SIZE)/255
    same,mirror = ((v-o).abs().amax((1,2,3))<1e-2 for o in (mid, mid.flip(3)))
    assert type(v) is torch.Tensor and (same|mirror).all() and 10<mirror.sum()<50
    erased = make_augment(RandomErasing(p=1., sl=0.1, sh=0.2), SIZE)(wide)
    assert ((erased-mid).abs().amax((1,2,3))>0).double().mean()>0.8     # the middle of the wide image is not always hit
    assert make_augment(aug_transforms(size=48), 48)(wide).shape==(60, 3, 48, 48)
    norm = Normalize.from_stats([0.5], [0.5], cuda=False)
    with pytest.raises(ValueError, match='leave Normalize out'): make_augment([*tfms, norm], SIZE)

def test_functions(wide):
    def darker(x): return x/2
    assert torch.allclose(make_augment(darker, SIZE)(wide), crop_center(wide, SIZE)/510, atol=1e-6)
    both = make_augment([darker, 'light', AddGaussianNoise(std=0.01), torch.nn.Identity()], SIZE, flip=False)
    assert both(wide).shape==(60, 3, SIZE, SIZE) and both(wide).max()<0.6
    assert augments_galaxies(both) and both.steps[1].flip==0
    light = ("GalaxyAugment(size=96, rotate=0, quarters=True, flip=0, zoom=(1, 1), shift=0, shear=(0, 0), erase=0, "
             "erasures=(1, 1), erase_side=(0.08, 0.25), noise=0, noise_p=0.25, band_dropout=0)")
    noise = "AddGaussianNoise(mean=0, std=(0.01, 0.01), p=1)"
    assert repr(both)==f"AugmentSteps([darker, {light}, {noise}, Identity], 96)"

def boom(x): raise KeyError('no such thing')
BAD = [
    ('galaxi', "did you mean 'galaxy'"),
    ('Zoobot', "did you mean 'zoobot'"),
    ('xyz', "'light'"),
    (dict(preset='lite'), "'light'"),
    (dict(rotat=3), "'rotate'"),
    (dict(size=64), "no parameter 'size'"),
    (5, 'augment=5'),
    ([5], 'augment=5'),
    (True, 'augment=True'),
    (dict(zoom=(1.2, 0.9)), 'zoom='),
    (dict(zoom=0), 'zoom=0'),
    (dict(shear=90), 'shear=90'),
    (dict(noise=-1), 'noise=-1'),
    (dict(erase=2), 'erase=2'),
    (dict(erase_side=(0.1, 0.2, 0.3)), 'erase_side='),
    (dict(flip='yes'), "flip='yes'"),
    (dict(rotate=float('nan')), 'rotate=nan'),
    (dict(quarters=1), 'quarters=1'),
    (dict(band_dropout=1.1), 'band_dropout=1.1'),
    (GalaxyAugment(32), 'views of 32 pixels'),
    (boom, "boom fails on a batch of shape \\(4, 3, 72, 72\\): KeyError"),
    (lambda x: None, 'gives a NoneType'),
    (lambda x: x.numpy(), 'gives a ndarray'),
    (lambda x: x[0], "the shape \\(3, 72, 72\\)"),
    (lambda x: x[:1], "the shape \\(1, 3"),
    (lambda x: x[:,:1], "the shape \\(4, 1"),
    (lambda x: (x*255).byte(), 'torch.uint8'),
    (lambda x: x[...,:40,:40], '40 x 40 pixels, where 64 x 64'),
    (lambda x: x.log()-x.log(), 'not finite'),
]
@pytest.mark.parametrize('augment,said', BAD, ids=[f'{i}' for i in range(len(BAD))])
def test_what_is_wrong_is_said(augment, said):
    x = torch.zeros(4, 3, 72, 72, dtype=torch.uint8)
    with pytest.raises(ValueError, match=said): BatchViews(64, make_augment(augment, 64))((x, torch.zeros(4)))

@pytest.mark.parametrize('augment', [dict(flip=0.5), GalaxyAugment(64), [dict(flip=True)]], ids=str)
def test_contradictions(augment):
    with pytest.raises(ValueError, match='flip=False'): make_augment(augment, 64, flip=False)

# --- in the loaders ---------------------------------------------------------------------------------------------------

def test_validation_is_untouched(survey):
    for augment in ('galaxy', 'zoobot', lambda x: x*0, None):
        dls = GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, augment=augment, progress=False)
        rows = dls.catalog[dls.catalog.split=='valid']
        want = torch.stack([dls.reader(f) for f in rows.file_loc])/255
        for _ in range(2): assert torch.equal(torch.cat([x for x,_ in dls.valid]), want)
        assert (dls.reader.margin>1)==isinstance(augment, str)

def test_the_loaders_repeat(dls):
    def epoch(seed):
        torch.manual_seed(seed)
        return torch.cat([x for x,_ in dls.train])
    assert torch.equal(epoch(1), epoch(1)) and not torch.equal(epoch(1), epoch(2))

def test_batches_are_the_readers_own(dls):
    "A batch that is kept is not written over by the next"
    seen = [(x, x.clone()) for x,_ in dls.train]+[(x, x.clone()) for x,_ in dls.valid]
    assert all(torch.equal(a, b) for a,b in seen)

def test_what_the_loaders_know(survey):
    make = lambda **kw: GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, progress=False, **kw)
    assert make().flip and make().augment.flip==0.5
    for kw in (dict(flip=False), dict(augment=dict(flip=False)), dict(augment=GalaxyAugment(64, flip=False))):
        dls = make(**kw)
        assert dls.flip is False and dls.augment.flip==0 and dls.reader.margin>1
    assert make(augment=None).augment is None and make(augment=None).flip and not make(augment=None, flip=False).flip
    with pytest.raises(ValueError, match="did you mean 'galaxy'"): make(augment='galaxxy')

def test_prediction_knows_of_handedness(survey, tmp_path):
    "tta does not mirror: in hand, saved and loaded"
    dls = GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, flip=False, progress=False)
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0')
    learn.save_bundle(tmp_path/'b')
    config = json.loads((tmp_path/'b'/'config.json').read_text())
    assert config['flip'] is False and 'flip=0' in config['augment']
    one = survey[1].head(3)
    for model in (learn, tmp_path/'b'):
        with pytest.raises(ValueError, match='tta=8 must be a whole number from 0 to 4.*flip=False'):
            predict_catalog(model, one, tta=8, progress=False)
    x = torch.stack([dls.reader(f) for f in one.file_loc])
    model = load_bundle(tmp_path/'b', 'cpu')
    alone = np.stack([model.samples(x.rot90(k, (2, 3)))[0] for k in range(4)])
    assert np.allclose(model.samples(x, tta=4), alone, atol=1e-6)
    got = predict_catalog(learn, one, tta=4, progress=False)[dls.task.columns[-dls.task.n_out:]].to_numpy(float)
    assert np.allclose(got, alone.mean(0), atol=1e-4)

def test_show_augmentations(survey):
    for augment,channels in (('galaxy', 3), (None, 1)):
        reader = ImageReader(64, channels=channels)
        dls = GalaxyDataLoaders.from_catalog(survey[1], 'morphology', reader=reader, augment=augment, progress=False)
        dls.show_augmentations(n=8, galaxy=3, ncols=4)
        axs = plt.gcf().axes
        rows = dls.catalog[dls.catalog.split=='train']
        first = dls.reader(rows.file_loc.iloc[3]).permute(1, 2, 0).numpy()/255
        shown = [np.asarray(ax.images[0].get_array()).reshape(64, 64, -1) for ax in axs]
        assert len(axs)==8 and np.allclose(shown[0], first) and rows.id_str.iloc[3]==axs[0].get_title()
        assert (len({s.tobytes() for s in shown})==8)==(augment=='galaxy')
    plt.close('all')
    for kw in (dict(galaxy=999), dict(n=0)):
        with pytest.raises(ValueError): dls.show_augmentations(**kw)

@pytest.mark.slow
def test_command_line(run_zoofast, survey, tmp_path):
    res = run_zoofast('finetune', survey[0]/'catalog.csv', '--label', 'morphology',
                      '--encoder', 'tf_efficientnet_lite0', '--size', 64, '--epochs', 1, '--freeze-epochs', 0,
                      '--augment', '{"preset": "zoobot", "noise": 0.01}', '--no-flip', '--save-dir', tmp_path/'run')
    assert res.returncode==0, res.stderr
    config = json.loads((tmp_path/'run'/'bundle'/'config.json').read_text())
    assert config['flip'] is False and 'shift=0.1' in config['augment'] and 'noise=0.01' in config['augment']
