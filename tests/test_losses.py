"""Losses: torch's own weighted loss, labels as they are, what is saved with a bundle, and what a stranger's bundle may
name"""
import json, shutil, warnings
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import LabelSmoothingCrossEntropy
from torch import nn
from zoofast.all import *
from zoofast.tasks.losses import FocalCrossEntropy, loss_config, loss_from_config, make_loss

@pytest.fixture(scope='module')
def dls(survey):
    "The survey's rings, called 1 and 2"
    df = survey[1].assign(ring=np.where(survey[1].morphology=='ring', 2, 1))
    return GalaxyDataLoaders.from_catalog(df, 'ring', size=64, batch_size=16, progress=False)

def counts(dls): return torch.bincount(dls.train.dataset.y, minlength=dls.task.n_out)
def learner(dls, loss_func=None, **kwargs):
    return galaxy_learner(dls, 'resnet10t', pretrained=False, loss_func=loss_func, precision='fp32', **kwargs)
def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kwargs)
    return learn
def batch(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(64, n, generator=g),torch.randint(0, n, (64,), generator=g)
def altered(folder, **kw):
    d = folder.parent/'altered'
    shutil.rmtree(d, ignore_errors=True)
    shutil.copytree(folder, d)
    (d/'config.json').write_text(json.dumps({**json.loads((folder/'config.json').read_text()), **kw}))
    return d

# what the loss is

@pytest.mark.parametrize('classes,weights', [
    ([1, 2], {1: 0.5, 2: 10}),
    ([1, 2], {np.int64(2): 10, np.int64(1): 0.5}),
    ([1, 2], [0.5, 10]),
    ([1, 2], np.array([0.5, 10])),
    ([1, 2], torch.tensor([0.5, 10])),
    ([1, 2], pd.Series({2: 10, 1: 0.5})),
    ([False, True], {True: 10, False: 0.5}),
    (['no ring', 'ring'], {'ring': 10, 'no ring': 0.5})])
@pytest.mark.parametrize('smoothing', [0, 0.1])
def test_weights_are_torchs(classes, weights, smoothing):
    out,y = batch(2)
    loss = make_loss(Classification('ring', classes=classes), class_weights=weights, label_smoothing=smoothing)
    want = nn.CrossEntropyLoss(torch.tensor([0.5, 10]), label_smoothing=smoothing)
    assert loss(out, y).item()==pytest.approx(want(out, y).item(), abs=1e-6)
    assert loss(out, y).item()!=pytest.approx(F.cross_entropy(out, y, label_smoothing=smoothing).item(), abs=1e-3)

def test_weights_in_training_are_torchs(dls):
    "The loss and the gradient of a batch, and the validation loss that fastai reports"
    learn = learner(dls, make_loss(dls.task, class_weights='balanced', counts=counts(dls)))
    y = dls.train.dataset.y.numpy()
    weights = compute_class_weight('balanced', classes=np.unique(y), y=y)
    want = nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float32))
    x,t = next(iter(dls.train))
    out = learn.model.eval()(x)
    got = learn.loss_func(out, t)
    assert got.item()==pytest.approx(want(out, t).item(), abs=1e-6)
    head = list(learn.model.head.parameters())
    ours = torch.autograd.grad(got, head, retain_graph=True)
    theirs = torch.autograd.grad(want(out, t), head)
    for a,b in zip(ours, theirs):
        assert torch.allclose(a, b, atol=1e-6)
    with learn.no_bar(), learn.no_logging(): preds,t,losses = learn.get_preds(with_loss=True)
    each = nn.CrossEntropyLoss(want.weight, reduction='none')(preds.log(), t)
    assert torch.allclose(losses, each, atol=1e-5) and learn.loss_func.reduction=='mean'

def test_smoothing_alone_is_torchs():
    out,y = batch(5)
    loss = make_loss(Classification('t', classes=list('abcde')), label_smoothing=0.2)
    assert loss(out, y).item()==pytest.approx(F.cross_entropy(out, y, label_smoothing=0.2).item(), abs=1e-6)

@pytest.mark.parametrize('weights', [None, [0.5, 10]])
def test_focal(weights):
    out,y = batch(2)
    task,w = Classification('ring', classes=[1, 2]),None if weights is None else torch.tensor(weights)
    plain = make_loss(task, 'focal', weights, focal_gamma=0)
    assert plain(out, y).item()==pytest.approx(F.cross_entropy(out, y, w).item(), abs=1e-6)
    p = out.softmax(1)[range(64), y]
    each = -(1-p)**2*p.log()*(1 if w is None else w[y])               # Lin et al. 2017, equation 5
    want = each.sum()/(64 if w is None else w[y].sum())
    assert make_loss(task, 'focal', weights)(out, y).item()==pytest.approx(want.item(), abs=1e-6)

def test_weights_go_to_the_device_of_the_outputs():
    for loss_func in (None, 'focal'):
        loss = make_loss(Classification('ring', classes=[1, 2]), loss_func, [1, 10])
        loss.to('meta')
        out,y = torch.zeros(3, 2, device='meta'),torch.zeros(3, dtype=torch.long, device='meta')
        assert loss(out, y).device.type=='meta'

@pytest.mark.parametrize('loss_func', ['cross_entropy', 'focal'])
@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixing_images_works_with_weights(dls, loss_func, mix):
    "The mixed loss is that of both galaxies, in the mixture's shares"
    learn,seen = learner(dls, make_loss(dls.task, loss_func, {1: 1, 2: 10})),[]
    class Look(Callback):
        def after_loss(self):
            if not self.training: return
            lf = self.mix_up.old_lf if mix is MixUp else self.cut_mix.old_lf
            m = getattr(self, 'mix_up' if mix is MixUp else 'cut_mix')
            lf.reduction = 'none'
            want = ((1-m.lam)*lf(self.pred, *m.yb1)+m.lam*lf(self.pred, *self.yb)).mean()
            lf.reduction = 'mean'
            seen.append((self.loss_grad.item(), want.item()))
    fit(learn, 1, cbs=[mix(), Look()])
    assert len(seen)==len(dls.train) and all(a==pytest.approx(b, abs=1e-5) for a,b in seen)
    assert learn.loss_func.reduction=='mean' and np.isfinite(learn.history[-1]['valid_loss'])

def test_a_callable_is_taken_as_it_is(dls):
    calls = []
    def mine(out, y):
        calls.append(len(y))
        return F.cross_entropy(out, y)
    assert make_loss(dls.task, mine) is mine
    fit(learner(dls, make_loss(dls.task, mine)), 1)
    assert sum(calls)==len(dls.train.dataset)+len(dls.valid.dataset)

@pytest.mark.parametrize('kw,says', [
    (dict(loss_func='hinge'), "loss_func='hinge'"),
    (dict(loss_func=F.cross_entropy, class_weights='balanced'), 'put them into your own'),
    (dict(loss_func=nn.NLLLoss(), label_smoothing=0.1), 'put them into your own'),
    (dict(loss_func='focal', label_smoothing=0.1), 'label_smoothing=0.1'),
    (dict(label_smoothing=1.), 'below 1'),
    (dict(class_weights={0: 1, 1: 1}), r'\[0\] are no classes'),
    (dict(class_weights={1: 1}), r'\[2\] are missing'),
    (dict(class_weights=[1]), '1 weights'),
    (dict(class_weights=[1, -1]), 'above 0'),
    (dict(class_weights='balanced'), 'counts=')])
def test_mistakes_are_named(kw, says):
    with pytest.raises(ValueError, match=says): make_loss(Classification('ring', classes=[1, 2]), **kw)

# what is saved

def saved(loss): return json.loads(json.dumps(loss_config(loss), allow_nan=False))

@pytest.mark.parametrize('loss', [
    nn.CrossEntropyLoss(torch.tensor([1., 2, 3]), label_smoothing=0.1),
    nn.CrossEntropyLoss(reduction='sum'),
    nn.MultiMarginLoss(p=2, margin=0.5),
    nn.NLLLoss(),
    nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1., 2, 3])),
    nn.SmoothL1Loss(beta=0.3),
    LabelSmoothingCrossEntropy(0.2),
    CrossEntropyLossFlat(weight=torch.tensor([1., 2, 3]), label_smoothing=0.1),
    CrossEntropyLossFlat(),
    FocalLossFlat(gamma=3., weight=torch.tensor([1., 2, 3])),
    LabelSmoothingCrossEntropyFlat(eps=0.3),
    BCEWithLogitsLossFlat(thresh=0.2),
    FocalCrossEntropy(1.5, torch.tensor([1., 2, 3])),
    FocalCrossEntropy()], ids=lambda o: type(o).__name__)
def test_known_losses_come_back(loss):
    again,(out,y),ran = loss_from_config(saved(loss)),batch(3),0
    assert type(again) is type(loss)
    for t in (y, out.flip(0).softmax(1)):
        try: want = loss(out, t)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError): continue
        assert torch.equal(want, again(out, t))
        ran += 1
    assert ran

def test_functions_of_torch_come_back():
    for f in (F.cross_entropy, F.multi_margin_loss): assert loss_from_config(saved(f)) is f

class Twice(nn.CrossEntropyLoss):
    def forward(self, out, y): return 2*super().forward(out, y)

def hooked():
    loss = nn.CrossEntropyLoss()
    loss.forward = lambda out, y: out.sum()
    return loss

NOT_SAVABLE = {
    'lambda': lambda out, y: out.sum(),
    'own class': Twice(),
    'changed': hooked(),
    'holds a function': nn.TripletMarginWithDistanceLoss(distance_function=max),
    'partial': partial(F.cross_entropy, label_smoothing=0.1),
    'no loss': torch.load,
    'holds a class': MSELossFlat(),
    'no json': nn.CrossEntropyLoss(torch.tensor([1., float('inf')])),
}
@pytest.mark.parametrize('loss', NOT_SAVABLE.values(), ids=NOT_SAVABLE)
def test_others_count_as_not_savable(loss): assert loss_config(loss) is None

HOSTILE = [
    {'name': 'os.system', 'args': {'command': 'touch pwned'}},
    {'name': 'subprocess.Popen', 'args': {'args': 'true'}},
    {'name': 'torch.load', 'args': {'f': 'evil.pth'}},
    {'name': 'torch.hub.load'},
    {'name': 'torch.nn.Linear', 'args': {'in_features': 2, 'out_features': 3}},
    {'name': 'torch.nn.functional.torch.load'},
    {'name': 'torch.nn.functional.importlib'},
    {'name': 'fastai.losses.load_learner'},
    {'name': 'fastai.losses.subprocess.run'},
    {'name': 'zoofast.tasks.losses.import_module', 'args': {'name': 'antigravity'}},
    {'name': 'timm.loss.load_class_weights', 'args': {'path': 'evil.pth'}},
    {'name': 'fastai.losses.BaseLoss', 'args': {'loss_cls': 'os.system'}},
    {'name': '__builtin__.eval'},
    {'name': None},
    {'name': ['torch.nn.CrossEntropyLoss']},
    {'name': 'torch.nn.CrossEntropyLoss', 'args': {'command': 'x'}},
    {'name': 'torch.nn.CrossEntropyLoss', 'args': [1]},
    {},
    [],
    'os.system',
    5,
    True,
]

@pytest.mark.parametrize('config', HOSTILE, ids=str)
def test_strangers_name_nothing_but_losses(config):
    with pytest.raises(ValueError): loss_from_config(config)

# bundles

def test_a_bundle_trains_on_with_its_loss(dls, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loss = make_loss(dls.task, 'focal', 'balanced', focal_gamma=3, counts=counts(dls))
        learner(dls, loss).save_bundle(tmp_path/'b')
    model = load_bundle(tmp_path/'b')
    again = model.to_learner(dls)
    assert isinstance(again.loss_func, FocalCrossEntropy) and again.loss_func.gamma==3
    total = counts(dls).sum()/(2*counts(dls))
    assert torch.allclose(again.loss_func.weight.cpu(), total.float())
    assert model.to_learner(dls, loss_func=F.cross_entropy).loss_func is F.cross_entropy
    fit(again, 1)

def test_an_own_loss_is_said_when_saving(dls, tmp_path):
    learn = learner(dls, Twice())
    own = "'Twice' is your own and cannot be saved: the bundle predicts without it"
    with pytest.warns(UserWarning, match=own) as said: learn.save_bundle(tmp_path/'b')
    assert len(said)==1 and said[0].filename==__file__
    assert json.loads((tmp_path/'b'/'config.json').read_text())['loss']=={'own': 'Twice'}
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        model = load_bundle(tmp_path/'b')
        files = dls.catalog.file_loc[:4].tolist()
        there,here = model.predict(files, progress=False),learn.to_model().predict(files, progress=False)
    assert np.allclose(there[dls.task.columns[1:]], here[dls.task.columns[1:]], atol=1e-6)
    with pytest.raises(BundleError, match="'Twice'.*loss_func="): model.to_learner(dls)
    assert isinstance(model.to_learner(dls, loss_func=Twice()).loss_func, Twice)

STRANGE = [*HOSTILE[:5], {}, [], 'os.system', 5, {'own': 'mine'}, {'own': None}, {'own': {'a': [1]}}]
@pytest.mark.slow(but=3)
@pytest.mark.parametrize('config', STRANGE, ids=str)
def test_a_strangers_loss_does_not_hinder_prediction(dls, tmp_path, config):
    learner(dls).save_bundle(tmp_path/'b')
    model = load_bundle(altered(tmp_path/'b', loss=config))
    assert model.predict(dls.catalog.file_loc[:1], progress=False).error.isna().all()
    with pytest.raises(BundleError, match='loss_func='): model.to_learner(dls)
    assert model.to_learner(dls, loss_func=F.cross_entropy).loss_func is F.cross_entropy

def test_a_bundle_of_before_has_no_loss_and_trains(dls, tmp_path):
    learner(dls).save_bundle(tmp_path/'b')
    assert isinstance(load_bundle(altered(tmp_path/'b', loss=None)).to_learner(dls).loss_func, CrossEntropyLossFlat)
