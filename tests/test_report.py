"""The report, opened in a browser: nothing is fetched, nothing in a catalogue runs, filters and orders work, at 375 and
1400 pixels, for every task"""
import os, shutil
import numpy as np, pandas as pd, pytest
from zoofast.predict.answers import Answers
from zoofast.reports.report import make_report

EVIL = '<script>alert(1)</script>'
EVIL2 = '"><img src=x onerror=alert(2)>'

def tasks(df):
    from zoofast.all import MultiLabel, Regression, VoteCounts, Schema
    rng = np.random.default_rng(0)
    df = df.assign(kind=df.morphology.replace({'ring': EVIL, 'spiral': EVIL2}),
                   tail=rng.integers(0, 2, len(df)),
                   **{'b<b>ar': rng.choice(['no', 'yes'], len(df))},
                   z=rng.gamma(2, .1, len(df)),
                   mass=rng.normal(10, 1, len(df)))
    df.loc[df.index[::9], ['tail', 'z']] = np.nan
    votes = rng.multinomial(30, [.5, .3, .2], len(df))
    for i,c in enumerate(('shape_smooth', 'shape_disk', 'shape_artifact')): df[c] = votes[:,i].astype(float)
    return df,{
        'classification': None,
        'multilabel': MultiLabel(['tail', 'b<b>ar']),
        'regression': Regression(['z', 'mass']),
        'votes': VoteCounts(Schema({'shape': ['smooth', 'disk', 'artifact']})),
    }

@pytest.fixture(scope='session')
def runs(survey, tmp_path_factory):
    "A finished run of each task, with its report"
    from zoofast.all import GalaxyDataLoaders, galaxy_learner
    df,kinds = tasks(survey[1])
    df.loc[df.index[0], 'id_str'] = EVIL2
    out = {}
    for name,task in kinds.items():
        of_classes = name=='classification'
        dls = GalaxyDataLoaders.from_catalog(df, None if task else 'kind', task, size=64, valid=.3,
                                             test=.2 if of_classes else 0., progress=False)
        folder = tmp_path_factory.mktemp('runs')/f'{name} & <i>co'
        learn = galaxy_learner(dls, 'tf_efficientnet_lite0', save_dir=folder, pretrained=False,
                               training_mode='full' if of_classes else 'head_only')
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
        out[name] = make_report(learn, progress=False)
    return out

KINDS = ['classification', 'multilabel', 'regression', 'votes']

@pytest.mark.slow
@pytest.mark.parametrize('width', [375, 1400])
@pytest.mark.parametrize('kind', KINDS)
def test_reads_well(runs, opened, kind, width):
    page,wrong = opened(runs[kind], width, dark=width==375)
    assert not wrong
    assert page.evaluate('document.documentElement.scrollWidth')<=width, 'the page is wider than the screen'
    assert runs[kind].stat().st_size<5e6
    assert page.locator('h1').inner_text()==f'{kind} & <i>co'
    svg = page.locator('svg').count()
    assert svg>={'classification': 7, 'multilabel': 8, 'regression': 6, 'votes': 5}[kind]
    assert page.locator('#list img').count()>0
    box = 'o => [o.getBoundingClientRect().width, o.getBoundingClientRect().right]'
    for w,right in page.locator('svg').evaluate_all(f'all => all.map({box})'): assert w>200 and right<=width
    ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert ink==page.evaluate("getComputedStyle(document.body).color")     # pictures follow the page into the dark
    if out := os.environ.get('ZOOFAST_PICTURES'): page.screenshot(path=f'{out}/{kind}_{width}.png', full_page=True)

def shown(page): return page.locator('#list li:not([hidden])')

@pytest.mark.slow
def test_filter_and_sort(runs, opened):
    page,wrong = opened(runs['classification'])
    everything = shown(page).count()
    verdicts = set()
    for name in ('wrong', 'right'):
        page.click(f'button[data-filter={name}]')
        got = shown(page).evaluate_all('o => o.map(e => e.dataset.verdict)')
        assert set(got)<={name} and page.locator('#count').inner_text()==f'{len(got)} of {everything} shown'
        assert page.locator(f'button[data-filter={name}]').get_attribute('aria-pressed')=='true'
        verdicts |= set(got)
    assert verdicts
    page.click('button[data-filter=uncertain]')
    assert 0<shown(page).count()<everything
    page.click('button[data-filter=all]')
    unsure = lambda: [float(o) for o in shown(page).evaluate_all('o => o.map(e => e.dataset.uncertainty)')]
    page.select_option('#sort', 'unsure')
    assert unsure()==sorted(unsure(), reverse=True) and len(set(unsure()))>1
    page.select_option('#sort', 'sure')
    assert unsure()==sorted(unsure())
    page.select_option('#sort', 'id')
    ids = shown(page).evaluate_all('o => o.map(e => e.dataset.id)')
    assert ids!=[] and [o for o in ids if o.startswith('sim')]==sorted(o for o in ids if o.startswith('sim'))
    page.select_option('#true-group', label=EVIL)
    assert set(shown(page).evaluate_all('o => o.map(e => e.dataset.true)'))=={EVIL}
    page.select_option('#true-group', '')
    page.fill('#search', ids[-1])
    assert shown(page).evaluate_all('o => o.map(e => e.dataset.id)')==[ids[-1]]
    assert not wrong

@pytest.mark.slow
def test_nothing_in_a_catalogue_runs(runs, opened):
    page,wrong = opened(runs['classification'])
    assert page.get_by_text(EVIL).count()>0 and page.locator('script').count()==1
    assert not page.locator('img[src=x]').count() and not wrong
    html = runs['classification'].read_text(encoding='utf-8')
    assert EVIL not in html and EVIL2 not in html and html.count('<script')==1
    assert "default-src 'none'" in html
    # and if something slipped through, the browser would not run it
    broken = runs['classification'].with_name('broken.html')
    script = '<script>document.title="ran"</script>'
    picture = '<img src="https://example.org/x.png" onerror="document.title=\'ran\'">'
    broken.write_text(html.replace('<main>', f'<main>{script}{picture}'), encoding='utf-8')
    page,wrong = opened(broken)
    assert page.title()!='ran' and wrong

@pytest.mark.slow
def test_without_javascript(runs, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(runs['votes'].as_uri())
    assert page.locator('#list li').count()==page.locator('#list li:visible').count()>0
    context.close()

@pytest.mark.slow
def test_printed(runs, opened, tmp_path):
    page,_ = opened(runs['multilabel'])
    page.emulate_media(media='print')
    assert not page.locator('.controls').first.is_visible()
    page.pdf(path=tmp_path/'page.pdf')
    assert (tmp_path/'page.pdf').stat().st_size>20_000

@pytest.mark.slow
def test_says_what_there_is(runs):
    html = runs['classification'].read_text(encoding='utf-8')
    run = runs['classification'].parent
    texts = ('accuracy', '95 % interval', 'tf_efficientnet_lite0', 'predict_catalog(', 'zoofast predict',
             'learning_rate', 'weight_decay', 'versions', 'test galaxies', 'validation galaxies', 'stem')
    for text in texts: assert text in html, text
    a = Answers(run)
    assert len(a)==(pd.read_parquet(run/'answers'/'truth.parquet').split=='test').sum()
    assert f"of {len(a)} test galaxies" in html
    assert f"{a.scores().value['accuracy']:.3f}" in html

@pytest.mark.slow
def test_bad_rows_are_named(survey, tmp_path):
    from zoofast.all import GalaxyDataLoaders, galaxy_learner
    df = survey[1].copy()
    df.loc[5, 'file_loc'] = str(tmp_path/'gone.jpg')
    shutil.copy(df.file_loc[7], tmp_path/'twin.jpg')
    df.loc[8, ['file_loc', 'morphology']] = [str(tmp_path/'twin.jpg'), df.morphology[7]]
    with pytest.warns(UserWarning, match='left out'):
        dls = GalaxyDataLoaders.from_catalog(df, 'morphology', size=64, on_bad='skip', progress=False)
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0', save_dir=tmp_path/'run', training_mode='head_only')
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    html = make_report(learn, progress=False).read_text(encoding='utf-8')
    check = pd.read_csv(tmp_path/'run'/'check.csv')
    assert check.kind.tolist()==['left out', 'to be looked at'] and check.id_str.tolist()==[df.id_str[5], df.id_str[8]]
    assert '1 row could not be used and was left out' in html
    assert df.id_str[5] in html and 'the same picture as' in html

@pytest.mark.slow
def test_a_bundle_alone_and_a_catalogue(runs, survey, tmp_path):
    shutil.copytree(runs['classification'].parent/'bundle', tmp_path/'sent')
    html = make_report(tmp_path/'sent').read_text(encoding='utf-8')
    assert 'was not kept with this run' in html
    assert 'findings of the data check were not kept' in html and 'epoch' in html
    df,_ = tasks(survey[1])
    html = make_report(tmp_path/'sent', tmp_path/'mine.html', df, progress=False).read_text(encoding='utf-8')
    assert '60 galaxies of the catalogue' in html and not list(tmp_path.glob('.*'))
    with pytest.raises(ValueError, match='cannot be written'):
        make_report(tmp_path/'sent', tmp_path/'no'/'such'/'page.html')

@pytest.mark.slow
def test_command(run_zoofast, survey, tmp_path):
    res = run_zoofast('finetune', survey[0]/'catalog.csv', '--label', 'morphology',
                      '--encoder', 'tf_efficientnet_lite0', '--training-mode', 'head_only', '--epochs', 1, '--size', 64,
                      '--save-dir', tmp_path/'run')
    assert res.returncode==0, res.stderr
    assert (tmp_path/'run'/'report.html').is_file() and 'report.html' in res.stdout, res.stderr
    assert '\r' not in res.stderr                                       # no bars in a log file
    (tmp_path/'run'/'report.html').unlink()
    res = run_zoofast('report', tmp_path/'run', '--out', tmp_path/'r.html')
    assert res.returncode==0 and str(tmp_path/'r.html') in res.stdout and (tmp_path/'r.html').is_file(), res.stderr
    res = run_zoofast('report', tmp_path)
    assert res.returncode==2 and res.stderr.strip().count('\n')<=1 and 'holds no bundle' in res.stderr
