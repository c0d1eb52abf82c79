"One table of training parameters: whatever takes, checks, lists or tries a parameter has it from there"
import inspect, re, subprocess, sys
from pathlib import Path
import pytest
from typer.testing import CliRunner
from zoofast.training.parameters import PARAMETERS, ParameterInfo, arguments, rows_of

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = [p for p in PARAMETERS.values() if p.kind!='object']
EMPTY = inspect.Parameter.empty
by_name = pytest.mark.parametrize('row', OPTIONS, ids=lambda p: p.name)

def signature(f, *but): return {k: p.default for k,p in inspect.signature(f).parameters.items() if k not in but}

def in_python(row): return not row.default if row.opposite else row.default

def test_the_table_loads_no_torch():
    heavy = "{'torch', 'fastai', 'timm', 'pandas'}"
    code = f"import sys, zoofast.training.parameters; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)

# --- the Python calls

def test_galaxy_learner_takes_the_rows_and_nothing_else():
    from zoofast.training.finetune import galaxy_learner
    given = signature(galaxy_learner, 'dls', 'timm_kwargs')
    assert set(given)=={p.argument for p in rows_of('galaxy_learner')}
    for p in rows_of('galaxy_learner'):
        if p.name!='encoder': assert given[p.argument]==in_python(p), p.name

def test_galaxy_learner_has_a_comment_for_each():
    from zoofast.training.finetune import galaxy_learner
    from fastcore.docments import docments
    said = docments(galaxy_learner)
    for p in rows_of('galaxy_learner'): assert said[p.argument], p.name

def test_fine_tune_takes_the_rows():
    from zoofast.training.learner import GalaxyLearner
    already = ('self', 'base_lr', 'resume', 'kwargs')                   # the learner has those
    given = signature(GalaxyLearner.fine_tune, *already)
    assert set(given)=={p.name for p in rows_of('fine_tune')}
    for p in rows_of('fine_tune'):
        if p.name!='epochs': assert given[p.name]==p.default, p.name

def test_the_check_before_images_are_read_takes_the_rows():
    from zoofast.training.finetune import check_training
    assert {p.name for p in rows_of('fine_tune')}|{'encoder', 'params'}<=set(signature(check_training))

@pytest.mark.parametrize('call', ['from_catalog', 'ImageReader'])
def test_data_and_images_take_the_rows(call):
    from zoofast.data.loaders import GalaxyDataLoaders
    from zoofast.images.reader import ImageReader
    given = signature(dict(from_catalog=GalaxyDataLoaders.from_catalog, ImageReader=ImageReader)[call])
    for p in rows_of(call):
        assert p.argument in given, p.name
        default = p.default[0] if p.kind=='columns' else p.default      # a shell may repeat an option
        if p.name!='split_seed': assert given[p.argument]==default, p.name

# --- the command line

def test_finetune_has_the_options_and_nothing_else():
    from zoofast.cli.main import finetune
    assert set(signature(finetune))=={p.name for p in OPTIONS}|{'settings'}

@by_name
def test_an_option_is_its_row(row):
    "Name, default, help"
    import typer.main
    from zoofast.cli.main import app
    group = typer.main.get_command(app)
    o = next(o for o in group.commands['finetune'].params if o.name==row.name)
    if row.name=='catalog': return
    assert row.option in o.opts and o.help==row.help
    if row.name!='save_dir': assert o.default==row.default and not o.required

@by_name
def test_help_shows_it_in_its_group(row):
    from zoofast.cli.main import app
    if row.name=='catalog': return
    said = CliRunner().invoke(app, ['finetune', '--help'], env={'COLUMNS': '300', 'TERMINAL_WIDTH': '300'}).stdout
    part = said.split(f'\n{row.group}:\n')[1].split('\n\n')[0]
    assert re.search(rf'{row.option}[ \n]', part)

def test_names_do_not_change():
    "Options that scripts use"
    known = """--save-dir --encoder --label --settings --task --schema --unit-interval --epochs --freeze-epochs --size
    --batch-size --learning-rate --head-lr --layer-decay --weight-decay --head-dropout-prob --training-mode --n-blocks
    --weights --random-weights --fit --scheduler-kwargs --opt --opt-kwargs --loss-func --class-weights --label-smoothing
    --l1 --clip-grad --accumulate --ema --mixup --cutmix --precision --channels-last --no-channels-last --compile
    --cache-features --no-cache-features --views --monitor --patience --keep-best --no-keep-best --resume --overwrite
    --sampling --profile --unlabelled
    --wandb --wandb-kwargs --calibrate --processes --bn-stats --blocks --augment --flip --no-flip --valid --test
    --split-seed --channels --stretch --bands --hdu --cutout --align --no-align --fit-stretch
    --dtype --crop --group-col --cache --on-bad --image-dir
    --id-col --file-col --files --table-hdu --tiles --seed --no-report --positive --purity --completeness""".split()
    import typer.main
    from zoofast.cli.main import app
    there = {n for o in typer.main.get_command(app).commands['finetune'].params for n in (*o.opts, *o.secondary_opts)}
    assert set(known)==there-{'catalog', '--help', '-h'}

@pytest.mark.parametrize('more', [
    [],
    ['--no-align', '--cutout', '20 arcsec', '--unit-interval', '--bands', 'g,r', '--hdu', 'SCI,2', '--dtype',
     'float16'],
    ['--valid', '.3', '--test', '.1', '--files', 'images/{a}.jpg', '--table-hdu', '2', '--crop', '.5',
     '--cache', 'none'],
    ['--tiles', 'g=/t/*_g.fits', '--tiles', 'r=/t/*_r.fits', '--cutout', '64'],
    ['--file-col', 'g,r', '--label', 'size', '--task', 'regression', '--on-bad', 'skip', '--group-col', 'night']])
def test_an_agent_of_wandb_starts_finetune_with_what_the_sweep_was_given(more):
    import typer.main
    from zoofast.cli.main import app
    from zoofast.cli.sweep import finetune_command
    from zoofast.sweep.settings import read_settings
    commands = typer.main.get_command(app).commands
    def read(command, words): return commands[command].make_context(command, words).params
    asked = ['settings.yaml', '--catalog', '/rings.csv', '--label', 'ring', '--encoder', 'resnet18']
    given = read('sweep', [*asked, *more])
    tried = dict(l1=dict(values=[0, 1]))
    settings = read_settings(dict(method='random', metric=dict(name='accuracy'), parameters=tried))
    words = finetune_command(settings, given, '/runs')
    told = read('finetune', words[words.index('finetune')+1:])
    same = [k for k in given if k in told and k not in ('settings', 'save_dir', 'wandb')]
    assert {'align', 'cutout', 'unit_interval', 'label'}<=set(same)
    assert {k: told[k] for k in same if given[k] is not None}=={k: given[k] for k in same if given[k] is not None}

# --- settings and trials

@by_name
def test_settings_know_it(row):
    from zoofast.sweep.settings import parameter_name
    if row.can_be_tried:
        assert parameter_name(row.name)==row.name
        assert all(parameter_name(o)==row.name for o in row.aliases)
    else:
        with pytest.raises(ValueError, match=f'the same for all trials.*{row.option}'): parameter_name(row.name)
    for o in row.elsewhere:
        with pytest.raises(ValueError, match='here it is'): parameter_name(o)

def test_what_picks_galaxies_cannot_be_tried():
    pick = {p.name for p in OPTIONS if p.picks_galaxies}
    assert {'valid', 'test', 'split_seed', 'group_col', 'label', 'catalog'}<=pick
    assert not [p.name for p in OPTIONS if p.picks_galaxies and p.can_be_tried]

def test_the_model_keeps_what_trials_may_differ_in(survey):
    "In `learn.params`, which config.yaml and W&B's config have"
    from zoofast.training.finetune import galaxy_learner
    from zoofast.training.run_folder import run_config
    from zoofast.data.loaders import GalaxyDataLoaders
    dls = GalaxyDataLoaders.from_catalog(survey[1], 'morphology', size=32, progress=False)
    learn = galaxy_learner(dls, 'test_efficientnet', pretrained=False, layer_decay=0.5)
    kept = {p.argument for p in rows_of('galaxy_learner') if p.can_be_tried}
    assert kept-{'pretrained', 'weights'}|{'size', 'batch_size'}==set(learn.params) and learn.params['layer_decay']==0.5
    assert kept<=set(run_config(learn)['parameters'])

# --- one more parameter

@pytest.fixture
def one_more(monkeypatch):
    row = ParameterInfo('spiral_boost', 0.1, 'number', 'How much spirals count.', low=0, high=2, elsewhere=('boost',),
                        group='The loss')
    monkeypatch.setitem(PARAMETERS, row.name, row)
    return row

def test_one_row_is_an_option_a_setting_and_an_argument(one_more):
    "Nothing else has to be told, but the place that uses it"
    import typer
    from zoofast.cli.options import with_options
    from zoofast.sweep.settings import parameter_name, read_settings, run_parameters
    app = typer.Typer()
    app.command()(with_options(*PARAMETERS)(lambda **given: print(arguments(given, 'galaxy_learner')['spiral_boost'])))
    assert CliRunner().invoke(app, ['--spiral-boost', '0.5']).stdout=='0.5\n'
    assert 'How much spirals count.' in CliRunner().invoke(app, ['--help']).stdout
    s = read_settings(dict(method='random', parameters=dict(spiral_boost=dict(min=0, max=1.5))))
    assert arguments(run_parameters(s.random(0)), 'galaxy_learner')==s.random(0)
    with pytest.raises(ValueError, match='max 3 must be from 0 to 2'):
        read_settings(dict(method='random', parameters=dict(spiral_boost=dict(min=0, max=3))))
    with pytest.raises(ValueError, match='here it is spiral_boost'): parameter_name('boost')

def test_one_row_is_a_limit_of_the_learner(one_more):
    from zoofast.training.finetune import _check, galaxy_learner
    given = signature(galaxy_learner, 'dls', 'encoder', 'timm_kwargs')
    _check(given|dict(spiral_boost=1))
    with pytest.raises(ValueError, match='spiral_boost=3 must be a number from 0 to 2'):
        _check(given|dict(spiral_boost=3))

@pytest.mark.parametrize('name', ['clip_grad', 'label_smoothing', 'head_dropout_prob', 'bn_stats', 'cutmix'])
def test_shell_sweep_and_runs_do_not_name_it(name):
    "What they have of a parameter they have from the table"
    for folder in ('cli', 'sweep'):
        for path in (ROOT/'zoofast'/folder).glob('*.py'): assert name not in path.read_text(encoding='utf-8'), path
    for name_of_file in ('run_folder', 'runs', 'wandb'):
        path = ROOT/'zoofast'/'training'/f'{name_of_file}.py'
        assert name not in path.read_text(encoding='utf-8'), path

def test_finetune_fits_on_a_screen():
    import ast
    src = (ROOT/'zoofast'/'cli'/'finetune.py').read_text(encoding='utf-8')
    f = next(o for o in ast.parse(src).body if isinstance(o, ast.FunctionDef) and o.name=='finetune')
    assert f.end_lineno-f.lineno<30
