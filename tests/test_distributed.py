"Two processes (gloo, on the CPU) train what one does, and say what one says"
import os, subprocess, sys
import numpy as np, pandas as pd, pytest

pytestmark = pytest.mark.slow

COMMON = ['--label', 'morphology', '--encoder', 'tf_efficientnet_lite0', '--size', 64, '--epochs', 2,
          '--head-dropout-prob', 0, '--augment', 'none', '--patience', 5,
          '--opt', 'sgd', '--learning-rate', 1e-3] # adamw would hide a wrong scale of gradients, and enlarges rounding

@pytest.fixture(scope='module')
def runs(survey, run_zoofast, tmp_path_factory):
    "The same run with one process and with two; 44 galaxies to train, so that the last batch cannot be halved"
    folder,df = survey
    out = tmp_path_factory.mktemp('runs')
    df = df.assign(split=['train']*43+['valid']*17)
    df.to_csv(out/'catalog.csv', index=False)
    cache = {'ZOOFAST_CACHE': str(out/'cache')}
    def finetune(n):
        return run_zoofast('finetune', out/'catalog.csv', *COMMON, '--batch-size', 16//n, '--processes', n,
                           '--save-dir', out/f'run{n}', env=cache)
    res = {n: finetune(n) for n in (2, 1)}
    return out,res

def test_losses_agree(runs):
    out,res = runs
    for n in (1, 2): assert res[n].returncode==0, res[n].stderr
    one,two = (pd.read_csv(out/f'run{n}'/'history.csv') for n in (1, 2))
    assert len(one)==len(two)==3
    for c in ('train_loss', 'valid_loss', 'accuracy', 'roc_auc', 'lr'): assert np.abs(one[c]-two[c]).max()<1e-4, c

def test_one_process_speaks(runs):
    out,res = runs
    assert res[2].stdout.count('parameter groups')==1 and res[2].stdout.count('validation galaxies: accuracy')==1
    assert res[2].stdout.replace('run2', 'run1')==res[1].stdout
    assert '2 processes' in res[2].stderr and 'Traceback' not in res[2].stderr and 'Warning' not in res[2].stderr

def test_prediction_after_it(runs, run_zoofast):
    out,_ = runs
    for n in (1, 2):
        res = run_zoofast('predict', out/f'run{n}', out/'catalog.csv', '--out', out/f'{n}.csv')
        assert res.returncode==0, res.stderr
    one,two = (pd.read_csv(out/f'{n}.csv', dtype={'id_str': str}) for n in (1, 2))
    assert two.id_str.tolist()==pd.read_csv(out/'catalog.csv', dtype={'id_str': str}).id_str.tolist()
    num = one.select_dtypes(float).columns.drop('error', errors='ignore')
    assert np.abs(one[num]-two[num]).max().max()<1e-3

def test_decoded_once(runs):
    "One file of decoded images, made by the process that came first"
    out,_ = runs
    assert len(list((out/'cache').rglob('*.npy')))==1 and not list((out/'cache').rglob('*.part'))

def test_a_mistake_is_said_once(survey, run_zoofast, tmp_path):
    catalog = survey[0]/'catalog.csv'
    res = run_zoofast('finetune', catalog, *COMMON, '--opt', 'adamv', '--processes', 2, '--save-dir', tmp_path)
    assert res.returncode==2 and res.stderr.count('adamv')==1 and 'Traceback' not in res.stderr

SCRIPT = '''
import sys, warnings
warnings.filterwarnings("ignore")
from zoofast.all import *
from zoofast.training.distributed import join_processes
join_processes()
dls = GalaxyDataLoaders.from_catalog(sys.argv[1], "morphology", size=64, batch_size=8, progress=False)
learn = galaxy_learner(dls, "tf_efficientnet_lite0", save_dir=sys.argv[2], patience=1, learning_rate=0.05,
                       resume="resume" in sys.argv, mixup=0.2, accumulate=2)
with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(): learn.fine_tune(6, freeze_epochs=2)
weights = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
both = [torch.empty_like(weights) for _ in range(2)]
torch.distributed.all_gather(both, weights)
assert torch.equal(*both), "the processes ended with different models"
preds = predict_catalog(learn, sys.argv[1], progress=False)
assert preds.id_str.tolist()==read_catalog(sys.argv[1]).id_str.tolist()
if rank_distrib()==0: pd.DataFrame(learn.history).to_csv(f"{sys.argv[2]}/{sys.argv[3]}.csv", index=False)
torch.distributed.destroy_process_group()
'''

def test_a_script_under_accelerate_and_torchrun(survey, tmp_path):
    "Augmented, stopped early; both processes end with the same best model, and the finished run resumes to it"
    (tmp_path/'train.py').write_text(SCRIPT)
    def call(launcher, *args):
        command = [sys.executable, '-m', *launcher, str(tmp_path/'train.py'), str(survey[0]/'catalog.csv'), *args]
        res = subprocess.run(command, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
        assert res.returncode==0, res.stderr[-3000:]
    call(['accelerate.commands.launch', '--multi_gpu', '--num_processes', '2'], str(tmp_path/'run'), 'a')
    call(['torch.distributed.run', '--standalone', '--nproc-per-node', '2'], str(tmp_path/'run'), 'b', 'resume')
    a,b = (pd.read_csv(tmp_path/'run'/f'{n}.csv') for n in 'ab')
    pd.testing.assert_frame_equal(a, b)
    assert len(a)<8 and set(a.fit)=={0, 1}

METRICS = '''
import sys, warnings
warnings.filterwarnings("ignore")
from zoofast.all import *
from fastai.metrics import R2Score, mae
from zoofast.training.distributed import join_processes
join_processes()
df = read_catalog(sys.argv[1])
df["split"] = ["train"]*40 + ["valid"]*(len(df)-40)
df.loc[df.index[41::3], "g_r"] = float("nan")
dls = GalaxyDataLoaders.from_catalog(df, ["mag_r", "g_r"], size=32, batch_size=4, progress=False)
learn = galaxy_learner(dls, "test_convnext", pretrained=False, metrics=[mae, R2Score()], precision="fp32")
with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(): learn.fit(1)
with learn.no_bar(), learn.no_logging(): p,y = learn.get_preds()
there = y.isfinite().all(1)
told,true = learn.history[-1]["mae"],float((p-y)[there].abs().mean())
assert 0<there.sum()<len(y) and abs(told-true)<1e-3*true, (told, true)
p,y = p[there].flatten(),y[there].flatten()
told,true = learn.history[-1]["r2_score"],float(1-((p-y)**2).sum()/((y-y.mean())**2).sum())
assert abs(told-true)<1e-3*abs(true), (told, true)
torch.distributed.destroy_process_group()
'''

def test_metrics_of_ones_own_are_of_the_galaxies_of_all_processes(survey, tmp_path):
    (tmp_path/'metrics.py').write_text(METRICS)
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    command = [*launcher, str(tmp_path/'metrics.py'), str(survey[0]/'catalog.csv')]
    res = subprocess.run(command, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
    assert res.returncode==0, res.stderr[-3000:]
