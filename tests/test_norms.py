"Batch normalisations are renewed: the model says what it said, and then learns with means of its own"
import numpy as np, pandas as pd, pytest, torch
from torch import nn
from fastai.callback.core import Callback
from zoofast.all import *
from zoofast.encoders.norms import batch_norms, measure_norms, renew_norms

LITE = 'tf_efficientnet_lite0'

@pytest.fixture(scope='module')
def dls(survey):
    df = survey[1].assign(split=['train']*43+['valid']*17)
    return GalaxyDataLoaders.from_catalog(df, 'morphology', size=64, batch_size=10, progress=False)

def learner(dls, **kw): return galaxy_learner(dls, LITE, bn_stats='renew', **kw)
def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): f(learn)
    return learn
def state(learn): return {k: v.clone() for k,v in learn.net.state_dict().items()}
def moved(a, b): return {k for k in a if not torch.equal(a[k], b[k])}

@pytest.mark.parametrize('name', ['resnet18', 'test_efficientnet', 'mobilenetv3_small_050', 'repvgg_a0',
                                  'levit_128s', 'regnety_002'])
def test_an_encoder_with_new_means_gives_the_same_features(name):
    torch.manual_seed(0)
    enc = create_encoder(name, 224 if name.startswith('levit') else 64, pretrained=False).eval()
    norms = batch_norms(enc)
    for m in norms.values():                              # as pretraining might have left it
        nn.init.normal_(m.running_mean, std=.3), nn.init.uniform_(m.running_var, .2, 3)
        nn.init.normal_(m.weight, 1, .3), nn.init.normal_(m.bias, std=.3)
    x = torch.rand(6, 3, enc.size, enc.size)*.2
    with torch.no_grad(): before = enc(x)
    means = measure_norms(enc, x.split(4))
    renew_norms(enc, means)
    with torch.no_grad(): after = enc(x)
    assert means.keys()==norms.keys() and norms
    assert float((after-before).abs().max())<1e-3*float(before.abs().max())
    for k,m in norms.items(): torch.testing.assert_close(m.running_mean.double(), means[k][0], atol=1e-5, rtol=1e-4)

def test_a_channel_that_is_constant_or_infinite_stays_usable():
    enc = create_encoder('test_efficientnet', 64, pretrained=False).eval()
    with torch.no_grad(): before = enc(torch.zeros(2, 3, 64, 64))
    renew_norms(enc, measure_norms(enc, [torch.zeros(2, 3, 64, 64)]))
    name,m = next(iter(batch_norms(enc).items()))
    renew_norms(enc, {name: (torch.full_like(m.running_mean, torch.inf), m.running_var)})
    with torch.no_grad(): torch.testing.assert_close(enc(torch.zeros(2, 3, 64, 64)), before, atol=1e-4, rtol=1e-3)

def test_they_are_renewed_where_an_epoch_has_batches_enough(survey, monkeypatch):
    monkeypatch.setattr('zoofast.training.finetune.RENEW_FROM', 16)
    df = survey[1].assign(split=['train']*48+['valid']*12)
    def learn(bs, **kw):
        dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=32, batch_size=bs, progress=False)
        return galaxy_learner(dls, LITE, **kw)
    few,enough = learn(4),learn(3)
    assert (few.bn_stats, few.lr)==('keep', 5e-4) and (enough.bn_stats, enough.lr)==('renew', 2e-3)
    assert enough.params['bn_stats']=='renew' and enough.params['learning_rate']==2e-3
    slow,fast = learn(3, learning_rate=1e-4),learn(3, learning_rate=1e-3)
    assert (slow.bn_stats, slow.lr)==('keep', 1e-4) and (fast.bn_stats, fast.lr)==('renew', 1e-3)
    assert learn(3, training_mode='head_only').bn_stats=='keep'
    monkeypatch.setenv('WORLD_SIZE', '2')                                 # two processes, each with its part of six
    assert learn(3).bn_stats=='keep'

@pytest.mark.slow
def test_before_it_learns_the_model_says_what_it_said(dls):
    "Before its first step its answers are as they were, and nothing but batch normalisations has moved"
    learn = learner(dls, ema=0., keep_best=False)
    valid = learn.get_preds(act=noop)[0]
    before = state(learn)
    class Stop(Callback):
        def before_fit(self): self.outputs = self.learn.net.eval()(self.dls.valid.one_batch()[0]).detach()
        def before_batch(self): raise CancelFitException
    quiet(learn, lambda l: l.fit(1, cbs=(stop := Stop())) or setattr(l, 'stop', stop))
    torch.testing.assert_close(learn.stop.outputs.cpu(), valid[:len(learn.stop.outputs)], atol=1e-3, rtol=1e-3)
    changed = moved(before, state(learn))
    norms = {f'encoder.{n}' for n in batch_norms(learn.net.encoder)}
    assert changed and {k.rpartition('.')[0] for k in changed}==norms

@pytest.mark.slow
def test_only_what_is_trained_is_renewed(dls):
    learn = learner(dls, n_blocks=1, keep_best=False)
    before = state(learn)
    quiet(learn, lambda l: l.fine_tune(1))
    top = 'encoder.body.bn2.running_mean'
    above = 'head.', 'encoder.body.blocks.6.', 'encoder.body.conv_head', 'encoder.body.bn2'
    assert top in moved(before, state(learn)) and all(k.startswith(above) for k in moved(before, state(learn)))

@pytest.mark.slow
def test_lr_find_leaves_the_model_as_it_was(dls):
    learn = learner(dls)
    before = state(learn)
    quiet(learn, lambda l: l.lr_find(num_it=5, show_plot=False))
    assert not moved(before, state(learn))

@pytest.mark.slow
@pytest.mark.parametrize('at', [(0, 0), (1, 0), (1, 1)], ids=str)
def test_a_run_that_is_broken_off_goes_on_bit_for_bit(dls, tmp_path, at):
    class StopAt(Callback):
        def after_step(self):
            if (self.learn.n_fits, self.learn.epoch)==at and self.iter==1: raise KeyboardInterrupt
    train = lambda l: l.fine_tune(2)
    whole = quiet(learner(dls, save_dir=tmp_path/'whole', cache_features=False), train)
    with pytest.raises(KeyboardInterrupt):
        quiet(learner(dls, save_dir=tmp_path/'broken', cbs=StopAt(), cache_features=False), train)
    again = quiet(learner(dls, save_dir=tmp_path/'broken', resume=True, cache_features=False), train)
    assert not moved(state(whole), state(again)) and whole.history==again.history

@pytest.mark.slow
def test_a_batch_of_two_takes_the_running_means(survey):
    "Means of two galaxies would be no means; training goes on with those that are known"
    df = survey[1].assign(split=['train']*42+['valid']*18)
    dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=32, batch_size=20, progress=False)
    seen = []
    class Look(Callback):
        def before_batch(self):
            if self.training: seen.append((len(self.x), self.learn.net.encoder.body.bn2.training))
    quiet(learner(dls, cbs=Look()), lambda l: l.fit(1))
    assert seen==[(20, True), (20, True), (2, False)]

@pytest.mark.slow
def test_two_processes_normalise_as_one(survey, run_zoofast, tmp_path):
    df = survey[1].assign(split=['train']*43+['valid']*17)
    df.to_csv(tmp_path/'catalog.csv', index=False)
    def history(n):
        res = run_zoofast('finetune', tmp_path/'catalog.csv', '--label', 'morphology', '--encoder', LITE, '--size', 64,
                          '--epochs', 2, '--head-dropout-prob', 0, '--augment', 'none', '--opt', 'sgd', '--bn-stats',
                          'renew', '--learning-rate', 1e-3, '--batch-size', 16//n, '--processes', n, '--no-report',
                          '--save-dir', tmp_path/str(n), env={'ZOOFAST_CACHE': str(tmp_path/'cache')})
        assert res.returncode==0, res.stderr
        return pd.read_csv(tmp_path/str(n)/'history.csv')
    one,two = history(1),history(2)
    for c in ('train_loss', 'valid_loss', 'accuracy', 'roc_auc'): assert np.abs(one[c]-two[c]).max()<1e-3, c
