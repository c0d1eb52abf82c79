"All mistakes of a command are said together, in its own words, before an image is read and torch is loaded"
import re, shlex
import pandas as pd, pytest, torch
from zoofast.all import GalaxyDataLoaders, ImageReader, check_catalog, predict_catalog, read_catalog, represent
from zoofast.all import split_catalog
from zoofast.core.errors import CatalogError

HEAVY = {'torch', 'fastai', 'timm'}

@pytest.fixture(scope='module')
def place(survey, tmp_path_factory):
    "A folder with a catalogue, the same with other names of columns, a file, and an empty folder"
    d = tmp_path_factory.mktemp('place')
    df = survey[1].assign(objid=range(60), host=[f'NGC {i}' for i in range(60)])
    df.to_csv(d/'c.csv', index=False)
    df.rename(columns=dict(id_str='name', file_loc='path')).to_csv(d/'other.csv', index=False)
    (d/'file').write_text('no folder')
    (d/'empty').mkdir()
    (d/'bad.yaml').write_text('method: luck\n')
    return d

@pytest.fixture(scope='module')
def typed(run_zoofast, place):
    "`typed('check c.csv')`: exit code, the lines that are said, and which heavy packages were loaded"
    def _typed(line):
        res = run_zoofast(*shlex.split(line), cwd=place, env={'PYTHONPROFILEIMPORTTIME': '1'})
        lines = res.stderr.splitlines()
        loaded = {o.split('|')[-1].strip() for o in lines if o.startswith('import time:')}
        assert 'Traceback' not in res.stderr and 'typer' in loaded
        return res.returncode,[o for o in lines if not o.startswith('import time:')],HEAVY&loaded
    return _typed

# What is typed, and what each line must hold
ASKED = 'finetune c.csv --label morphology --save-dir run'
LINES = {
    f'{ASKED} --encoder resnet18 --epochs -1 --size 4 --layer-decay 3':
        ['--epochs -1 must be', '--layer-decay 3', '--size 4 must be a whole number from 8'],
    f'{ASKED} --encoder resnet81 --epochs 0 --freeze-epochs 0 --weights none.pth':
        ['did you mean resnet18', 'no file none.pth', 'nothing would be trained'],
    f'{ASKED} --encoder resnet18.a1_in1 --valid 0.6 --test 0.6':
        ["did you mean 'a1_in1k'", '--valid 0.6 and --test 0.6'],
    'finetune c.csv --label shape --label has_bra --encoder runs/none --save-dir run --group-col field':
        ["'runs/none': there is no", "no column 'shape'", "did you mean 'has_bar'", "no column 'field'"],
    'finetune other.csv --label morphology --encoder local-dir:gone --save-dir file/run --sampling w':
        ['file/run cannot be written', 'gone/config.json', "'id_str'.*--id-col", "'file_loc'.*--file-col", "'w'"],
    'finetune gone.csv --label morphology --encoder hf_hub:zoobot --task guess --save-dir run':
        ["--task guess is not known", 'hf_hub:user/name', 'no such catalogue'],
    f'{ASKED} --encoder empty --mixup 1 --cutmix 1 --resume --overwrite':
        ['empty holds no bundle', '--resume goes on', '--mixup 1.0, --cutmix 1.0'],
    f'{ASKED} --encoder resnet18 --augment cats --loss-func hope --class-weights even --wandb always --cache disc':
        ['--loss-func hope', '--class-weights even', '--augment cats', '--cache disc', '--wandb always'],
    f'{ASKED} --encoder resnet18 --stretch loud --crop 1.5 --scheduler-kwargs cosine --opt-kwargs \'{{"lr": 1}}\'':
        ['--scheduler-kwargs', '--crop 1.5', '--stretch loud', "'lr' is set by --learning-rate"],
    'finetune c.csv --schema decals --label morphology --encoder resnet18 --save-dir run --calibrate':
        ['need no calibration', 'leave out --label', "no schema 'decals'"],
    'finetune c.csv --labell morphology --encoder resnet18 --epochs five --size=-1 --save-dir run':
        ['--labell.*--label', '--epochs five must be a whole number', '--size -1'],
    'finetune --label morphology --epochs five': ['--epochs five', 'catalog', '--save-dir', '--help'],
    'finetune "" --label "" --encoder resnet18 --save-dir=':
        ['one of the words is empty', '--label is empty', '--save-dir is empty', '--help'],
    'finetune c.csv --label objid --encoder resnet18 --save-dir run':
        ["'objid' has 60 different whole numbers.*an identifier.*--task regression"],
    'finetune c.csv --label host --encoder resnet18 --save-dir run': ["'host' has 60 different values.*an identifier"],
    'finetune c.csv --label id_str --encoder resnet18 --save-dir run': ['--label id_str.*names the galaxies'],
    f'{ASKED} --settings bad.yaml': ["'method' is not known"],
    'check c.csv --label shape --write bad.txt --size 2 --stretch loud':
        ['--write bad.txt', '--size 2', '--stretch loud', "no column 'shape'"],
    'check c.csv --label host': ["'host'.*an identifier"],
    'predict gone other.csv --out p.xlsx --tta 9 --engine fast --batch-size 0 --columns nope':
        ['gone: there is no such folder', '--batch-size 0', '--engine fast', '--out p.xlsx', "'nope'", '--tta 9'],
    'predict empty gone.csv --out p.csv --coverage 2 --on-bad hope --mc-dropout -1':
        ['empty holds no bundle', '--on-bad hope', 'no such catalogue', '--mc-dropout -1', '--coverage 2'],
    'predict hf_hub:rings c.csv --out file/p.csv': ['hf_hub:user/name', '--out file/p.csv cannot be written'],
    'represent resnet81 other.csv --out f.parquet --size 3 --channels 0':
        ['no encoder', '--size 3', '--channels 0', "'file_loc'.*", "'id_str'.*--id-col"],
    'similar gone.parquet a --k 0 --picture x.gif --out y.txt':
        ['--picture x.gif', '--k 0', '--out y.txt', 'gone.parquet'],
    'runs nowhere --sort a --compare a b --out x.txt': ['--sort and --compare', 'nowhere', '--out x.txt'],
    'report nowhere --out page.pdf --catalog gone.csv': ['page.pdf', 'gone.csv', 'nowhere'],
    'bundle empty --out file/x': ["no run's folder", 'file/x cannot be written'],
    'export nowhere --out m.pt': ['nowhere', '.onnx'],
    'push nowhere a/b/c': ['nowhere', 'user/name'],
    'from-zoobot gone.ckpt --out file/b --encoder resnet81 --size 2 --view wide --schema nope':
        ['gone.ckpt', 'resnet81', '--size 2', 'nope', '--view wide', 'file/b'],
    'cache --dir nowhere --older-than -1': ['--dir nowhere', '--older-than -1'],
    'demo --n 3 --size 2 --epochs -1 --encoder resnet81 --out file/d':
        ['--epochs -1', '--size 2', 'resnet81', '--n 3', 'file/d'],
    'sweep gone.yaml --catalog gone.csv --label ring --jobs 0 --encoder resnet81':
        ['--jobs 0', 'gone.yaml', 'resnet81', 'gone.csv'],
    'sweep bad.yaml --catalog c.csv --label shape --trials 0 --sampler luck --save-dir file/s':
        ['--trials 0', 'file/s', "'luck' is not known", "no column 'shape'"],
}

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('line', list(LINES))
def test_all_is_said_together_without_torch(line, typed, place):
    before = sorted(place.rglob('*'))
    code,said,loaded = typed(line)
    assert code==2 and not loaded, (loaded, said)
    assert len(said)==len(LINES[line]), said
    for text,wanted in zip(said, LINES[line]): assert re.search(wanted, text), (text, wanted)
    assert sorted(place.rglob('*'))==before, 'something was written'

@pytest.mark.slow
def test_a_command_without_mistakes_goes_on(run_zoofast, place):
    "And no command does its work with words that it does not know"
    res = run_zoofast('check', 'c.csv', '--label', 'morphology', cwd=place)
    assert res.returncode==0 and 'can be used' in res.stdout, res.stderr

def test_every_command_says_unknown_words():
    from typer.testing import CliRunner
    import zoofast.cli.main
    from zoofast.cli.app import app
    for c in zoofast.cli.main.COMMANDS:
        name = c.__name__.replace('_', '-')
        said = CliRunner().invoke(app, [name, '--no-such-thing'])
        assert said.exit_code==2 and '--no-such-thing' in said.stderr, (name, said.output)

@pytest.mark.slow
def test_what_needs_torch_is_said_together_too(survey, tmp_path, run_zoofast):
    res = run_zoofast('finetune', survey[0]/'catalog.csv', '--label', 'morphology', '--encoder', 'test_efficientnet',
                      '--random-weights', '--save-dir', tmp_path/'run', '--opt', 'adamv', '--augment', '{"noize": 1}',
                      env={'ZOOFAST_CACHE': str(tmp_path/'cache')})
    said = [o for o in res.stderr.splitlines() if o.startswith('zoofast:')]
    assert res.returncode==2 and len(said)==2 and 'noize' in said[0] and 'adamv' in said[1], res.stderr
    assert not (tmp_path/'cache').exists() and not (tmp_path/'run').exists()

def test_a_bundle_whose_weights_are_gone(run_zoofast, place, tmp_path, survey):
    from zoofast.all import galaxy_learner
    dls = GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=32, progress=False)
    bundle = galaxy_learner(dls, 'test_efficientnet', pretrained=False).save_bundle(tmp_path/'b')
    (bundle/'model.safetensors').unlink()
    res = run_zoofast('predict', bundle, 'c.csv', '--out', 'p.csv', cwd=place)
    assert res.returncode==2 and 'no file model.safetensors' in res.stderr and 'loading' not in res.stderr

# --- names of encoders without timm -----------------------------------------------------------------------------

@pytest.mark.slow
def test_names_of_encoders_are_those_of_timm():
    "As timm itself has them: none that it knows is refused, with or without the name of its weights"
    import timm
    from timm.models import _registry
    from zoofast.encoders.hub import check_encoder, timm_names
    assert set(timm_names())==set(_registry._model_entrypoints)
    with_weights = timm.list_models(pretrained=True)
    composed = [o for o in with_weights if 'quickgelu' in o or 'qwen' in o]       # whose names the source makes up
    for name in with_weights[::10]+composed+timm.list_models()[::10]: check_encoder(name)

# --- words of the command line are those of the code ------------------------------------------------------------

def test_words_are_those_that_there_are():
    from zoofast.data.augment import PRESETS
    from zoofast.encoders.engines import ENGINES
    from zoofast.images.stretch import STRETCHES
    from zoofast.tasks.infer import task_names
    from zoofast.training.parameters import PARAMETERS
    words = {k: set(PARAMETERS[k].words) for k in ('augment', 'stretch', 'task')}
    assert words=={'augment': {*PRESETS, 'none'}, 'stretch': set(STRETCHES), 'task': set(task_names())}
    assert ENGINES==('auto', 'torch', 'onnx', 'openvino')

@pytest.mark.parametrize('name', ['size', 'channels'])
def test_limits_are_the_readers(name):
    from zoofast.training.parameters import PARAMETERS
    row = PARAMETERS[name]
    for v in (row.low, row.high): ImageReader(**{name: v})
    for v in (row.low-1, row.high+1):
        with pytest.raises(ValueError, match=name): ImageReader(**{name: v})

# --- the same in Python: words of other libraries ---------------------------------------------------------------

CALLS = dict(from_catalog=GalaxyDataLoaders.from_catalog, read_catalog=read_catalog, check_catalog=check_catalog,
             split_catalog=split_catalog, predict_catalog=predict_catalog, represent=represent, ImageReader=ImageReader)
WORDS = [('from_catalog', 'bs', 'batch_size='), ('from_catalog', 'valid_pct', 'valid='),
         ('from_catalog', 'item_tfms', 'size='), ('from_catalog', 'batch_tfms', 'augment='),
         ('from_catalog', 'num_workers', 'cache='), ('from_catalog', 'path', 'image_dir='),
         ('from_catalog', 'y_col', 'label_cols='), ('from_catalog', 'learning_rate', 'galaxy_learner'),
         ('from_catalog', 'batchsize', "did you mean 'batch_size'"), ('read_catalog', 'imagedir', "'image_dir'"),
         ('read_catalog', 'sep', 'with pandas'), ('check_catalog', 'label', 'label_cols='),
         ('split_catalog', 'valid_pct', 'valid='), ('split_catalog', 'random_state', 'seed='),
         ('predict_catalog', 'bs', 'batch_size='), ('predict_catalog', 'engin', "did you mean 'engine'"),
         ('represent', 'encoder', 'model='), ('ImageReader', 'img_size', 'size='), ('ImageReader', 'sise', "'size'")]

@pytest.mark.parametrize('call,word,says', WORDS)
def test_words_of_others_are_explained(call, word, says):
    with pytest.raises(ValueError, match=re.escape(word)+'=.*'+re.escape(says)): CALLS[call](**{word: 1})

def test_signatures_are_kept():
    import inspect, pickle
    assert list(inspect.signature(read_catalog).parameters)[:4]==['source', 'image_dir', 'id_col', 'file_col']
    assert list(inspect.signature(ImageReader).parameters)[:2]==['size', 'channels']
    assert pickle.loads(pickle.dumps(ImageReader(64)))==ImageReader(64)
    assert torch.is_tensor(ImageReader(16)(torch.zeros(20, 20, 3, dtype=torch.uint8).numpy()))

@pytest.mark.parametrize('task', [True, False])
def test_an_identifier_is_called_that_once(survey, task):
    from zoofast.all import Classification
    df = survey[1].assign(host=[f'NGC {i}' for i in range(60)])
    with pytest.raises(CatalogError, match='an identifier') as e:
        GalaxyDataLoaders.from_catalog(df, None if task else 'host', Classification('host') if task else None, size=32)
    assert str(e.value).count('\n')==0 and 'only one galaxy' not in str(e.value)

def test_many_classes_are_no_identifier():
    df = pd.DataFrame(dict(kind=[f'type {i%20}' for i in range(60)], few=list('abcdefghi')+[None]*51))
    from zoofast.catalog.split import check_labels
    check_labels(df, ['kind', 'few'])
