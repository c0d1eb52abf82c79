"A fifth task, of somebody else's package: one file and one registration, and it does all that a task of ours does"
import ast, os, subprocess, sys, warnings
from pathlib import Path
import numpy as np, pandas as pd, preloaded, pytest, torch
from test_layering import SRC, TREES
from zoofast.all import (GalaxyDataLoaders, ImageReader, galaxy_learner, load_bundle, make_report, plot_confusion,
                         plot_mosaic)
from zoofast.all import predict_catalog, score_predictions
from zoofast.tasks.task import TASKS, register_task, task_named

HERE = Path(__file__).parent/'fixtures'/'own_task'
NET = 'test_convnext'           # tiny, of random weights

@pytest.fixture(scope='module')
def ordered():
    "The task, registered as a user would in a notebook"
    sys.path.insert(0, str(HERE))
    try: from ordered_classes import OrderedClasses
    finally: sys.path.remove(str(HERE))
    yield register_task(OrderedClasses)
    TASKS.pop('ordered')

@pytest.fixture(scope='module')
def winding(survey, tmp_path_factory):
    "A catalogue whose galaxies have one of four grades, by their morphology's place in the alphabet"
    folder,df = survey
    df = df.assign(winding=pd.factorize(df.morphology, sort=True)[0]%4)
    path = tmp_path_factory.mktemp('winding')/'winding.csv'
    df[['id_str', 'file_loc', 'winding']].to_csv(path, index=False)
    return df,path

def test_probabilities_and_outputs_agree(ordered):
    task,out = ordered('winding', [0, 1, 2, 3]),torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()
    p = task.activation(out)
    assert torch.allclose(p.sum(1), torch.ones(20).double(), atol=1e-9)
    again = task.activation(task.outputs_of(task.to_frame(p.numpy())))
    assert torch.allclose(again, p, atol=1e-6)

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('first', ['from zoofast.tasks import classes', 'pass'])
def test_files_are_read_with_the_class_of_the_package_though_its_notebook_runs_beside_it(first):
    code = f"""
{first}
from zoofast.tasks.task import Task, register_task, task_named
class Classification(Task): kind = 'classification'       # as the notebook does that this class is written in
assert register_task(Classification) is Classification
from zoofast.tasks import classes
assert task_named('classification') is classes.Classification
class Own(Task): kind = 'own'
assert task_named(register_task(Own).kind) is Own
class Own(Task): kind = 'own'                             # its cell was run again
assert task_named(register_task(Own).kind) is Own
"""
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode==0, r.stderr

def test_it_trains_predicts_is_kept_reported_and_drawn(ordered, winding, tmp_path):
    df,_ = winding
    dls = GalaxyDataLoaders.from_catalog(df, task=ordered('winding'), reader=ImageReader(32), batch_size=16)
    learn = galaxy_learner(dls, NET, pretrained=False, save_dir=tmp_path/'run')
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    assert [m.name for m in learn.metrics]==['accuracy_within_one']
    with warnings.catch_warnings():
        warnings.simplefilter('error')                    # its loss is the task's own, which makes it again
        learn.save_bundle(tmp_path/'run'/'bundle')
    preds = predict_catalog(learn, df, progress=False)
    assert list(preds)[2:7]==['winding_pred', 'winding_0', 'winding_1', 'winding_2', 'winding_3']
    assert np.allclose(preds[['winding_0', 'winding_1', 'winding_2', 'winding_3']].sum(axis=1), 1)
    kept = load_bundle(tmp_path/'run'/'bundle')
    assert isinstance(kept.task, ordered) and kept.task.classes==[0, 1, 2, 3]
    pd.testing.assert_frame_equal(predict_catalog(kept, df, progress=False), preds, rtol=1e-4, atol=1e-5)
    score = score_predictions(preds, df, dls.task)
    y,said = df.winding.to_numpy(),preds.winding_pred.to_numpy(int)
    assert score['n']==len(df) and abs(score['accuracy_within_one']-(abs(y-said)<=1).mean())<1e-6
    page = make_report(learn, progress=False).read_text(encoding='utf-8')
    assert 'winding' in page and 'confusion' in page.lower()
    plot_confusion(learn)
    plot_mosaic(learn)

@pytest.mark.slow
def test_from_the_shell(winding, tmp_path):
    "Its package has an entry point, which is all that the shell needs"
    _,path = winding
    info = tmp_path/'site'/'ordered-1.0.dist-info'
    info.mkdir(parents=True)
    (tmp_path/'site'/'ordered_classes.py').write_text((HERE/'ordered_classes.py').read_text())
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: ordered\nVersion: 1.0\n')
    (info/'entry_points.txt').write_text('[zoofast.tasks]\nordered = ordered_classes:OrderedClasses\n')
    env = {'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent.parent), str(tmp_path/'site')])}
    def zoofast(*args): return preloaded.run(['-m', 'zoofast.cli', *args], tmp_path, env)
    res = zoofast('finetune', path, '--label', 'winding', '--task', 'ordered', '--encoder', NET, '--random-weights',
                  '--size', 32, '--epochs', 1, '--save-dir', 'run')
    assert res.returncode==0, res.stderr
    assert (tmp_path/'run'/'report.html').exists()
    res = zoofast('predict', 'run', path, '--out', 'preds.csv')
    assert res.returncode==0, res.stderr
    assert {'winding_pred', 'winding_0', 'winding_3'}<=set(pd.read_csv(tmp_path/'preds.csv'))
    res = zoofast('report', 'run')
    assert res.returncode==0, res.stderr
    res = zoofast('finetune', path, '--label', 'winding', '--task', 'orderd', '--encoder', NET, '--save-dir', 'other')
    assert res.returncode==2 and 'ordered' in res.stderr and 'Traceback' not in res.stderr

def test_a_broken_package_is_named(tmp_path, monkeypatch):
    (tmp_path/'broken-1.0.dist-info').mkdir()
    (tmp_path/'broken-1.0.dist-info'/'METADATA').write_text('Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n')
    (tmp_path/'broken-1.0.dist-info'/'entry_points.txt').write_text('[zoofast.tasks]\ncracked = no_such_module:Task\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match='cracked.*no_such_module'): task_named('cracked')

@pytest.mark.parametrize('mod', [m for m in SRC if not m.startswith('tasks.')])
def test_nobody_asks_a_task_for_its_kind(mod):
    kinds = [o for o in ast.walk(TREES[mod]) if isinstance(o, ast.Attribute) and o.attr=='kind']
    asked = [f'{mod}:{o.lineno} {ast.unparse(o)}' for o in kinds if 'task' in ast.unparse(o.value)]
    assert not asked, f'{asked}: ask the task itself'
