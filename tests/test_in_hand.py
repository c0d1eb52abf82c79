"What numbers mean, which model is in hand, other data, the user's own freezing, other libraries' words"
import numpy as np, preloaded, pytest, torch
from fastai.callback.core import CancelFitException
from fastai.callback.all import Callback, ReduceLROnPlateau, SaveModelCallback, ShortEpochCallback
from fastai.metrics import F1Score, accuracy, mae, rmse, skm_to_fastai
from fastai.optimizer import Adam
from sklearn.metrics import f1_score, mean_squared_error
from test_fastai import KINDS, data, learner, silent
from zoofast.all import ImageReader, galaxy_learner, load_bundle, predict_catalog

def sums(learn): return torch.cat([p.detach().flatten().clone() for p in learn.net.parameters()])

def f1_each(out, y): return f1_score(y, out.argmax(1), average=None, labels=range(out.shape[1]), zero_division=0)

# ---- what numbers mean

def test_errors_are_in_the_units_of_the_catalogue_whoever_wrote_the_metric(survey):
    def own(pred, y): return ((pred-y)**2).mean().sqrt()
    from zoofast.all import GalaxyDataLoaders
    dls = GalaxyDataLoaders.from_catalog(survey[1], 'mag_r', size=32, batch_size=64, progress=False)
    learn = learner(dls, metrics=[rmse, mae, own, skm_to_fastai(mean_squared_error, is_class=False)])
    with silent(learn): learn.fit(1)
    with silent(learn): p,y = learn.get_preds()
    row,error = learn.history[-1],(p-y).numpy()
    assert row['_rmse']==pytest.approx(np.sqrt((error**2).mean()), rel=1e-2)
    assert row['own']==pytest.approx(row['_rmse'], rel=1e-3)
    assert row['mae']==pytest.approx(np.abs(error).mean(), rel=1e-2)
    assert row['mean_squared_error']==pytest.approx(row['_rmse']**2, rel=1e-2)

def test_a_metric_with_a_value_for_each_class_is_kept_class_by_class(survey):
    def each(out, y): return torch.tensor(f1_each(out, y))
    metrics = [accuracy, each, F1Score(average='macro')]
    learn = learner(data(survey[1], 'classification'), metrics=metrics, monitor='accuracy')
    with silent(learn): learn.fit(1)
    row = learn.history[-1]
    assert {f'each_{c}' for c in map(str, learn.dls.vocab)}<=set(row) and learn.in_hand is row and 0<=row['f1_score']<=1

# ---- which model is in hand

@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_what_is_in_hand_is_what_validate_measures(kind, survey):
    learn = learner(data(survey[1], kind), precision='fp32')
    assert learn.in_hand is None and 'nothing trained' in repr(learn)
    def agrees():
        with silent(learn): told = learn.validate()
        assert told[0]==pytest.approx(learn.in_hand['valid_loss'], rel=1e-4)
        assert f"in hand: epoch {learn.in_hand['epoch']+1}" in repr(learn)
    with silent(learn): learn.fine_tune(2)
    agrees()
    first = learn.in_hand
    with silent(learn): learn.fine_tune(1)
    agrees()
    assert learn.in_hand['call']==2 and first['call']==1
    with silent(learn): learn.fit(1, lr=.1)               # worse, and it stays: the best model is that of one call
    agrees()
    assert learn.in_hand is learn.history[-1]

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('change', ['load', 'dls', 'loss', 'weights'])
def test_what_was_changed_has_no_scores_and_a_later_fit_is_not_undone(change, survey, tmp_path):
    learn = learner(data(survey[1], 'classification'), save_dir=tmp_path/'run', precision='fp32')
    with silent(learn):
        learn.fit(1, lr=1e-5)
        learn.save('stage1')
        learn.fit(2)
        best = sums(learn)
        if change=='load': learn.load('stage1')
        if change=='dls': learn.dls = data(survey[1], 'classification', size=48)
        if change=='loss': learn.loss_func = torch.nn.CrossEntropyLoss(label_smoothing=.1)
        if change=='weights': learn.model.head[1].weight.data.mul_(2)
    assert learn.in_hand is None and 'not known' in repr(learn)
    learn.save_bundle(tmp_path/'changed')
    assert load_bundle(tmp_path/'changed').config['metrics']=={}
    with silent(learn): learn.fit(1, lr=.05)
    assert learn.in_hand is learn.history[-1] and not torch.equal(sums(learn), best)
    with silent(learn): assert learn.validate()[0]==pytest.approx(learn.in_hand['valid_loss'], rel=1e-4)
    learn.save_bundle(tmp_path/'after')
    assert load_bundle(tmp_path/'after').config['metrics']['valid_loss']==learn.in_hand['valid_loss']

def test_a_save_model_callback_decides_for_its_fit(survey, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = learner(data(survey[1], 'classification'), precision='fp32')
    with silent(learn): learn.fit(6, lr=5e-3, cbs=SaveModelCallback(monitor='accuracy'))
    accuracies = [r['accuracy'] for r in learn.history]
    assert (tmp_path/'models'/'model.pth').is_file()
    with silent(learn): told = learn.validate()
    assert told[1]==pytest.approx(max(accuracies)) and learn.in_hand is learn.history[int(np.argmax(accuracies))]

def test_a_save_model_callback_that_loads_a_model_of_another_fit_has_no_epoch_in_hand(survey, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = learner(data(survey[1], 'classification'), precision='fp32')
    saver = SaveModelCallback(reset_on_fit=False)
    with silent(learn): learn.fit(2, lr=5e-3, cbs=saver)
    best,kept = learn.in_hand,sums(learn)
    assert best is learn.history[int(np.argmin([r['valid_loss'] for r in learn.history]))]
    with silent(learn): learn.fit(1, lr=1., cbs=saver)           # nothing better comes of it
    assert torch.equal(sums(learn), kept) and learn.in_hand is None

def test_each_value_of_a_metric_is_computed_once_an_epoch(survey):
    asked = []
    def counted(y, p):
        asked.append(len(y))
        return (y==p).mean()
    dls = data(survey[1], 'classification')
    learn = learner(dls, metrics=skm_to_fastai(counted))
    with silent(learn): learn.fit(3)
    assert asked==[dls.valid.n]*3 and learn.history[-1]['counted']<=1

def test_batches_without_any_target_leave_a_metric_as_it_is(survey):
    from zoofast.all import GalaxyDataLoaders
    df = survey[1].assign(split=['train']*40+['valid']*20)
    df.loc[df.index[40:56], 'g_r'] = np.nan                      # the first batches of validation
    dls = GalaxyDataLoaders.from_catalog(df, ['mag_r', 'g_r'], size=32, batch_size=4, progress=False)
    learn = learner(dls, metrics=mae)
    with silent(learn): learn.fit(1)
    with silent(learn): p,y = learn.get_preds()
    there = y.isfinite().all(1)
    assert there.sum()==4
    assert learn.history[-1]['mae']==pytest.approx(float((p-y)[there].abs().mean()), rel=1e-2)

def test_a_fit_that_ends_within_an_epoch_has_the_best_whole_epoch_in_hand(survey):
    class Stop(Callback):
        def after_step(self):
            if self.epoch==2: raise CancelFitException
    for keep_best in (True, False):
        learn = learner(data(survey[1], 'classification'), keep_best=keep_best, precision='fp32')
        with silent(learn): learn.fit(3, cbs=Stop())
        assert (learn.in_hand is not None)==keep_best
        if keep_best:
            with silent(learn): assert learn.validate()[0]==pytest.approx(learn.in_hand['valid_loss'], rel=1e-4)

# ---- other sizes, other data

def test_progressive_resizing_as_in_fastais_book(survey, tmp_path):
    learn = learner(data(survey[1], 'classification', size=32), save_dir=tmp_path/'run')
    with silent(learn):
        learn.fine_tune(1)
        learn.dls = data(survey[1], 'classification', size=64)
        learn.fine_tune(1)
    learn.save_bundle(tmp_path/'bundle')
    here = predict_catalog(learn, survey[1], progress=False)
    code = (f'from zoofast import predict_catalog; predict_catalog({str(tmp_path/"bundle")!r}, '
            f'{str(survey[0]/"catalog.csv")!r}, out={str(tmp_path/"out.csv")!r}, progress=False)')
    assert preloaded.run(['-W', 'ignore', '-c', code]).returncode==0
    import pandas as pd
    there = pd.read_csv(tmp_path/'out.csv', dtype={'id_str': str})
    cols = [c for c in here if here[c].dtype==float]
    assert np.allclose(there[cols], here[cols], rtol=1e-3, atol=1e-4)
    model = load_bundle(tmp_path/'bundle')
    assert model.reader.size==64 and model.config['params']['size']==64
    again = learner(data(survey[1], 'classification', size=32), save_dir=tmp_path/'run', resume=True)
    with silent(again):                                     # a resumed run goes through the same calls
        again.fine_tune(1)
        again.dls = data(survey[1], 'classification', size=64)
        again.fine_tune(1)
    assert torch.equal(sums(again), sums(learn))

def test_data_that_do_not_fit_are_refused(survey):
    learn = learner(data(survey[1], 'classification'))
    with pytest.raises(ValueError, match='task=learn.task'): learn.dls = data(survey[1], 'votes')
    grey = data(survey[1], 'classification', reader=ImageReader(32, channels=1))
    with pytest.raises(ValueError, match='1 channels'): learn.dls = grey
    numbers = learner(data(survey[1], 'regression'))
    with pytest.raises(ValueError, match='task=learn.task'):
        numbers.dls = data(survey[1].iloc[:30], 'regression')
    with pytest.raises(ValueError, match='GalaxyDataLoaders'): learn.dls = [1]

# ---- callbacks

def test_a_rate_that_is_written_into_hypers_is_the_optimizers(survey):
    learn = learner(data(survey[1], 'classification'))
    learn.opt.hypers[-1]['lr'] = .5
    assert learn.opt.hypers[-1]['lr']==.5 and learn.opt.opt.param_groups[-1]['lr']==.5 and learn.opt.hypers[0]['lr']<.5
    with silent(learn): learn.fit(4, lr=.1, cbs=ReduceLROnPlateau(patience=0, factor=10, min_delta=1e9))
    assert learn.history[-1]['lr']<=.01

def test_epochs_that_are_not_validated(survey):
    learn = learner(data(survey[1], 'classification', batch_size=4))
    with silent(learn): learn.fit(2, cbs=ShortEpochCallback(pct=.3, short_valid=True))
    first = learn.history[0]
    assert len(learn.history)==2 and 'accuracy' not in first
    assert all(isinstance(v, (int, float, str)) for v in first.values())

def test_a_callback_that_looks_at_images_gets_images_while_the_encoder_is_frozen(survey):
    seen = []
    class Look(Callback):
        def before_batch(self): seen.append(self.xb[0].shape[1:])
    learn = learner(data(survey[1], 'classification'))
    learn.freeze()
    with silent(learn): learn.fit(1, cbs=Look())
    assert set(seen)=={(3, 32, 32)}

# ---- modules of one's own

@pytest.mark.slow
def test_what_the_user_froze_stays_frozen(survey):
    import timm
    body = timm.create_model('test_convnext', num_classes=0)
    for p in body.stem.parameters(): p.requires_grad = False
    learn = galaxy_learner(data(survey[1], 'classification'), body, keep_best=False)
    later = learn.model.encoder.body.stages[0]
    for p in later.parameters(): p.requires_grad = False
    before = {n: p.detach().clone() for n,p in learn.model.named_parameters()}
    with silent(learn): learn.fine_tune(1)
    changed = {n for n,p in learn.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and not any('.stem.' in n or '.stages.0.' in n for n in changed)
    for p in later.parameters(): p.requires_grad = True                 # let go again
    with silent(learn): learn.fine_tune(1)
    assert any('.stages.0.' in n for n,p in learn.model.named_parameters() if not torch.equal(p, before[n]))

def test_data_parallel_trains_saves_and_predicts(survey, tmp_path):
    learn = learner(data(survey[1], 'classification'))
    learn.model = torch.nn.DataParallel(learn.model)
    with silent(learn): learn.fine_tune(1)
    learn.save_bundle(tmp_path/'bundle')
    learn.save_encoder(tmp_path/'encoder')
    with silent(learn): p,_ = learn.get_preds()
    rows = learn.dls.catalog[learn.dls.catalog.split=='valid']
    t = predict_catalog(load_bundle(tmp_path/'bundle'), rows, progress=False)
    assert np.allclose(t[[c for c in t if t[c].dtype==float]].to_numpy(), p.numpy(), rtol=1e-3, atol=1e-4)

def test_a_classifier_that_is_still_on_is_refused(survey):
    import torchvision
    dls = data(survey[1], 'classification', size=64)
    resnet,mobilenet = torchvision.models.resnet18(),torchvision.models.mobilenet_v2()
    with pytest.raises(ValueError, match=r'1000 outputs.*model\.fc = torch\.nn\.Identity'): galaxy_learner(dls, resnet)
    with pytest.raises(ValueError, match=r'model\.classifier\[1\]'): galaxy_learner(dls, mobilenet)

# ---- words

OURS = {'learning_rat': 'learning_rate', 'lr': 'learning_rate', 'wd': 'weight_decay', 'ps': 'head_dropout_prob',
        'bs': 'batch_size', 'n_in': 'channels', 'opt_func': 'opt=', 'lr_mult': 'layer_decay'}

@pytest.mark.parametrize('word,said', OURS.items())
def test_words_of_others(word, said, survey):
    dls = data(survey[1], 'classification')
    with pytest.raises(ValueError, match=said) as e: galaxy_learner(dls, 'test_convnext', **{word: .1})
    assert 'did you mean' in str(e.value)

def test_words_of_fine_tune_and_optimizers_of_fastai(survey):
    dls = data(survey[1], 'classification')
    learn = learner(dls)
    with pytest.raises(ValueError, match='layer_decay'): learn.fine_tune(1, lr_mult=100)
    with pytest.raises(ValueError, match='fit_one_cycle'): learn.fine_tune(1, nonsense=1)
    assert not learn.history
    with pytest.raises(ValueError, match='no optimizer of torch'): learner(dls, opt=Adam)
