"What a model remembers of its catalogue, and the hints that commands end with"
import html, json, os, re, shlex, subprocess, sys
import pandas as pd, pytest
from zoofast.all import CatalogError, GalaxyDataLoaders, galaxy_learner, load_bundle, predict_catalog
from zoofast.all import read_catalog, represent

@pytest.fixture(scope='module')
def other(survey, tmp_path_factory):
    "A folder with a space in its name, and in it the survey's catalogue with columns of other names"
    folder = tmp_path_factory.mktemp('my survey')/"Ann's galaxies"
    folder.mkdir()
    t = survey[1].rename(columns={'id_str': 'object id', 'file_loc': 'path'})[['object id', 'path', 'morphology']]
    t.to_csv(folder/'my catalogue.csv', index=False)
    return folder

def trained(catalog, **kwargs):
    dls = GalaxyDataLoaders.from_catalog(catalog, 'morphology', size=32, progress=False, **kwargs)
    return galaxy_learner(dls, 'test_convnext', pretrained=False)

OTHER = {'id_col': 'object id', 'file_col': ['path']}

def read(other): return read_catalog(other/'my catalogue.csv', id_col='object id', file_col='path')

CATALOGUES = dict(
    path=lambda o: (o/'my catalogue.csv', dict(id_col='object id', file_col='path')),
    read=lambda o: (read(o), {}),
    sample=lambda o: (read(o).sample(50, random_state=1), {}),
    merged=lambda o: (read(o).merge(pd.DataFrame({'id_str': read(o).id_str, 'more': 1.5})), {}))

@pytest.mark.parametrize('how', CATALOGUES)
def test_a_learner_knows_the_columns_of_its_catalogue(how, other, tmp_path):
    catalog,kwargs = CATALOGUES[how](other)
    learn = trained(catalog, **kwargs)
    assert learn.dls.catalog_columns==OTHER
    if how!='merged': return
    again = predict_catalog(learn, other/'my catalogue.csv', progress=False)
    model = load_bundle(learn.save_bundle(tmp_path/'a bundle'))
    assert model.catalog_columns==OTHER
    for m in (model, tmp_path/'a bundle'):
        got = predict_catalog(m, other/'my catalogue.csv', progress=False)
        pd.testing.assert_frame_equal(got, again)
        assert got.id_str.tolist()==read(other).id_str.tolist() and got.error.isna().all()
        assert len(represent(m, pd.read_csv(other/'my catalogue.csv', dtype=str), progress=False))==len(got)
    table = pd.read_csv(other/'my catalogue.csv', dtype=str)
    assert len(learn.dls.test_dl(table).dataset)==len(table)

def test_who_names_a_column_has_the_last_word(other, tmp_path):
    learn = trained(read(other))
    both = read(other)[['id_str', 'file_loc']].assign(**{'object id': 'another', 'path': 'nowhere', 'n': range(60)})
    assert predict_catalog(learn, both, progress=False).id_str.tolist()==both.id_str.tolist()
    got = predict_catalog(learn, both, id_col='n', progress=False)
    assert got.id_str.tolist()==[str(i) for i in range(60)] and got.error.isna().all()
    with pytest.raises(CatalogError, match="no column 'file_loc', nor 'path' as in .*are: id_str; .* with file_col="):
        predict_catalog(learn, both[['id_str']], progress=False)
    with pytest.raises(CatalogError, match="no column 'nme'"): predict_catalog(learn, both, id_col='nme')

def test_a_bundle_without_the_names_loads_as_before(other, tmp_path):
    bundle = trained(read(other)).save_bundle(tmp_path/'bundle')
    config = json.loads((bundle/'config.json').read_text())
    for k in OTHER: del config[k]
    (bundle/'config.json').write_text(json.dumps(config))
    assert load_bundle(bundle).catalog_columns=={}
    assert predict_catalog(bundle, read(other), progress=False).error.isna().all()
    with pytest.raises(CatalogError, match="has no column 'id_str'"): predict_catalog(bundle, other/'my catalogue.csv')
    for wrong in ({'id_col': 7}, {'file_col': 'path'}, {'file_col': []}, {'id_col': {'a': 1}}):
        (bundle/'config.json').write_text(json.dumps({**config, **wrong}))
        with pytest.raises(ValueError, match="'id_col' must be a column's name"): load_bundle(bundle)

@pytest.fixture(scope='module')
def shell(other, root, tmp_path_factory):
    "`shell(line)`: a line as it is pasted into a shell, where `zoofast` is a command; in a folder with a catalogue"
    bin = tmp_path_factory.mktemp('bin')/'zoofast'
    bin.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m zoofast.cli "$@"\n')
    bin.chmod(0o755)
    path = os.pathsep.join(o for o in (str(root), os.environ.get('PYTHONPATH')) if o)
    env = {**os.environ, 'PYTHONPATH': path, 'PATH': f'{bin.parent}{os.pathsep}{os.environ["PATH"]}'}
    images = read(other).file_loc
    moved = pd.read_csv(other/'my catalogue.csv', dtype=str).assign(path=[os.path.basename(o) for o in images])
    moved.to_csv(other/'moved.csv', index=False)
    (other/'my images').symlink_to(os.path.dirname(images[0]))
    def run(line): return subprocess.run(['sh', '-c', line], cwd=other, env=env, capture_output=True, text=True)
    return run

def hints(text):
    "The commands in what is printed, or on a page"
    lines = html.unescape(re.sub(r'</?(?:pre|code)>', '', text)).splitlines()
    return [o.strip() for o in lines if re.match(r'\s*zoofast \w', o) and '--epochs' not in o]

SMALL = '--encoder test_convnext --random-weights --size 32'
READ = "--label morphology --id-col 'object id' --file-col path --image-dir './my images'"
SETTINGS = {'method': 'random', 'metric': {'name': 'valid_loss', 'goal': 'minimize'},
            'parameters': {'layer_decay': {'values': [.5, 1.]}, 'epochs': {'value': 0},
                           'random_weights': {'value': True}}}
TRAIN = f"zoofast finetune moved.csv {READ} {SMALL} --epochs 0"

COMMANDS = {
    'finetune': f"{TRAIN} --save-dir \"my runs/it's a\"",
    'bundle': "zoofast bundle \"my runs/it's a\"",
    'report': "zoofast report \"my runs/it's a\" --out 'my page.html' && cat 'my page.html'",
    'sweep': f"zoofast sweep 'my settings.json' --catalog moved.csv {READ} --encoder test_convnext --size 32 "
             "--trials 1 --freeze-epochs 1 --best --save-dir 'my runs/sweep'",
    'demo': f"zoofast demo --out 'my demo' --n 60 --epochs 0 {SMALL}"}

@pytest.mark.slow
@pytest.mark.parametrize('name', COMMANDS)
def test_hints_can_be_pasted(name, shell, other):
    (other/'my settings.json').write_text(json.dumps(SETTINGS))
    if name in ('bundle', 'report') and not (other/'my runs'/"it's a").exists(): shell(COMMANDS['finetune'])
    res = shell(COMMANDS[name])
    assert res.returncode==0, res.stderr
    found = hints(res.stdout)
    assert len(found)=={'demo': 4, 'report': 2}.get(name, 1), res.stdout[-2000:]
    for o in found:
        done = shell(o)
        assert done.returncode==0, (o, done.stderr)
        if 'predict' in o.split()[1]: assert '60 rows written' in done.stdout and 'could not be read' not in done.stdout

@pytest.mark.slow
def test_the_shell_says_which_options_name_the_columns(shell, other):
    pd.DataFrame({'n': ['1']}).to_csv(other/'none.csv', index=False)
    if not (other/'my runs'/"it's a").exists(): shell(COMMANDS['finetune'])
    res = shell("zoofast predict \"my runs/it's a\" none.csv --out p.csv")
    assert res.returncode==2 and "'id_str'" in res.stderr and "'object id'" in res.stderr and '--id-col' in res.stderr
    assert 'id_col=' not in res.stderr
