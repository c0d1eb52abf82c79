"Dozens of labels, paths that are made of columns, and numbers that stand for missing ones"
import numpy as np, pandas as pd, pytest
from PIL import Image
from typer.testing import CliRunner
from zoofast.catalog.read import read_catalog
from zoofast.catalog.split import matching_columns, split_catalog
from zoofast.core.errors import CatalogError
from zoofast.data.check import check_catalog
from zoofast.tasks.infer import infer_task

CLASSES = [f'Class{q}.{a}' for q in range(11, 0, -1) for a in (1, 2, 3)][:31]        # not in the order of the alphabet

@pytest.fixture(scope='module')
def zoo(tmp_path_factory):
    "A catalogue as that of the Galaxy Zoo challenge: an id, and a column for each answer"
    folder = tmp_path_factory.mktemp('zoo')
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.random((12, len(CLASSES))), columns=CLASSES)
    df.insert(0, 'GalaxyID', np.arange(12)+1237648720693755900)
    df.to_csv(folder/'train.csv', index=False)
    (folder/'images').mkdir()
    for i in df.GalaxyID:
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder/f'images/{i}.png')
    return folder

def zoofast(*words):
    from zoofast.cli.main import app
    return CliRunner().invoke(app, [str(o) for o in words])

# --- labels

def test_a_pattern_stands_for_columns_in_their_order(zoo):
    df = read_catalog(zoo/'train.csv', id_col='GalaxyID', files='images/{GalaxyID}.png')
    assert matching_columns(df, 'Class*')==CLASSES==infer_task(df, 'Class*').label_cols
    assert matching_columns(df, ['Class1.1', 'Class1.*'])==['Class1.1', 'Class1.2', 'Class1.3'][:sum(
        o.startswith('Class1.') for o in CLASSES)]
    assert split_catalog(df, 'Class*').split.value_counts().to_dict()=={'train': 10, 'valid': 2}
    assert len(check_catalog(df, 'Class*', open_images=False).ok)==12

def test_a_column_of_that_very_name_goes_first():
    df = pd.DataFrame({'id_str': ['a'], 'file_loc': ['a'], 'Class*': [1], 'Class1': [2]})
    assert matching_columns(df, 'Class*')==['Class*'] and matching_columns(df, '*')==['Class*', 'Class1']

@pytest.mark.parametrize('call', [infer_task, check_catalog, split_catalog])
def test_a_pattern_that_fits_nothing(call):
    df = pd.DataFrame({'id_str': ['a'], 'file_loc': ['a'], 'Class1': [2]})
    with pytest.raises(CatalogError, match=r"no column that fits 'Clas1\*'.*did you mean 'Class1'.*its columns are"):
        call(df, 'Clas1*')

def test_patterns_in_the_shell(zoo):
    look = ('check', zoo/'train.csv', '--id-col', 'GalaxyID', '--files', 'images/{GalaxyID}.png')
    ok = zoofast(*look, '--label', 'Class*')
    assert ok.exit_code==0, ok.output
    assert all(f'{c}: ' in ok.stdout for c in CLASSES) and 'all 12 rows' in ok.stdout
    bad = zoofast(*look, '--label', 'Klass*')
    assert bad.exit_code==2 and "no column that fits 'Klass*'" in bad.output
    bad = zoofast(*look[:-1], 'images/{Galaxy}.png')
    assert bad.exit_code==2 and "no column 'Galaxy'" in bad.output

def test_an_epoch_stays_a_line():
    from zoofast.cli.finetune import _epoch_line
    row = {'epoch': 0, 'train_loss': 0.5, 'valid_loss': 0.6, **{f'rmse_{c}': 0.1 for c in CLASSES},
           **{f'r2_{c}': 0.2 for c in CLASSES}}
    line = _epoch_line('epoch 1/5, training all', row, 120)
    assert len(line)<=120 and 'valid loss 0.600, rmse Class11.1 0.100' in line
    assert line.endswith(' more in history.csv')
    few = {'train_loss': 0.5, 'valid_loss': 0.6, 'accuracy': 0.9}
    assert _epoch_line('epoch 1/5', few, 60)=='  epoch 1/5: train loss 0.500, valid loss 0.600, accuracy 0.900'

# --- files

def test_paths_from_a_pattern(tmp_path):
    (tmp_path/'t.csv').write_text('GalaxyID,run,z\n0012,7,0.1\n0013,,0.2\n')
    df = read_catalog(tmp_path/'t.csv', id_col='GalaxyID', files='{run}/{GalaxyID}.jpg')
    assert df.file_loc.tolist()==[str(tmp_path/'7'/'0012.jpg'), ''] and df.z.dtype==float
    df = read_catalog(tmp_path/'t.csv', id_col='GalaxyID', files=['g/{GalaxyID}.fits', 'r/{GalaxyID}.fits'])
    assert df.file_loc[0]==f'{tmp_path}/g/0012.fits|{tmp_path}/r/0012.fits'
    with pytest.raises(CatalogError, match="no column 'Galaxy'.*did you mean 'GalaxyID'"):
        read_catalog(tmp_path/'t.csv', id_col='GalaxyID', files='{Galaxy}.jpg')
    with pytest.raises(CatalogError, match='give one of the two'):
        read_catalog(tmp_path/'t.csv', id_col='GalaxyID', file_col='run', files='{GalaxyID}.jpg')

@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'fits'])
def test_prediction_makes_the_same_paths(tmp_path, suffix):
    from zoofast.catalog.stream import CatalogStream
    from astropy.table import Table
    df = pd.DataFrame({'GalaxyID': np.arange(30)+1237648720693755900})
    path = tmp_path/f't.{suffix}'
    if suffix=='fits': Table.from_pandas(df).write(path)
    else: getattr(df, f'to_{suffix}')(path, index=False)
    asked = dict(id_col='GalaxyID', files='images/{GalaxyID}.jpg')
    s = CatalogStream(path, columns='all', **asked)
    got = pd.concat([s.rows(p, k*7).to_pandas() for k,p in s.pieces(7)])
    assert got.file_loc.tolist()==read_catalog(path, **asked).file_loc.tolist()
    assert got.file_loc.iloc[3]==str(tmp_path/'images/1237648720693755903.jpg')

def test_a_model_remembers_the_pattern(zoo):
    from zoofast.catalog.read import noted_columns, pick_columns
    df = read_catalog(zoo/'train.csv', id_col='GalaxyID', files='images/{GalaxyID}.png')
    known = noted_columns(df)
    assert known=={'id_col': 'GalaxyID', 'file_col': ['images/{GalaxyID}.png']}
    again = read_catalog(zoo/'train.csv', **pick_columns(zoo/'train.csv', before=known))
    assert again.file_loc.tolist()==df.file_loc.tolist()

# --- numbers that stand for missing ones

def labelled(values):
    n = range(len(values))
    return pd.DataFrame({'id_str': [f'J{i}' for i in n], 'file_loc': [f'{i}.jpg' for i in n], 'z': values})

@pytest.fixture
def usable(tmp_path):
    def make(values):
        for i in range(len(values)): (tmp_path/f'{i}.jpg').write_bytes(b'x')
        return read_catalog(labelled(values), image_dir=tmp_path)
    return make

@pytest.mark.parametrize('value', [-99, -999., -9999, 99.99, 999.9, 1e20, -32768, -1e30])
def test_a_number_that_means_missing_is_suspect(usable, value):
    res = check_catalog(usable([0.1, 0.25, value, 0.31, np.nan, value, 0.2]), 'z', open_images=False)
    assert res.suspect.id_str.tolist()==['J2', 'J5'] and res.bad.id_str.tolist()==['J4']
    assert all("'z' is " in o and 'far from the others, 0.1 to 0.31' in o for o in res.suspect.reason)

def test_a_class_that_means_missing_is_suspect(usable):
    res = check_catalog(usable([0, 1, 1, -99, 0, -99]), 'z', open_images=False)
    assert res.suspect.id_str.tolist()==['J3', 'J5'] and not len(res.bad)

@pytest.mark.parametrize('values', [[-300., -99, 250, 12], [80, 99, 120, 101], [0.1, 5., 0.2, 40.], [-1, 0, 1, -1]])
def test_numbers_among_others_are_none(usable, values):
    assert not len(check_catalog(usable([*values, *values]), 'z', open_images=False).suspect)
