"What fastai's own one-liners show, for every task, and how things show themselves"
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt, pytest, warnings
from test_report import EVIL, EVIL2, tasks
import zoofast.plots.notebook      # noqa: F401, how things show themselves
from zoofast.all import GalaxyDataLoaders, Schema, galaxy_learner

@pytest.mark.parametrize('kind', ['classification', 'multilabel', 'regression', 'votes'])
def test_one_liners(kind, survey, capsys):
    df,kinds = tasks(survey[1])
    dls = GalaxyDataLoaders.from_catalog(df, None if kinds[kind] else 'kind', kinds[kind], size=64, progress=False)
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0', pretrained=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for show in (dls.show_batch, learn.show_results):
            plt.close('all')
            assert show(max_n=4) is None                  # a notebook would print it
            plt.gcf().canvas.draw()
            assert sum(bool(ax.images) for ax in plt.gcf().axes)==4
        summary = learn.summary()
    assert 'Total params' in str(summary) or 'Total params' in capsys.readouterr().out
    plt.close('all')
    for o in (dls, learn, learn.task, learn.to_model()):
        html = o._repr_html_()
        assert EVIL not in html and EVIL2 not in html and '<b>ar' not in html and '<table' in html
        assert '\n' not in repr(o) and len(repr(o))<2000 and ' at 0x' not in repr(o)

def test_a_tree(): assert Schema.from_name('decals_dr5_ortho')._repr_html_().count('<tr')==11
