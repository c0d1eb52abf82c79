"""Every name of fastai's Learner, DataLoaders, Recorder and callbacks, on every task

Each works, works in another way, or says why not.

`python tests/test_fastai.py` writes the table of them, docs/fastai.md."""
import contextlib, inspect, io, os, warnings
from pathlib import Path
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from PIL import Image
import fastai.callback.all as callbacks
from fastai.callback.core import Callback
from fastai.interpret import ClassificationInterpretation, Interpretation
from test_report import tasks
from zoofast.all import GalaxyDataLoaders, galaxy_learner, predict_catalog

DOC = Path(__file__).parent.parent/'docs'/'fastai.md'
KINDS = ['classification', 'multilabel', 'regression', 'votes']
WORKS,OTHER,REFUSED = 'works','works differently','refused'

def data(df, kind, size=32, batch_size=16, **kw):
    df,schemas = tasks(df)
    label = None if schemas[kind] else 'kind'
    return GalaxyDataLoaders.from_catalog(df, label, schemas[kind], size=size, batch_size=batch_size, progress=False,
                                          **kw)

def learner(dls, **kw):
    "A tiny network of random weights"
    return galaxy_learner(dls, 'test_convnext', pretrained=False, learning_rate=1e-3, **kw)

@contextlib.contextmanager
def silent(learn):
    with learn.no_bar(), learn.no_logging(), contextlib.redirect_stdout(io.StringIO()): yield

def valid_rows(learn):
    rows = learn.dls.catalog
    return rows[rows.split=='valid'].reset_index(drop=True)

def first_path(learn): return valid_rows(learn).file_loc[0]

def shown(f, *args, **kw):
    "A picture is drawn, and nothing is returned that a notebook would print"
    plt.close('all')
    assert f(*args, **kw) is None
    axs = [ax for ax in plt.gcf().axes if ax.images]
    assert axs
    plt.gcf().canvas.draw()
    plt.close('all')
    return axs

# ---- DataLoaders: what each name does, checked

def one_batch(learn, folder):
    x,y = learn.dls.one_batch()
    assert x.shape[1:]==(3, 32, 32) and len(x)==len(y) and 0<=float(x.min())<=float(x.max())<=1

def other_images(learn, folder):
    rows = valid_rows(learn)
    x,y = learn.dls.test_dl(rows, with_labels=True).one_batch()
    vx,vy = learn.dls.valid.one_batch()
    assert torch.equal(x, vx[:len(x)]) and torch.equal(y.nan_to_num(-7), vy[:len(y)].nan_to_num(-7))
    assert torch.equal(learn.dls.test_dl(rows.file_loc.tolist()).one_batch()[0], x)

def vocab(learn, folder):
    if learn.task.kind=='regression':
        assert not hasattr(learn.dls, 'vocab')
        with pytest.raises(AttributeError, match='plot_numbers'): learn.dls.vocab
    else: assert list(learn.dls.vocab)==learn.task.vocab and learn.dls.vocab.o2i[learn.task.vocab[1]]==1

def c(learn, folder): assert learn.dls.c==learn.task.n_out==learn.dls.train.c

def decode(learn, folder):
    x,y = learn.dls.decode(learn.dls.valid.one_batch())
    if learn.task.kind=='regression':
        cols = valid_rows(learn)[learn.task.label_cols].to_numpy(float)[:len(y)]
        assert np.allclose(y.numpy(), cols, rtol=1e-4, atol=1e-4, equal_nan=True)
    said = learn.dls.decode_batch(learn.dls.valid.one_batch(), max_n=3)
    assert len(said)==3 and said[0][0].shape==(3, 32, 32)

def show_batch(learn, folder):
    assert len(shown(learn.dls.show_batch, nrows=1, ncols=3))==3
    assert len(shown(learn.dls.show_batch, max_n=4, figsize=(6, 2)))==4
    assert len(shown(learn.dls.show_batch, max_n=4, unique=True))==4
    shown(learn.dls.valid.show_batch)
    shown(learn.dls.train.show_batch)

def new(learn, folder):
    plain = learn.dls.train.new(shuffle=False)
    assert torch.equal(plain.one_batch()[0], plain.one_batch()[0])

# ---- Learner

def fits(learn, folder):
    learn.fit(1)
    learn.fit_one_cycle(1)
    learn.fit_flat_cos(1)
    learn.fit_sgdr(n_cycles=1, cycle_len=1)
    learn.fine_tune(1)
    assert len(learn.history)==6 and learn.in_hand

def validate(learn, folder):
    learn.fit(2)
    told = dict(zip(learn.recorder.metric_names[2:], learn.validate()))
    for k,v in learn.in_hand.items():
        if k in told: assert told[k]==pytest.approx(v, rel=1e-4, abs=1e-5, nan_ok=True)
    assert np.isfinite(told['valid_loss'])

def get_preds(learn, folder):
    rows = valid_rows(learn)
    p,y = learn.get_preds()
    table = predict_catalog(learn, rows, progress=False)
    numbers = table[[k for k,v in learn.task.dtypes.items() if v=='float64']].to_numpy(float)
    if learn.task.kind=='votes':
        cols = [f'{o}_concentration' for o in learn.task.schema.columns]
        numbers = table[cols].to_numpy(float)
    assert np.allclose(p.numpy(), numbers, rtol=1e-3, atol=1e-4)
    truth = learn.task.encode(rows)
    if learn.task.kind=='regression': truth = torch.tensor(rows[learn.task.label_cols].to_numpy(float)).float()
    assert torch.allclose(y.nan_to_num(-7).float(), truth.nan_to_num(-7).float(), rtol=1e-4, atol=1e-4)
    x,p2,y2,answer,losses = learn.get_preds(with_input=True, with_decoded=True, with_loss=True)
    assert torch.allclose(p2, p) and len(x)==len(answer)==len(losses) and losses.isfinite().all()
    p3,_ = learn.get_preds(ds_idx=0)
    assert len(p3)==len(learn.dls.train_ds) and torch.allclose(p3, learn.get_preds(ds_idx=0)[0])

def in_words(learn, number, p):
    "What `predict` says of one galaxy whose number is `number`, and whose probabilities are `p`"
    kind = learn.task.kind
    if kind=='classification': return learn.dls.vocab[int(number)]
    if kind=='multilabel': return [c for c,v in zip(learn.dls.vocab, number) if v]
    if kind=='votes': return dict(zip(learn.dls.vocab, number.tolist()))
    return float(p) if len(p)==1 else dict(zip(learn.task.label_cols, p.tolist()))

def predict(learn, folder):
    path = first_path(learn)
    said,number,p = learn.predict(path)
    pixels = np.asarray(Image.open(path))
    for image in (Image.open(path), pixels, torch.from_numpy(pixels.copy()), str(path)):
        assert torch.equal(learn.predict(image)[2], p)
    assert said==in_words(learn, number, p)
    assert torch.allclose(learn.get_preds(dl=learn.dls.test_dl([path]))[0][0], p)

def tta(learn, folder):
    p,y = learn.tta(n=2)
    plain,_ = learn.get_preds()
    assert p.shape==plain.shape and not torch.equal(p, plain) and torch.equal(learn.tta(n=2)[0], p)
    assert torch.equal(learn.tta(n=1, beta=None)[0][1], plain)

def show_results(learn, folder):
    shown(learn.show_results)
    shown(learn.show_results, ds_idx=0, shuffle=False, max_n=4, figsize=(6, 4))

def interpretation(learn, folder):
    i = Interpretation.from_learner(learn)
    losses,idx = i.top_losses(3)
    losses,idx,items = i.top_losses(3, items=True)
    assert list(items.id_str)==list(valid_rows(learn).id_str[idx.tolist()]) and (losses.diff()<=0).all()
    shown(i.plot_top_losses, 4)
    shown(i.plot_top_losses, 4, figsize=(8, 3), nrows=1)
    shown(i.show_results, [0, 1])

def class_interpretation(learn, folder):
    if learn.task.kind!='classification':
        with pytest.raises(AttributeError, match='plot_'): ClassificationInterpretation.from_learner(learn)
        return
    i = ClassificationInterpretation.from_learner(learn)
    p,y = learn.get_preds()
    assert i.confusion_matrix().sum()==len(y) and np.trace(i.confusion_matrix())==int((p.argmax(1)==y).sum())
    shown(i.plot_confusion_matrix)
    assert sum(n for _,_,n in i.most_confused())==int((p.argmax(1)!=y).sum())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                    # sklearn's, of classes that are never predicted
        i.print_classification_report()

def save_load(learn, folder):
    at = os.getcwd()
    os.chdir(folder)
    try:
        path = learn.save('one')
        assert Path(path).resolve()==(folder/'models'/'one.pth').resolve()
        before = learn.get_preds()[0]
        learn.fit(1, lr=.01)
        assert learn.in_hand
        learn.load('one')
        assert learn.in_hand is None and torch.equal(learn.get_preds()[0], before)
    finally: os.chdir(at)

def export(learn, folder):
    with pytest.raises(ValueError, match='save_bundle'): learn.export()

def lr_find(learn, folder):
    before = learn.get_preds()[0]
    assert 0<learn.lr_find(show_plot=False, num_it=10).valley
    assert torch.equal(learn.get_preds()[0], before)

def freezing(learn, folder):
    learn.freeze()
    assert not any(p.requires_grad for p in learn.model.encoder.parameters())
    learn.freeze_to(-2)
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())

def summary(learn, folder): assert 'Total params' in str(learn.summary())

def plot_loss(learn, folder):
    learn.fit(1)
    learn.recorder.plot_loss(skip_start=0)
    plt.close('all')

def plot_sched(learn, folder):
    learn.fit_one_cycle(1)
    learn.recorder.plot_sched()
    plt.close('all')

def train_metrics(learn, folder):
    learn.recorder.train_metrics = True
    learn.monitor = name = learn.metrics[0].name
    learn.fit(1)
    assert {name, f'train_{name}', 'valid_loss', 'train_loss'}<=set(learn.history[-1]) and learn.in_hand

def no_bar(learn, folder):
    with learn.no_bar(): learn.fit(1)

NAMES = [
    ('DataLoaders', 'one_batch', WORKS, 'images from 0 to 1 (the encoder scales them), and targets', one_batch),
    ('DataLoaders', 'test_dl', WORKS,
     'paths, PIL images, arrays, tensors, or a table; `with_labels=True` for a table', other_images),
    ('DataLoaders', 'vocab', OTHER, 'classes, labels, or answers of a tree; numbers have none', vocab),
    ('DataLoaders', 'c', WORKS, 'outputs of the head', c),
    ('DataLoaders', 'decode, decode_batch', WORKS, "targets in the catalogue's units, or in words", decode),
    ('DataLoaders', 'show_batch', WORKS,
     '`nrows`, `ncols`, `max_n`, `figsize`, `unique`; also of `dls.valid`', show_batch),
    ('DataLoaders', 'new', OTHER, 'what is not shuffled any more is not augmented any more', new),
    ('Learner', 'fit, fit_one_cycle, fit_flat_cos, fit_sgdr, fine_tune', OTHER,
     'a rate falls from block to block; the best model of the call is in hand at the end', fits),
    ('Learner', 'validate', WORKS, 'what is in hand (`learn.in_hand`)', validate),
    ('Learner', 'get_preds', OTHER,
     'probabilities, numbers in their units, concentrations of votes; targets likewise', get_preds),
    ('Learner', 'predict', WORKS, 'a path, a PIL image, an array or a tensor: answer, number, probabilities', predict),
    ('Learner', 'tta', OTHER, 'random views of whole batches, seeded; `batch_tfms` is a function of bytes', tta),
    ('Learner', 'show_results', WORKS, '`ds_idx`, `shuffle`, `max_n`, `figsize`', show_results),
    ('Learner', 'Interpretation', WORKS, '`top_losses(items=True)` gives rows of the catalogue', interpretation),
    ('Learner', 'ClassificationInterpretation', WORKS,
     'for one label of several classes; other tasks say which plot will do', class_interpretation),
    ('Learner', 'save, load', WORKS, 'in `models` of the working folder, or of `save_dir`', save_load),
    ('Learner', 'export, load_learner', REFUSED,
     'a pickle runs code where it is read: `save_bundle`, `load_bundle`', export),
    ('Learner', 'lr_find', WORKS, 'changes nothing that follows', lr_find),
    ('Learner', 'freeze, freeze_to, unfreeze', OTHER,
     'groups are blocks; what is frozen is in evaluation mode, its means untouched', freezing),
    ('Learner', 'summary', WORKS, '', summary),
    ('Learner', 'no_bar, no_logging', WORKS, '', no_bar),
    ('Recorder', 'plot_loss', WORKS, '', plot_loss),
    ('Recorder', 'plot_sched', WORKS, "the head's rate", plot_sched),
    ('Recorder', 'train_metrics', OTHER,
     'adds `train_accuracy`; in the history `accuracy` keeps its name', train_metrics),
]

@pytest.fixture(scope='module')
def loaders(survey): return {k: data(survey[1], k) for k in KINDS}

@pytest.mark.slow(but=5)
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('check', [o[-1] for o in NAMES], ids=[o[1] for o in NAMES])
def test_name(check, kind, loaders, tmp_path):
    learn = learner(loaders[kind])
    with silent(learn), warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.simplefilter('ignore', DeprecationWarning)
        warnings.filterwarnings('ignore', '.*(tight_layout|lr_scheduler|No artists).*')
        check(learn, tmp_path)

# ---- callbacks: all that fastai exports

HOW = {
    'GradientAccumulation': (REFUSED, '`accumulate=` of galaxy_learner'),
    'MixedPrecision': (REFUSED, '`precision=` of galaxy_learner'),
    'ModelToHalf': (REFUSED, '`precision=` of galaxy_learner'),
    'NonNativeMixedPrecision': (REFUSED, '`precision=` of galaxy_learner'),
    'SaveModelCallback': (WORKS, 'decides for its fit which model is in hand'),
    'MixUp': (WORKS, 'or `mixup=`'), 'CutMix': (WORKS, 'or `cutmix=`'),
    'ReduceLROnPlateau': (WORKS, 'what is written into `opt.hypers` is set'),
    'ShortEpochCallback': (WORKS, 'an epoch that was not validated has no validation loss'),
    'CollectDataCallback': (WORKS, 'gets images, also while the encoder is frozen'),
    'ActivationStats': (WORKS, 'sees the encoder, also while it is frozen'),
    'Recorder': (OTHER, "metrics in the catalogue's units; those of several values by class"),
}
ARGS = {
    'ActivationStats': dict(with_hist=True),
    'CutMix': dict(alpha=1.),
    'EarlyStoppingCallback': dict(patience=1),
    'GradientAccumulation': dict(n_acc=32),
    'MixUp': dict(alpha=.4),
    'ParamScheduler': dict(scheds={'lr': callbacks.SchedCos(1e-3, 1e-4)}),
    'ReduceLROnPlateau': dict(patience=1),
    'SaveModelCallback': dict(monitor='valid_loss'),
    'ShortEpochCallback': dict(pct=.5, short_valid=True),
    'SkipToEpoch': dict(epoch=1),
}
# of text, of other callbacks, of the learner itself, or without a fit of their own
NOT_ALONE = {'Callback', 'TrainEvalCallback', 'CancelFitException', 'HookCallback', 'MixHandler', 'RNNRegularizer',
             'RNNCallback', 'ModelResetter', 'LRFinder', 'GatherPredsCallback', 'CSVLogger'}

def is_callback(o): return inspect.isclass(o) and issubclass(o, Callback)

EVERY = sorted(k for k,v in vars(callbacks).items() if is_callback(v) and k not in NOT_ALONE)

def weights(learn): return torch.cat([p.detach().flatten().clone() for p in learn.model.parameters()])

@pytest.mark.slow(but=5)
@pytest.mark.parametrize('frozen', [False, True], ids=['all', 'head alone'])
@pytest.mark.parametrize('name', EVERY)
def test_callback(name, frozen, loaders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = learner(loaders['classification'])
    cb = getattr(callbacks, name)(**ARGS.get(name, {}))
    if frozen: learn.freeze()
    def fit():
        bar = contextlib.nullcontext() if name=='ShowGraphCallback' else learn.no_bar()     # it draws in the bar
        with bar, learn.no_logging(): learn.fit(2, cbs=cb)
    if HOW.get(name, (WORKS,))[0]==REFUSED:
        with pytest.raises(ValueError, match=HOW[name][1].strip('`').split('=')[0]): fit()
        return
    before = weights(learn)
    fit()
    assert learn.history and not torch.equal(before, weights(learn))
    assert (learn.in_hand is None)==(name=='SkipToEpoch')

TENSORBOARD = '`log_preds=False`; without it, it is refused, since its pictures are of fastai\'s own kinds of labels'

@pytest.mark.parametrize('kind', KINDS)
def test_tensorboard(kind, loaders, tmp_path):
    pytest.importorskip('tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    learn = learner(loaders[kind])
    with silent(learn), pytest.raises(ValueError, match='log_preds=False'):
        learn.fit(1, cbs=TensorBoardCallback(log_dir=tmp_path))
    with silent(learn): learn.fit(1, cbs=TensorBoardCallback(log_dir=tmp_path, log_preds=False))
    assert learn.in_hand and any(o.stat().st_size>1000 for o in tmp_path.iterdir())

RUN_ON = 'the names of learner, loaders and recorder on classes, labels, numbers and votes, the callbacks'
ABOUT = f"""# What of fastai works, and how

Each row is run by `tests/test_fastai.py`: {RUN_ON}
on classes with everything trained and with the head alone. `python tests/test_fastai.py` writes this page.

| | name | outcome | how |
|---|---|---|---|
"""

def quoted(names): return ', '.join(f'`{o}`' for o in names.split(', '))

def table():
    "The page docs/fastai.md"
    rows = [(where, quoted(names), outcome, how) for where,names,outcome,how,_ in NAMES]
    rows += [('Callbacks', quoted(n), *HOW.get(n, (WORKS, ''))) for n in EVERY]
    rows.append(('Callbacks', '`TensorBoardCallback`', OTHER, TENSORBOARD))
    return ABOUT+''.join('| '+' | '.join(r)+' |\n' for r in rows)

def test_the_page_says_what_was_run(): assert DOC.read_text(encoding='utf-8')==table()

if __name__=='__main__': DOC.write_text(table(), encoding='utf-8')
