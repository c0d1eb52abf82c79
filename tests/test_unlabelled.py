"Learning from galaxies without labels: which they are, how sure a guess must be, and that runs repeat and go on"
import json, shutil, warnings
import numpy as np, pandas as pd, pytest, torch
from zoofast.all import *
from zoofast.data.unlabelled import digest_of, read_unlabelled
from zoofast.training.unlabelled import RATIO, Thresholds

@pytest.fixture(scope='module')
def galaxies(survey):
    "20 labelled ones, 15 of them to train on; and the others"
    df = survey[1]
    few = df.groupby('morphology').head(4)
    split = np.where(few.groupby('morphology').cumcount()<3, 'train', 'valid')
    return few.assign(split=split).reset_index(drop=True),df[~df.id_str.isin(few.id_str)].reset_index(drop=True)

def loaders(df, label='morphology', **kwargs):
    return GalaxyDataLoaders.from_catalog(df, label, progress=False, **{'size': 32, 'batch_size': 8, **kwargs})

@pytest.fixture(scope='module')
def dls(galaxies): return loaders(galaxies[0])

def tiny(dls, others, **kwargs):
    return galaxy_learner(dls, 'test_efficientnet', pretrained=False, unlabelled=others, **kwargs)

def trained(learn, epochs=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(epochs, **kwargs)
    return learn

def warned(f):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        out = f()
    return out,[str(o.message) for o in said if str(o.message).startswith(('unlabelled', 'left out'))]

# --- which galaxies

def test_what_is_labelled_is_left_out(galaxies, dls, survey, tmp_path):
    "Also a picture under another name; of all splits; and it is said once"
    few,others = galaxies
    copy = shutil.copy(few[few.split=='valid'].file_loc.iloc[0], tmp_path/'other.jpg')
    again = pd.DataFrame(dict(id_str=['copy'], file_loc=[str(copy)]))
    data,said = warned(lambda: read_unlabelled(dls, pd.concat([survey[1], again]), progress=False))
    assert data.items.id_str.tolist()==others.id_str.tolist()
    assert len(said)==1 and '21 of 61' in said[0]
    data,said = warned(lambda: read_unlabelled(dls, others, progress=False))
    assert len(data)==len(others) and not said
    with pytest.raises(CatalogError, match='unlabelled: all of its galaxies'): read_unlabelled(dls, few, progress=False)

def test_pixels_are_those_of_the_reader(galaxies, dls):
    data = read_unlabelled(dls, galaxies[1], progress=False)
    assert torch.equal(data.batch([3])[0][0], dls.reader.wide(data.items.file_loc[3]))

def test_its_labels_are_not_looked_at(galaxies, dls):
    others = galaxies[1].assign(morphology=None)
    a,b = (read_unlabelled(dls, o, progress=False) for o in (others, galaxies[1]))
    assert digest_of(a)==digest_of(b) and torch.equal(a.y, b.y)

def test_broken_ones_follow_the_labelled_catalogue(galaxies, dls, tmp_path):
    others = galaxies[1].copy()
    others.loc[2, 'file_loc'] = str(tmp_path/'gone.jpg')
    with pytest.raises(CatalogError, match='unlabelled: 1 of 40 rows'): read_unlabelled(dls, others, progress=False)
    lenient = loaders(galaxies[0], on_bad='skip')
    data,said = warned(lambda: read_unlabelled(lenient, others, progress=False))
    assert len(data)==39 and others.id_str[2] not in set(data.items.id_str) and others.id_str[2] in said[0]

def test_columns_of_the_labelled_catalogue(galaxies, tmp_path):
    names = dict(id_str='name', file_loc='path')
    dls = loaders(galaxies[0].rename(columns=names), id_col='name', file_col='path')
    others = galaxies[1].rename(columns=names)
    others.to_csv(tmp_path/'others.csv', index=False)
    for source in (others, tmp_path/'others.csv', str(tmp_path/'others.csv'), galaxies[1]):
        assert read_unlabelled(dls, source, progress=False).items.id_str.tolist()==galaxies[1].id_str.tolist()
    with pytest.raises(CatalogError, match="unlabelled: .*no column 'file_loc'"):
        read_unlabelled(loaders(galaxies[0]), others.rename(columns=dict(name='id_str')), progress=False)

# --- thresholds

def test_thresholds_are_freematchs():
    "Equations 5, 7 and 8 of arXiv:2205.07246, step by step"
    torch.manual_seed(1)
    t,sure,often = Thresholds(1, 3),1/3,np.full(3, 1/3)
    for step in range(1, 30):
        p = torch.randn(16, 3).mul(2).softmax(1)
        t.update(p[:,None])
        keep = min(0.99, step/(step+4))
        sure = keep*sure + (1-keep)*p.max(1).values.mean().item()
        often = keep*often + (1-keep)*p.mean(0).numpy()
    assert np.allclose(t.values[0], sure*often/often.max(), atol=1e-6)
    passed = p.max(1).values.numpy()>=(sure*often/often.max())[p.argmax(1)]
    assert t.are_passed(p[:,None])[:,0].tolist()==passed.tolist() and 0<passed.sum()<16

# --- training

@pytest.mark.slow
def test_it_acts_on_images_alone(galaxies, dls):
    "Not on cached features; the loaders are as before; an epoch sees all of them"
    learn = trained(tiny(dls, galaxies[1]))
    first,second = learn.history
    assert 'pseudo_labels' not in first and 0<=second['pseudo_labels']<=1 and second['unlabelled_loss']>0
    assert learn.dls is dls and not learn.unlabelled.active
    repeated = learn.unlabelled.loaders(dls).train
    assert len(repeated)*repeated.bs*RATIO>=40 and learn.recorder.iters[-1]==len(repeated)
    assert {'pseudo_labels', 'unlabelled_loss'}<=set(pd.DataFrame(learn.history))

def test_the_loss_is_added(galaxies, dls):
    "What goes backward is the labelled loss and, by the ramp, the cross-entropy with the teacher where it is sure"
    learn = tiny(dls, galaxies[1])
    got = []
    class Look(Callback):
        order = 41
        def after_loss(self):
            if not self.training: return
            added = float(self.unlabelled.seen[-1][1])
            got.append((float(self.loss), float(self.loss_grad.detach()), added, self.pct_train))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Look())
    weight = [np.exp(-5*(1-min(1, o[3]/.3))**2) for o in got]
    assert np.allclose([o[1]-o[0] for o in got], [w*o[2] for w,o in zip(weight, got)], atol=1e-5)
    assert got[-1][2]>0 and got[0][3]==0

def test_the_teacher_is_the_moving_average(galaxies, dls):
    assert tiny(dls, galaxies[1]).ema_decay==0.99 and tiny(dls, galaxies[1], ema=0.9).ema_decay==0.9
    assert galaxy_learner(dls, 'test_efficientnet', pretrained=False).ema_decay==0
    assert galaxy_learner(dls, 'tf_efficientnet_lite0').ema_decay==0.98

def test_running_means_are_of_labelled_galaxies(galaxies, dls):
    "In a model whose batch normalisations learn them"
    from zoofast.training.unlabelled import _means_kept
    net = tiny(dls, galaxies[1]).net.train()
    before = {k: v.clone() for k,v in net.state_dict().items() if 'running' in k}
    with _means_kept(net): net(torch.rand(4, 3, 32, 32))
    assert all(torch.equal(v, net.state_dict()[k]) for k,v in before.items())
    net(torch.rand(4, 3, 32, 32))
    assert not all(torch.equal(v, net.state_dict()[k]) for k,v in before.items())

def test_lr_find_is_of_the_labelled(galaxies, dls):
    learn = tiny(dls, galaxies[1])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=4, show_plot=False)
    assert learn.unlabelled.repeated is None and not learn.history

def test_several_labels(galaxies, survey):
    few,others = (o.assign(ring=[0, 1]*(len(o)//2)+[0]*(len(o)%2), bar=(np.arange(len(o))%3==0).astype(int))
                  for o in galaxies)
    learn = tiny(loaders(few, ['ring', 'bar']), others)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert 0<=learn.history[0]['pseudo_labels']<=1 and learn.unlabelled.thresholds.values.shape==(2, 2)

# --- what cannot be

def test_refusals(galaxies, dls, monkeypatch, tmp_path):
    few,others = galaxies
    numbers = few.assign(mass=np.linspace(0.1, 9.7, len(few)))
    with pytest.raises(ValueError, match='Regression does not: leave unlabelled= out'):
        tiny(loaders(numbers, 'mass'), others, save_dir=tmp_path/'run')
    assert not (tmp_path/'run').exists()
    with pytest.raises(ValueError, match="training_mode='head_only' trains on features"):
        tiny(dls, others, training_mode='head_only')
    with pytest.raises(ValueError, match='n_blocks=0 trains on features'): tiny(dls, others, n_blocks=0)
    with pytest.raises(ValueError, match='unlabelled=5 is no catalogue'): tiny(dls, 5)
    with pytest.raises(ValueError, match='is no catalogue') as e: tiny(dls, [f'{i}.jpg' for i in range(10_000)])
    assert len(str(e.value))<200
    with pytest.raises(ValueError, match='unlabelled: the path of the catalogue is empty'): tiny(dls, ' ')
    with pytest.raises(ValueError, match='ema=0 with unlabelled=: the teacher is a moving average'):
        galaxy_learner(dls, 'test_efficientnet', pretrained=False, unlabelled=others, ema=0)
    with pytest.raises(ValueError, match='did you mean unlabelled='):
        galaxy_learner(dls, 'test_efficientnet', pretrained=False, unlabeled=others)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='unlabelled= trains in one process'): tiny(dls, others)

def test_a_task_of_numbers_says_so_before_images_are_read(galaxies):
    from zoofast.training.finetune import check_training
    numbers = galaxies[0].assign(mass=np.linspace(0.1, 9.7, 20))
    task = Regression('mass').fit(numbers)
    with pytest.raises(ValueError, match='Regression does not'):
        check_training(task, 'test_efficientnet', ImageReader(32), pretrained=False, unlabelled='others.csv')

# --- runs that repeat and go on

def weights(learn): return {k: v.clone() for k,v in learn.net.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)

class Stop(Callback):
    "Breaks a fit off in the middle of an epoch"
    def __init__(self, epoch): self.at = epoch
    def after_step(self):
        if self.learn.n_fits==1 and self.learn.epoch==self.at and self.iter==1: raise KeyboardInterrupt

@pytest.mark.slow
@pytest.mark.parametrize('more', [{}, dict(ema=.9, accumulate=2, clip_grad=1., class_weights='balanced', mixup=.4),
                                  dict(precision='bf16', seed=None)], ids=str)
def test_a_run_goes_on_to_the_last_bit(galaxies, dls, tmp_path, more):
    torch.manual_seed(3)
    start = None
    def one(name, stop=None, **kwargs):
        nonlocal start
        learn = tiny(dls, galaxies[1], save_dir=tmp_path/name, **more, **kwargs)
        if start is None: start = weights(learn)
        learn.net.load_state_dict(start)
        if stop is not None: learn.add_cb(Stop(stop))
        try: return trained(learn, 3)
        except KeyboardInterrupt: return None
    if more.get('seed', 1) is None: return goes_on_without_a_seed(one)
    whole,again = one('whole'),one('again')
    assert same(weights(whole), weights(again)) and whole.history==again.history
    assert one('broken', stop=2) is None
    rest = one('broken', resume=True)
    assert rest.history==whole.history and same(weights(rest), weights(whole))
    a,b = (o.unlabelled.thresholds for o in (rest, whole))
    assert torch.equal(a.values, b.values) and a.steps==b.steps>0

def goes_on_without_a_seed(one):
    assert one('broken', stop=1) is None
    assert len(one('broken', resume=True).history)==4

@pytest.mark.slow
def test_other_galaxies_are_refused(galaxies, dls, tmp_path):
    few,others = galaxies
    learn = tiny(dls, others, save_dir=tmp_path)
    learn.add_cb(Stop(1))
    with pytest.raises(KeyboardInterrupt): trained(learn, 2)
    for not_those in (others[:30], None):
        with pytest.raises(ValueError, match='was made with unlabelled='):
            trained(tiny(dls, not_those, save_dir=tmp_path, resume=True, ema=.99), 2)
    assert len(trained(tiny(dls, others, save_dir=tmp_path, resume=True), 2).history)==3
    said = (tmp_path/'log.txt').read_text()
    assert 'pseudo labels ' in said and 'unlabelled loss ' in said
    assert pd.read_csv(tmp_path/'history.csv').pseudo_labels.notna().sum()==2

@pytest.mark.slow
def test_other_images_in_between(galaxies, dls):
    "Progressive resizing: the galaxies without labels follow"
    learn = trained(tiny(dls, galaxies[1]))
    learn.dls = loaders(galaxies[0], size=48)
    assert learn.unlabelled.galaxies.store.reader==learn.dls.reader
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert 'pseudo_labels' in learn.history[-1]

# --- the command line

@pytest.mark.slow
def test_from_a_shell(galaxies, run_zoofast, tmp_path):
    few,others = galaxies
    few.rename(columns=dict(id_str='name')).to_csv(tmp_path/'few.csv', index=False)
    others.rename(columns=dict(id_str='name')).to_csv(tmp_path/'others.csv', index=False)
    def finetune(*more):
        return run_zoofast('finetune', 'few.csv', '--label', 'morphology', '--encoder', 'test_efficientnet',
                           '--size', 32, '--random-weights', '--epochs', 1, '--id-col', 'name', '--no-report', *more,
                           cwd=tmp_path)
    bad = finetune('--save-dir', 'bad', '--unlabelled', 'other.csv', '--processes', 2)
    assert bad.returncode==2 and 'other.csv' in bad.stderr and 'leave out --processes' in bad.stderr
    good = finetune('--save-dir', 'good', '--unlabelled', 'others.csv')
    assert good.returncode==0, good.stderr
    assert '40 galaxies without labels' in good.stderr and 'Traceback' not in good.stderr
    assert 'pseudo_labels' in pd.read_csv(tmp_path/'good'/'history.csv')
    config = (tmp_path/'good'/'config.yaml').read_text()
    assert 'unlabelled: others.csv' in config and 'galaxies: 40' in config
    again = finetune('--save-dir', 'good', '--unlabelled', 'few.csv', '--resume')
    assert again.returncode==2 and 'all of its galaxies' in again.stderr
    assert json.loads((tmp_path/'good'/'bundle'/'config.json').read_text())['params']['unlabelled']=='others.csv'
