"Model cards: huggingface_hub reads them, the data's summary is the catalogue's, and odd names do no harm"
import json, re
import numpy as np, pandas as pd, pytest
from huggingface_hub import ModelCard
from zoofast.all import *
from zoofast.bundles.bundle import write_bundle
from zoofast.encoders.encoder import GalaxyNet

ODD = ['a|b', '`c`', 'two\nlines', '# head', '---', '<script>', 'x: {y}', 'ünïcode', "it's \"quoted\""]

def table(card, head):
    "The rows of the table whose first cell of the head is `head`"
    lines = card.split('\n')
    i = next(k for k,l in enumerate(lines) if l.startswith(f'| {head} |'))
    rows = []
    for l in lines[i+2:]:
        if not l.startswith('|'): return rows
        rows.append([c.strip() for c in re.split(r'(?<!\\)\|', l)[1:-1]])

def saved(df, task, folder, **kwargs):
    dls = GalaxyDataLoaders.from_catalog(df, task=task, reader=ImageReader(32), batch_size=16, progress=False)
    learn = galaxy_learner(dls, 'test_efficientnet', pretrained=False)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    learn.save_bundle(folder, **kwargs)
    return dls.catalog,json.loads((folder/'config.json').read_text()),(folder/'README.md').read_text()

TASKS = {
    'classes': (lambda: Classification('morphology'), 'image-classification'),
    'labels': (lambda: MultiLabel(['ring', 'bar']), 'image-classification'),
    'numbers': (lambda: Regression(['radius_arcsec', 'mag_r']), None),
    'votes': (lambda: VoteCounts('decals_dr5_ortho'), None),
}
@pytest.mark.slow
@pytest.mark.parametrize('name', TASKS)
def test_each_tasks_card(survey, tmp_path, name):
    df = survey[1].assign(ring=survey[1].morphology=='ring', bar=np.where(survey[1].index%3==0, 'yes', 'no'))
    rows,config,card = saved(df, TASKS[name][0](), tmp_path/name, license='cc-by-4.0')
    front = ModelCard(card).data
    assert (front.library_name, front.pipeline_tag)==('zoofast', TASKS[name][1])
    assert (front.license, front.base_model, front.model_name)==('cc-by-4.0', None, name)
    metrics = {k: v for k,v in config['metrics'].items() if v is not None}
    assert {r.metric_name.replace(' ', '_'): r.metric_value for r in front.eval_results}==metrics
    assert str(ModelCard(card))==card or ModelCard(str(ModelCard(card))).data.to_dict()==front.to_dict()
    for head in ('How to use it', 'Data', 'Metrics', 'Training', 'Limitations', 'Versions'):
        assert f'\n## {head}\n' in card
    data = config['data']
    assert data['galaxies']==rows.split.value_counts().to_dict()
    if name=='classes':
        splits = list(dict.fromkeys(k for v in data['classes'].values() for k in v))
        counted = lambda c, s: int(((rows.morphology==c)&(rows.split==s)).sum())
        want = {c: [counted(c, s) for s in splits] for c in config['task']['classes']}
        assert {r[0]: [int(o) for o in r[1:]] for r in table(card, 'class')}==want
    if name=='labels':
        ring = {'False': int((~rows.ring).sum()), 'True': int(rows.ring.sum()), 'missing': 0}
        bar = {v: int((rows.bar==v).sum()) for v in ('no', 'yes')} | {'missing': 0}
        assert data['labels']=={'ring': ring, 'bar': bar}
    if name=='numbers':
        mag = rows.mag_r
        want = {'galaxies': len(rows), 'mean': mag.mean(), 'std': mag.std(ddof=0), 'min': mag.min(), 'max': mag.max()}
        assert data['numbers']['mag_r']==pytest.approx(want)
    if name=='votes':
        s = Schema.from_name('decals_dr5_ortho')
        q = s.questions[1]
        votes = rows[[f'{q}_{a}' for a in s.answers[q]]].sum(axis=1)
        assert data['questions'][q]==pytest.approx({'galaxies': int((votes>0).sum()), 'votes': votes[votes>0].mean()})
        assert [r[0].replace('\\', '') for r in table(card, 'question')]==s.questions
    assert pd.Timestamp(config['created']).tzinfo is not None
    assert config['license']=='cc-by-4.0' and 'base_model' not in config
    assert config['sha256']['model.safetensors'] in card

@pytest.mark.slow
def test_odd_names(survey, tmp_path):
    df = survey[1].assign(**{'what|is `it`': np.resize(ODD, len(survey[1]))})
    _,config,card = saved(df, Classification('what|is `it`'), tmp_path/'a: b # `c`\n"d"')
    rows = table(card, 'class')
    assert len(rows)==len(ODD) and len({len(r) for r in rows})==1
    front,text = ModelCard(card).data,ModelCard(card).text
    assert front.model_name=='a: b # `c` "d"' and len(front.eval_results)>=3
    assert '<script>' not in text and '\n# head' not in text and text.count('\n---\n')==0
    assert text.count('```')==2
    code = text.split('```')[1].removeprefix('python')
    compile(code, 'card', 'exec')

def test_a_bundle_without_data_says_so(tmp_path):
    net = GalaxyNet(create_encoder('test_efficientnet', 32, pretrained=False), 2)
    model = GalaxyModel(net, Classification('a', [1, 2]), ImageReader(32), device='cpu')
    write_bundle(tmp_path/'b', model)
    card = (tmp_path/'b'/'README.md').read_text()
    assert 'not recorded' in card and '## Metrics' not in card and ModelCard(card).data.eval_results is None
