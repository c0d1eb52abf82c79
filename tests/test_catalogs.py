"Catalogues as surveys hand them out"
import numpy as np, pandas as pd, pytest
from zoofast.core.errors import CatalogError
from zoofast.data.check import check_catalog
from zoofast.catalog.read import read_catalog
from zoofast.catalog.split import split_catalog
from zoofast.tasks.classes import Classification
from zoofast.tasks.infer import infer_task

def write(folder, text, name='c.csv', encoding='utf-8'):
    (folder/name).write_text(text, encoding=encoding)
    return folder/name

def test_a_comma_at_the_end_of_each_row_shifts_nothing(tmp_path):
    df = read_catalog(write(tmp_path, 'id_str,file_loc,ring\na,a.jpg,1,\nb,b.jpg,0,\n'))
    assert df.id_str.tolist()==['a', 'b'] and df.ring.tolist()==[1, 0] and df.file_loc[0].endswith('a.jpg')

def test_none_may_be_a_class_and_na_is_missing(tmp_path):
    df = read_catalog(write(tmp_path, 'id_str,file_loc,bar\na,a.jpg,None\nb,b.jpg,weak\nc,c.jpg,NA\nd,d.jpg,\n'))
    assert df.bar[:2].tolist()==['None', 'weak'] and df.bar[2:].isna().all()
    assert Classification('bar').fit(df).classes==['None', 'weak']

@pytest.mark.parametrize('dtype', ['Int64', 'boolean', 'Float64', 'string', 'category', 'object'])
def test_labels_of_every_type_with_gaps(dtype):
    if dtype in ('Int64', 'boolean', 'Float64'): col = pd.Series([1, 0, None, 1, 0, 1], dtype='Int64').astype(dtype)
    else: col = pd.Series(['a', 'b', None, 'a', 'b', 'a'], dtype=dtype)
    df = pd.DataFrame({'id_str': list('abcdef'), 'file_loc': [f'/{c}.jpg' for c in 'abcdef'], 'y': col})
    check = check_catalog(df, 'y', open_images=False)
    # none of the files is there; one row has no label either
    assert 'no label' in check.bad.reason[2] and len(check.bad)==6
    task = infer_task(df, 'y').fit(df)
    assert len(task.classes)==2 and task.encode(df).tolist().count(-1)==1

def test_galaxies_without_a_group_stay_single():
    files = [f'/{i}.jpg' for i in range(1000)]
    hosts = [None]*900+[f'h{i//10}' for i in range(100)]
    df = pd.DataFrame({'id_str': np.arange(1000).astype(str), 'file_loc': files, 'host': hosts})
    df = split_catalog(df, valid=0.2, group_col='host')
    assert 180<(df.split=='valid').sum()<220 and 100<(df.split[:900]=='valid').sum()
    assert (df[900:].groupby('host').split.nunique()==1).all()

def test_a_file_in_two_splits_is_refused():
    df = pd.DataFrame({'id_str': list('ab'), 'file_loc': ['/a.jpg']*2, 'split': ['train', 'valid']})
    with pytest.raises(CatalogError, match='more than one of'): split_catalog(df)

def test_a_class_without_training_galaxies_is_refused(survey):
    from zoofast.data.loaders import GalaxyDataLoaders
    df = survey[1].assign(split=np.where(survey[1].morphology=='ring', 'valid', 'train'))
    with pytest.raises(CatalogError, match="no galaxy of the class 'ring'"):
        GalaxyDataLoaders.from_catalog(df, 'morphology', size=64, progress=False)

@pytest.mark.parametrize('labels', [dict(y=['pred', 'b']*3), dict(id=['str', 'b']*3)])
def test_columns_that_would_clash_are_refused(labels):
    df = pd.DataFrame({'id_str': list('abcdef'), **labels})
    with pytest.raises(CatalogError, match='rename'): Classification(list(labels)[0]).fit(df)

def test_skipped_rows_leave_no_class_behind(survey):
    from zoofast.data.loaders import GalaxyDataLoaders
    df = survey[1].copy()
    df.loc[0, 'morphology'] = 'sprial'
    with pytest.warns(UserWarning, match='sprial'):
        dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=64, on_bad='skip', progress=False)
    assert 'sprial' not in dls.task.classes and len(dls.catalog)==59

def test_warnings_after_reading_fits_in_threads(survey):
    "Reading with several threads leaves the program's warnings alone"
    import warnings
    from zoofast.images.reader import ImageReader
    from zoofast.data.store import ImageStore
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        ImageStore(survey[1].fits_loc, ImageReader(64), 'memory', progress=False)
        warnings.warn('mine')
    assert 'mine' in [str(o.message) for o in said]

def test_a_smaller_survey_leaves_no_files_of_a_larger_one(tmp_path):
    from zoofast.simulate import simulate_survey
    simulate_survey(tmp_path, n=6, size=32, progress=False)
    df = simulate_survey(tmp_path, n=4, size=32, fits=False, progress=False)
    assert len(list((tmp_path/'images').iterdir()))==4 and not list((tmp_path/'fits').iterdir()) and len(df)==4
