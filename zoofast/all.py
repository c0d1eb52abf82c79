"Everything a notebook needs: `from zoofast.all import *`; as in fastai, that includes `np`, `pd`, `plt`, `torch` and `Path`"
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")     # fastai warns about recent torch when it is imported
    from fastai.basics import *
    from fastai.callback.all import *
from zoofast import __version__
from zoofast.catalog import *
from zoofast.tables import *
from zoofast.paths import *
from zoofast.stream import *
from zoofast.saved import *
from zoofast.runs import *
from zoofast.stretch import *
from zoofast.fits import *
from zoofast.images import *
from zoofast.schema import *
from zoofast.simulate import *
from zoofast.votes import *
from zoofast.measures import *
from zoofast.classes import *
from zoofast.regression import *
from zoofast.vote_counts import *
from zoofast.tasks import *
from zoofast.losses import *
from zoofast.store import *
from zoofast.augment import *
from zoofast.summary import *
from zoofast.data import *
from zoofast.untrusted import *
from zoofast.encoders import *
from zoofast.optimizers import *
from zoofast.groups import *
from zoofast.precision import *
from zoofast.freezing import *
from zoofast.schedules import *
from zoofast.checkpoints import *
from zoofast.distributed import *
from zoofast.loop import *
from zoofast.tracking import *
from zoofast.learner import *
from zoofast.calibration import *
from zoofast.card import *
from zoofast.engines import *
from zoofast.bundle import *
from zoofast.hub import *
from zoofast.save import *
from zoofast.zoobot import *
from zoofast.shards import *
from zoofast.export import *
from zoofast.predict import *
from zoofast.representations import *
from zoofast.similar import *
from zoofast.maps import *
from zoofast.answers import *
from zoofast.plots import *
from zoofast.plots_training import *
from zoofast.plots_classes import *
from zoofast.plots_numbers import *
from zoofast.plots_features import *
from zoofast.show import *
from zoofast.report import *
from zoofast.settings import *
from zoofast.search import *
from zoofast.sweep import *
from zoofast.sweep_page import *

__all__ = [n for n in globals() if not n.startswith(("_", "test"))]     # fastai exports its test functions, which pytest would take for those of the importer
