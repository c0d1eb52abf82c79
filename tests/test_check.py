"What check_catalog and `zoofast check` find in a catalogue, and what they leave alone"
import shutil, threading, time
import numpy as np, pandas as pd, pytest
from PIL import Image
from zoofast.core.errors import CatalogError
from zoofast.data.check import check_catalog
from zoofast.catalog.read import read_catalog
from zoofast.catalog.split import split_catalog
from zoofast.images.reader import ImageReader

@pytest.fixture
def clean(survey, tmp_path):
    "Twenty galaxies of four classes, in files of their own that may be broken"
    df = survey[1].head(20).copy()
    for i,f in enumerate(df.file_loc): shutil.copy(f, tmp_path/f'{i}.jpg')
    return df[['id_str']].assign(file_loc=[str(tmp_path/f'{i}.jpg') for i in range(20)], kind=list('abcd')*5)

def reasons(rows): return dict(zip(rows.id_str, rows.reason))

def test_nothing_is_said_of_a_clean_catalogue(clean):
    check = check_catalog(clean, 'kind')
    assert check.bad.empty and check.suspect.empty
    assert list(check.bad)==list(check.suspect)==['id_str', 'file_loc', 'reason']
    assert check.ok.equals(clean) and check.raise_if_bad() is check
    assert repr(check)=='all 20 rows of the catalogue can be used'

def test_images_are_read_as_training_does(clean, tmp_path):
    "What an ImageReader refuses is bad although Pillow opens it, and the other way round"
    from astropy.io import fits
    fits.PrimaryHDU(np.full((30,30), np.nan)).writeto(tmp_path/'nan.fits')
    fits.PrimaryHDU(np.random.default_rng(0).normal(size=(30,30))).writeto(tmp_path/'good.fits')
    Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (30,30), dtype=np.uint16)).save(tmp_path/'deep.png')
    (tmp_path/'page.jpg').write_text('<html>')
    for i,f in enumerate(('nan.fits', 'good.fits', 'deep.png', 'page.jpg')): clean.loc[i, 'file_loc'] = str(tmp_path/f)
    said = reasons(check_catalog(clean).bad)
    want = {}
    for i in range(4):
        try: ImageReader()(clean.file_loc[i])
        except ValueError as e: want[clean.id_str[i]] = str(e)
    assert said==want and set(want)=={clean.id_str[0], clean.id_str[3]}
    assert said==reasons(check_catalog(clean, open_images=ImageReader()).bad)

def test_each_image_is_read_once_and_in_parallel(clean):
    seen,names = [],set()
    def look_at(f):
        seen.append(f); names.add(threading.get_ident()); time.sleep(0.01)
    df = pd.concat([clean, clean.assign(id_str=clean.id_str+'b')], ignore_index=True)
    check_catalog(df, open_images=look_at)
    assert sorted(seen)==sorted(clean.file_loc) and (len(names)>1 or __import__('os').cpu_count()==1)

@pytest.mark.parametrize('gives', ['pixels', 'tensor', 'digest'])
def test_a_callable_may_give_pixels_or_what_is_known_of_them(clean, gives):
    import torch
    from zoofast.core.files import fingerprint
    def opener(f):
        i = int(f.split('/')[-1][:-4])
        px = np.full((3,8,8), i//2, dtype=np.uint8)                      # two by two the same, and constant
        return {'pixels': px, 'tensor': torch.from_numpy(px), 'digest': fingerprint(px)}[gives]
    said = reasons(check_catalog(clean, open_images=opener).suspect)
    assert len(said)==20 and sum('the same picture' in o for o in said.values())==10
    assert all('nothing to see' in o for o in said.values())
    assert check_catalog(clean, open_images=lambda f: None).suspect.empty

def test_the_same_picture_with_two_labels(clean):
    "Found although the files differ in name and format; both rows are bad, and each names the other"
    Image.open(clean.file_loc[0]).save(png := clean.file_loc[5].replace('jpg', 'png'))
    clean.loc[5, 'file_loc'] = png                                       # row 1 is an a, row 6 a b
    check = check_catalog(clean, 'kind')
    a,b = clean.id_str[0],clean.id_str[5]
    assert reasons(check.bad)=={a: f'the same picture has another label in row 6 ({b})',
                                b: f'the same picture has another label in row 1 ({a})'}
    assert check.suspect.empty and len(check.ok)==18
    clean.loc[5, 'kind'] = None                                          # no label contradicts none
    assert reasons(check_catalog(clean, 'kind').bad)=={clean.id_str[5]: "no label in 'kind'"}
    clean.loc[5, 'kind'] = 'a'
    check = check_catalog(clean, 'kind')
    assert check.bad.empty and reasons(check.suspect)=={b: f'the same picture as row 1 ({a})'}

def test_the_same_file_with_two_labels(clean):
    clean.loc[[6, 9], 'file_loc'] = clean.file_loc[1]                    # c and b, where row 2 is a b
    for how in (False, True):
        said = reasons(check_catalog(clean, 'kind', open_images=how).bad)
        pairs = ((1, 6), (6, 1), (9, 6))
        other = lambda j: f'the same file has another label in row {j+1} ({clean.id_str[j]})'
        assert said=={clean.id_str[i]: other(j) for i,j in pairs}
    clean.loc[6, 'kind'] = None                                          # no label contradicts none
    assert reasons(check_catalog(clean, 'kind').bad)=={clean.id_str[6]: "no label in 'kind'"}

def test_every_leak_is_found(clean):
    clean['split'] = ['train']*12+['valid']*4+['test']*4
    for i,j in ((12, 0), (13, 0), (16, 4), (17, 15)): shutil.copy(clean.file_loc[j], clean.file_loc[i])
    clean.loc[19, 'file_loc'],clean['kind'] = clean.file_loc[2],'a'
    said = reasons(check_catalog(clean).suspect)
    def leak(what, i, j):
        where = f'a leak: that one is in {clean.split[j]!r}, this one in {clean.split[i]!r}'
        return f'the same {what} as row {j+1} ({clean.id_str[j]}), {where}'
    copies = ((12, 0), (13, 0), (16, 4), (17, 15), (19, 2))
    assert said=={clean.id_str[i]: leak('file' if i==19 else 'picture', i, j) for i,j in copies}
    # without opening, at least the same file
    assert {clean.id_str[19]}==set(reasons(check_catalog(clean, open_images=False).suspect))

def test_all_leaks_in_many_copies(tmp_path):
    "Every row with the picture of an earlier row is named, as a leak if an earlier one is in another split"
    rng,files = np.random.default_rng(0),[str(tmp_path/f'{i}.jpg') for i in range(12)]
    for f in files: open(f, 'w').close()
    for _ in range(50):
        picture,split = rng.integers(0, 4, 12),rng.choice(['train', 'valid', 'test'], 12)
        df = pd.DataFrame({'id_str': [str(i) for i in range(12)], 'file_loc': files, 'split': split})
        said = reasons(check_catalog(df, open_images=lambda f: (f'digest {picture[files.index(f)]}', 255.)).suspect)
        for i in range(12):
            earlier = [j for j in range(i) if picture[j]==picture[i]]
            assert (str(i) in said)==bool(earlier)
            assert ('a leak' in said.get(str(i), ''))==any(split[j]!=split[i] for j in earlier)

@pytest.mark.parametrize('level,span,said', [
    (0, 0, 'nothing to see: all of its pixels are the same'),
    (255, 0, 'nothing to see: all'),
    (90, 3, 'almost nothing to see: its pixels differ by at most 3 of 255'),
    (90, 4, None)])
def test_an_empty_picture(clean, tmp_path, level, span, said):
    px = np.full((64,64,3), level, dtype=np.uint8)
    px[:32] += np.uint8(span)
    Image.fromarray(px).save(tmp_path/'e.png')
    clean.loc[3, 'file_loc'] = str(tmp_path/'e.png')
    check = check_catalog(clean, 'kind')
    assert check.bad.empty and len(check.ok)==20
    assert said in reasons(check.suspect)[clean.id_str[3]] if said else check.suspect.empty

def test_all_reasons_of_a_row_are_said(clean):
    clean.loc[3, ['id_str', 'file_loc', 'kind']] = [clean.id_str[0], '/no/such.jpg', None]
    said = check_catalog(clean, 'kind').bad.reason
    assert said.tolist()==["the id is the same as that of row 1; no label in 'kind'; there is no file /no/such.jpg"]

def test_a_bad_row_is_not_suspect_and_suspects_name_usable_rows(clean):
    "The first of three copies cannot be used, so the second is the first that can"
    clean.loc[[4, 8], 'file_loc'] = clean.file_loc[0]
    clean.loc[0, 'id_str'] = ''
    check = check_catalog(clean, 'kind')
    assert check.bad.reason.tolist()==['the id is empty']
    assert reasons(check.suspect)=={clean.id_str[8]: f'the same file as row 5 ({clean.id_str[4]})'}

def test_ten_rows_and_the_count(clean):
    df = clean.assign(file_loc=[f'/no/{i}.jpg' if i<12 else f for i,f in enumerate(clean.file_loc)])
    df.loc[[13, 14], 'file_loc'] = df.file_loc[12]
    check = check_catalog(df)
    text = repr(check)
    assert text.startswith('12 of 20 rows of the catalogue cannot be used:')
    assert text.count('there is no file')==10 and '... and 2 more' in text
    assert '2 of those that can should be looked at:' in text and text.count('the same file')==2
    with pytest.raises(CatalogError, match="on_bad='skip'.*--on-bad skip") as e: check.raise_if_bad()
    assert 'the same file' not in str(e.value)

def test_rows_keep_their_number_whatever_the_index(clean):
    df = clean.sample(frac=1, random_state=0)
    df.iloc[7, 1] = '/no/such.jpg'
    check = check_catalog(df, 'kind', open_images=False)
    assert check.bad.id_str.tolist()==[df.id_str.iloc[7]]
    assert check.ok.id_str.tolist()==df.id_str.drop(df.index[7]).tolist()
    assert check.ok.index.tolist()==list(range(19))

@pytest.mark.parametrize('column', [[None]*20, [1.5]*20, list(range(20)), [True, False]*10, [['a']]*20])
def test_labels_of_all_kinds(clean, column):
    df = clean.assign(kind=column)
    said = 'holds lists' if column[0]==['a'] else 'an identifier' if column==list(range(20)) else None
    if said:
        with pytest.raises(CatalogError, match=said): check_catalog(df, 'kind', open_images=False)
        return
    assert len(check_catalog(df, 'kind', open_images=False).bad)==(20 if column[0] is None else 0)

def test_several_labels(clean):
    df = clean.assign(a=[0, 1]*10, b=0.5)
    df.loc[0, ['a', 'b']] = None
    df.loc[1, 'a'] = None                                               # one of two labels is a label
    df.loc[3, 'file_loc'] = df.file_loc[4]
    said = reasons(check_catalog(df, ['a', 'b'], open_images=False).bad)
    assert set(said)=={df.id_str[0], df.id_str[3], df.id_str[4]}

def test_a_folder_of_many_is_listed_not_asked(tmp_path, monkeypatch):
    "Files that many rows point to are found without a look at each; links, folders and odd names are told apart"
    import os
    (tmp_path/'d').mkdir()
    for i in range(1500): (tmp_path/'d'/f'{i}.jpg').touch()
    os.symlink(tmp_path/'d'/'1.jpg', tmp_path/'d'/'link.jpg')
    os.symlink(tmp_path/'none', tmp_path/'d'/'dangling.jpg')
    (tmp_path/'d'/'folder.jpg').mkdir()
    (tmp_path/'d'/'Ünï.jpg').touch()
    os.close(os.open(os.fsencode(tmp_path/'d')+b'/\xff.jpg', os.O_CREAT))
    names = [f'{i}.jpg' for i in range(1500)]+['link.jpg', 'dangling.jpg', 'folder.jpg', 'Ünï.jpg', 'none.jpg']
    ids = [str(i) for i in range(len(names))]
    df = read_catalog(pd.DataFrame({'id_str': ids, 'file_loc': names}), image_dir=tmp_path/'d')
    asked,real = [],os.path.isfile
    monkeypatch.setattr(os.path, 'isfile', lambda f: asked.append(f) or real(f))
    check = check_catalog(df, open_images=False)
    assert [o.split('/')[-1] for o in check.bad.file_loc]==['dangling.jpg', 'folder.jpg', 'none.jpg'] and len(asked)<20

def test_a_hundred_thousand_rows_take_moments():
    n = 10**5
    files = [f'img/{i}.jpg' for i in range(n)]
    df = pd.DataFrame({'id_str': np.arange(n)+5877229527674394001, 'file_loc': files, 'y': np.arange(n)%3})
    start = time.perf_counter()
    check = check_catalog(read_catalog(df), 'y', open_images=False)
    split_catalog(df.assign(id_str=df.id_str.astype(str)), 'y')
    assert time.perf_counter()-start<20 and len(check.bad)==n            # 1 s on a quiet machine

# --- the command ------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_check_says_what_there_is(run_zoofast, clean, tmp_path):
    clean['split'] = ['train']*15+['valid']*5
    shutil.copy(clean.file_loc[0], clean.file_loc[16])
    Image.new('L', (50,50)).save(tmp_path/'black.png')
    clean.loc[3, 'file_loc'] = 'black.png'
    clean.to_csv(tmp_path/'c.csv', index=False)
    res = run_zoofast('check', tmp_path/'c.csv', '--label', 'kind', '--write', tmp_path/'found.csv')
    assert res.returncode==0, res.stderr
    for said in ('20 rows, 20 images: 19 x .jpg, 1 x .png', 'kind: 5 x a, 5 x b, 5 x c, 5 x d',
                 'split: 15 x train, 5 x valid', 'a leak', 'nothing to see', '2 of them should be looked at'):
        assert said in res.stdout
    found = pd.read_csv(tmp_path/'found.csv', dtype=str)
    assert found.kind.tolist()==['suspect']*2 and found.id_str.tolist()==[clean.id_str[3], clean.id_str[16]]
    clean.loc[5, 'file_loc'] = 'gone.jpg'
    clean.to_csv(tmp_path/'c.csv', index=False)
    res = run_zoofast('check', tmp_path/'c.csv', '--write', tmp_path/'found.parquet')       # without a label
    assert res.returncode==2 and '1 of 20 rows' in res.stderr
    assert 'gone.jpg' in res.stdout and 'Traceback' not in res.stderr
    found = pd.read_parquet(tmp_path/'found.parquet')
    assert found.kind.tolist()==['bad']+['suspect']*2 and found.id_str[0]==clean.id_str[5]

@pytest.mark.slow
def test_check_takes_several_file_columns_and_the_readers_options(run_zoofast, tmp_path):
    from astropy.io import fits
    rng = np.random.default_rng(0)
    for b in 'gr':
        for i in range(4):
            sci = fits.ImageHDU(rng.normal(size=(40,40)).astype('f4'), name='SCI')
            fits.HDUList([fits.PrimaryHDU(), sci]).writeto(tmp_path/f'{b}{i}.fits')
    df = pd.DataFrame({'id_str': list('abcd'), 'g_file': [f'g{i}.fits' for i in range(4)],
                       'r_file': ['r0.fits', 'r1.fits', 'r2.fits', 'lost.fits']})
    df.to_csv(tmp_path/'c.csv', index=False)
    for given in (['--file-col', 'g_file', '--file-col', 'r_file'], ['--file-col', 'g_file, r_file']):
        res = run_zoofast('check', tmp_path/'c.csv', *given)
        assert res.returncode==2 and 'lost.fits' in res.stdout and '  d: ' in res.stdout, res.stdout+res.stderr
    one = ['--file-col', 'g_file', '--hdu', 'SCI', '--size', '32', '--channels', '1']
    assert run_zoofast('check', tmp_path/'c.csv', *one).returncode==0
    res = run_zoofast('check', tmp_path/'c.csv', '--file-col', 'g_file', '--hdu', 'ERR')
    assert res.returncode==2 and '4 of 4 rows' in res.stderr and "'ERR'" in res.stdout

def test_a_split_without_valid_is_dealt_out_of_train(survey):
    "As many published data sets have it: train and test only"
    from zoofast.data.loaders import GalaxyDataLoaders
    df = survey[1].assign(split=np.where(np.arange(60)<45, 'train', 'test'))
    dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=32, cache='memory', progress=False)
    out = dls.catalog.split
    assert (out[45:]=='test').all() and set(out[:45])=={'train','valid'} and 6<=(out=='valid').sum()<=12
    given = survey[1].assign(split=np.where(np.arange(60)<45, 'train', 'valid'))
    dls = GalaxyDataLoaders.from_catalog(given, 'morphology', size=32, cache='memory', progress=False)
    assert dls.catalog.split.tolist()==given.split.tolist()
