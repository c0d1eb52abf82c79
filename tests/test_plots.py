"""Every picture for every task: one galaxy, two, many; missing classes, missing predictions, odd names; on light and
dark pages"""
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from matplotlib.colors import to_rgb, to_rgba
from zoofast.predict.answers import Answers
from zoofast.tasks.classes import Classification, MultiLabel
from zoofast.tasks.regression import Regression
from zoofast.tasks.schema import Schema
from zoofast.tasks.votes import VoteCounts
from zoofast.plots.style import COLORS
from zoofast.plots.galaxies import plot_mosaic
from zoofast.plots.classes import plot_confusion, plot_precision_recall, plot_reliability, plot_roc
from zoofast.plots.numbers import plot_label_curve, plot_numbers, plot_votes, save_pictures
from zoofast.plots.training import plot_groups, plot_history, plot_rates

ODD = ['$10^{11}$ $', '_hidden', '<script>alert(1)</script>', 'Sérsic n=4 ' + 'x'*80, 'in\ntwo lines']
KINDS = ['classification', 'binary', 'many', 'multilabel', 'regression', 'numbers', 'votes']
OF_CLASSES = [plot_confusion, plot_roc, plot_precision_recall, plot_reliability]
FIT = {'classification': OF_CLASSES, 'multilabel': OF_CLASSES, 'regression': [plot_numbers], 'votes': [plot_votes]}

def schema():
    "Three questions, two of which are asked only of galaxies with an answer to the one before"
    questions = {
        'smooth-or-featured': ['smooth', 'featured-or-disk', 'artifact'],
        'bar': ['strong', 'weak', 'no'],
        '$arms_count': ['1', '2', 'cant-tell'],
    }
    return Schema(questions, {'bar': 'smooth-or-featured_featured-or-disk', '$arms_count': 'bar_no'})

def task_of(kind):
    if kind=='classification': return Classification('morphology', [*ODD, 'never seen'])
    if kind=='binary': return Classification('ring', [1, 2])
    if kind=='many': return Classification('kind', [f'class {i}' for i in range(37)])
    if kind=='multilabel':
        values = {'ring': [0, 1], '$bar_x': ['no', 'yes'], 'tidal': ['faint', 'strong']}
        return MultiLabel(['ring', '$bar_x', 'tidal'], values)
    if kind=='regression': return Regression('z_phot', mean=[.1], std=[.05])
    if kind=='numbers': return Regression(['z', 'log_mass'], mean=[.1, 10], std=[.05, 1])
    return VoteCounts(schema(), n_votes=40)

def answers(kind, n, files=None, seed=0, bad=True):
    "Predictions of `n` galaxies and their labels; of many, some are missing, and the last class has no galaxy"
    rng,task = np.random.default_rng(seed),task_of(kind)
    if task.kind=='classification':
        k = task.n_out if kind=='binary' else task.n_out-1
        y = rng.integers(0, k, n)
        z = rng.normal(0, 1, (n, task.n_out))+2*np.eye(task.n_out)[y]
        out = np.exp(z)/np.exp(z).sum(1, keepdims=True)
        truth = pd.DataFrame({task.label: pd.Series([task.classes[i] for i in y], dtype=object)})
    elif task.kind=='multilabel':
        y = rng.integers(0, 2, (n, 3))
        out = np.clip(.5+.4*(y-.5)+rng.normal(0, .2, (n, 3)), .01, .99)
        said = {c: [task.values[c][v] for v in y[:,i]] for i,c in enumerate(task.labels)}
        truth = pd.DataFrame({c: pd.Series(o, dtype=object) for c,o in said.items()})
    elif task.kind=='regression':
        y = task.mean+rng.normal(0, 1, (n, task.n_out))*task.std
        out,truth = y+rng.normal(0, .3, y.shape)*task.std,pd.DataFrame(dict(zip(task.labels, y.T)))
    else:
        out = rng.gamma(1., 5, (n, task.n_out))+.4
        truth = pd.DataFrame(rng.integers(0, 20, (n, task.n_out)).astype(float), columns=task.label_cols)
    if bad and n>10:
        out[:5] = np.nan
        truth.loc[3:8] = np.nan
    ids = [f's{i}' for i in range(n)]
    files = [str(files[i%len(files)]) for i in range(n)] if files is not None else ['gone.jpg']*n
    preds = pd.concat([pd.DataFrame({'id_str': ids, 'file_loc': files}), task.to_frame(out)], axis=1)
    if kind=='regression': preds = preds.assign(z_phot_lower=preds.z_phot-.03, z_phot_upper=preds.z_phot+.03)
    return Answers(preds, truth.assign(id_str=ids), task)

def drawn(ax):
    "Draw to pixels; gives the figure's texts"
    fig = np.ravel(ax)[0].figure
    fig.canvas.draw()
    return [t for t in fig.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text().strip()]

@pytest.fixture(autouse=True)
def close():
    yield
    plt.close('all')

@pytest.fixture(scope='module')
def files(survey): return survey[1].file_loc.tolist()

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('n', [1, 2, 300])
@pytest.mark.parametrize('kind', KINDS)
def test_every_picture_for_every_task(kind, n, files):
    a = answers(kind, n, files)
    fits = FIT[a.task.kind]
    for f in (plot_confusion, plot_roc, plot_precision_recall, plot_reliability, plot_numbers, plot_votes):
        if f in fits: assert drawn(f(a))
        else:
            with pytest.raises(ValueError, match='plot_'): f(a)
    for show in ('wrong', 'right', 'random'): assert drawn(plot_mosaic(a, show=show, n=3))
    if kind=='numbers':
        with pytest.raises(ValueError, match='how sure'): plot_mosaic(a, show='uncertain')
    else: assert drawn(plot_mosaic(a, show='uncertain', n=3))
    if a.task.kind!='regression': assert drawn(plot_mosaic(a, show='random', by_class=True, n=3, ncols=2))
    g = a.galaxies()
    assert len(g)==n and (n<10 or g.predicted.isna().sum()==5 and g.verdict.isna().sum()==9)

@pytest.mark.parametrize('kind', ['classification', 'multilabel', 'regression', 'votes'])
def test_nothing_was_predicted(kind):
    a = answers(kind, 12)
    a.preds[a.task.columns] = np.nan
    for f in FIT[kind]: assert drawn(f(a))
    assert 'no galaxy' in drawn(plot_mosaic(a))[0].get_text()

def test_names_are_shown_as_they_are(files):
    texts = [t.get_text() for t in drawn(plot_confusion(answers('classification', 300, files)))]
    assert r'\$10^{11}\$ \$' in texts and '\u200a_hidden' in texts
    assert 'never seen (none)' in texts and 'in two lines' in texts
    assert any(t.startswith('Sérsic') and t.endswith('…') for t in texts)
    assert not any(t in ('0', '1') for t in texts if t.isdigit() and 'x' in t)
    labels = plot_roc(answers('classification', 300, files)).get_legend_handles_labels()[1]
    assert len(labels)==5 and any('_hidden' in o for o in labels)

def test_thousands_are_quick_to_look_at(files):
    "10,000 galaxies: dense points are drawn as one image, not as so many paths"
    import io
    for kind,f in (('regression', plot_numbers), ('votes', plot_votes), ('many', plot_roc)):
        ax = f(answers(kind, 10_000, files))
        out = io.BytesIO()
        np.ravel(ax)[0].figure.savefig(out, format='svg', dpi=100)
        assert len(out.getvalue())<3e6, f'{f.__name__}: {len(out.getvalue())/1e6:.1f} MB'

def contrast(a, b):
    def linear(v): return v/12.92 if v<=.04045 else ((v+.055)/1.055)**2.4
    def light(c): return sum(w*linear(v) for w,v in zip((.2126, .7152, .0722), to_rgb(c)))
    hi,lo = sorted((light(a), light(b)), reverse=True)
    return (hi+.05)/(lo+.05)

@pytest.mark.parametrize('c', COLORS)
def test_colours_on_light_and_dark(c): assert contrast(c, 'white')>=3 and contrast(c, '#111111')>=3

PICTURES = [
    (plot_roc, 'classification'),
    (plot_reliability, 'multilabel'),
    (plot_numbers, 'numbers'),
    (plot_votes, 'votes'),
    (lambda a: plot_mosaic(a, n=6), 'binary'),
    (lambda a: plot_history(HISTORY), 'binary'),
    (lambda a: plot_rates(RATES), 'binary'),
    (lambda a: plot_groups(GROUPS), 'binary'),
    (plot_confusion, 'binary'),
]
SEE_THROUGH = {**plt.style.library['dark_background'], 'figure.facecolor': (0, 0, 0, 0)}
@pytest.mark.slow(but=1)
@pytest.mark.parametrize('style', ['default', 'dark_background', {'figure.facecolor': 'none'}, SEE_THROUGH])
def test_texts_can_be_read_on_any_page(style, files):
    "Whatever the style, and with a figure that would be see-through"
    with plt.style.context(style):
        for f,kind in PICTURES:
            ax = f(answers(kind, 70, files))
            fig = np.ravel(ax)[0].figure
            face = fig.get_facecolor()
            assert to_rgba(face)[3]==1
            for t in drawn(ax):
                # inside the cells of a confusion matrix: black on light, white on dark
                if t.axes is not None and t.axes.images and t in t.axes.texts: continue
                assert contrast(t.get_color(), face)>=3, (f, t.get_text(), t.get_color(), face)
            plt.close('all')

HISTORY = [
    dict(fit=0, epoch=0, trained='head', lr=5e-3, train_loss=1.5, valid_loss=1.2, accuracy=.5, precision=.4, recall=.5,
         f1=.4, balanced_accuracy=.48, roc_auc=.8, average_precision=.6),
    dict(fit=1, epoch=1, trained='all', lr=1e-4, train_loss=1.1, valid_loss=.9, accuracy=.7, precision=.6, recall=.7,
         f1=.6, balanced_accuracy=.68, roc_auc=.9, average_precision=.7)]
RATES = pd.DataFrame(dict(
    epoch=[0, .5, 1, 1.5],
    fit=[0, 0, 1, 1],
    stem=[np.nan, np.nan, 1e-5, 2e-5],
    head=[5e-3, 4e-3, 1e-4, 1e-4]))
GROUPS = pd.DataFrame(dict(
    group=[0, 1],
    block=['block 0', 'head'],
    parameters=[3_300_000, 2562],
    lr=[0., 1e-4],
    weight_decay=[.05, 0],
    trainable=[False, True]))

def test_training(tmp_path):
    axs = plot_history(HISTORY)
    shown = [t.get_text() for t in axs[1].get_legend().get_texts()]
    assert shown==['accuracy', 'f1', 'balanced accuracy', 'ROC AUC']       # of seven, those that say most
    assert [t.get_text() for t in axs[0].get_legend().get_texts()]==['training loss', 'validation loss', 'head alone']
    pd.DataFrame(HISTORY).to_csv(tmp_path/'history.csv', index=False)
    assert len(plot_history(tmp_path))==2 and len(plot_history(HISTORY[:1]))==2
    assert drawn(plot_history([{**HISTORY[0], 'epoch': i} for i in range(300)]))
    votes = dict(train_loss=1., valid_loss=np.nan, log_likelihood=-3., fraction_mae=.1, fraction_rmse=.2)
    assert len(plot_history([votes]))==3
    with pytest.raises(ValueError, match='no rates.csv'): plot_rates(tmp_path)
    RATES.to_csv(tmp_path/'rates.csv', index=False)
    ax = plot_rates(tmp_path)
    # a line that parts the two fits; the frozen stem has none in the first
    assert len(ax.lines)-1==3
    assert sorted(ax.get_legend_handles_labels()[1])==['head', 'stem']
    assert drawn(plot_groups(GROUPS)) and drawn(plot_groups(pd.concat([GROUPS]*60, ignore_index=True)))

def test_label_curve(tmp_path):
    import json
    for i,(n,v) in enumerate(((50, .7), (100, .8), (400, .9))):
        (tmp_path/f'r{i}'/'bundle').mkdir(parents=True)
        config = dict(encoder=dict(name='a'), metrics=dict(accuracy=v), data=dict(galaxies=dict(train=n)))
        (tmp_path/f'r{i}'/'bundle'/'config.json').write_text(json.dumps(config))
    ax = plot_label_curve([tmp_path/f'r{i}' for i in range(3)])
    assert ax.lines[0].get_xdata().tolist()==[50, 100, 400] and ax.get_xscale()=='log'
    with pytest.raises(ValueError, match="no metric 'rmse'"): plot_label_curve(tmp_path/'r0', 'rmse')
    assert drawn(plot_label_curve(pd.DataFrame(dict(n_labels=[5.], accuracy=[.5]))))

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['classification', 'multilabel', 'numbers', 'votes'])
def test_pictures_of_a_run(kind, files, tmp_path):
    a = answers(kind, 40, files)
    save_pictures(tmp_path, a.truth, a.preds, a.task, HISTORY)
    assert {'mosaic.png', 'curves.png'} < {o.name for o in tmp_path.iterdir()} and len(list(tmp_path.iterdir()))==3

@pytest.fixture(scope='module')
def learn(survey):
    from zoofast.all import GalaxyDataLoaders, galaxy_learner
    dls = GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=64, progress=False)
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0', pretrained=False)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    return learn

@pytest.mark.slow
def test_what_a_learner_shows(learn):
    assert drawn(plot_confusion(learn)) and drawn(plot_history(learn))
    assert drawn(plot_groups(learn)) and drawn(plot_mosaic(learn, n=3))
    rates,table = pd.DataFrame(learn.rates),learn.group_table()
    assert list(rates)==['epoch', 'fit', *table.block]
    assert rates[rates.fit==0].stem.isna().all() and rates[rates.fit==1].stem.notna().all()
    top = rates[rates.fit==1]
    assert np.allclose(top.stem/top['head'], .75**(len(table)-2)) and drawn(plot_rates(learn))

@pytest.mark.slow(but=2)
@pytest.mark.parametrize('name,kw', [
    ('resnet18', {}),
    ('convnext_atto', {}),
    ('tf_efficientnet_lite0', {}),
    ('vit_tiny_patch16_224', {}),
    ('deit_tiny_distilled_patch16_224', {}),
    ('swin_tiny_patch4_window7_224', {'window_size': 2}),
    ('maxvit_rmlp_pico_rw_256', {}),
    ('mobilevit_xxs', {}),
    ('vit_base_patch16_siglip_224', {'depth': 2}),
    ('mixer_s32_224', {}),
    ('coat_lite_tiny', {}),
    ('xcit_nano_12_p16_224', {})])
def test_where_any_encoder_looks(name, kw, files):
    import torch
    from zoofast.all import GalaxyModel, ImageReader, create_encoder
    from zoofast.encoders.encoder import GalaxyNet
    from zoofast.plots.looks import look_maps, plot_looks
    torch.manual_seed(0)
    task,size = task_of('classification'),128 if 'swin' not in name else 64
    try: enc = create_encoder(name, size, 3, pretrained=False, **kw)
    except ValueError as e: pytest.skip(str(e))
    m = GalaxyModel(GalaxyNet(enc, task.n_out), task, ImageReader(size), device='cpu')
    for p in m.net.parameters(): p.requires_grad_(False)                  # as after training the head alone
    x,maps,said = look_maps(m, files[:2])
    assert maps.shape==(2, size, size) and np.isfinite(maps).all()
    assert maps.max()==1 and maps.std()>.01 and set(said)<=set(task.classes)
    assert not [o for o in m.net.modules() if o._forward_hooks or o._backward_hooks]
    assert drawn(plot_looks(m, [*files[:2], 'gone.jpg'], of=ODD[0]))

def test_it_looks_where_the_light_is(files):
    "An encoder whose one channel is brightness looks at the bright corner"
    import torch
    from torch import nn
    from zoofast.all import Encoder, GalaxyModel, ImageReader
    from zoofast.encoders.encoder import GalaxyNet
    from zoofast.plots.looks import look_maps
    from PIL import Image
    class Bright(nn.Module):
        feature_info = [dict(module='pool')]
        def __init__(self):
            super().__init__()
            self.pool = nn.AvgPool2d(8)
        def forward(self, x): return self.pool(x).mean((2, 3))
    net = GalaxyNet(Encoder(Bright(), 64, 3, [0]*3, [1]*3), 2)
    net.head[1].weight.data.copy_(torch.tensor([[-1.]*3, [1.]*3])), net.head[1].bias.data.zero_()
    px = np.zeros((64, 64, 3), np.uint8)
    px[:16, -16:] = 255
    Image.fromarray(px).save(p := files[0]+'.corner.png')
    model = GalaxyModel(net, Classification('bright', ['no', 'yes']), ImageReader(64), device='cpu')
    _,maps,_ = look_maps(model, p, of='yes')
    assert maps[0, :12, -12:].min()>.5 and maps[0, 24:].max()<.1
