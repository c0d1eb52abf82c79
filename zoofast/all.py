"Everything a notebook needs: `from zoofast.all import *`; as in fastai, that includes `np`, `pd`, `plt`, `torch` and `Path`"
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")     # fastai warns about recent torch when it is imported
    from fastai.basics import *
    from fastai.callback.all import *
from zoofast import __version__
from zoofast.catalog import *
from zoofast.images import *
from zoofast.simulate import *
from zoofast.tasks import *
from zoofast.losses import *
from zoofast.store import *
from zoofast.data import *
from zoofast.encoders import *
from zoofast.optimizers import *
from zoofast.groups import *
from zoofast.precision import *
from zoofast.freezing import *
from zoofast.schedules import *
from zoofast.checkpoints import *
from zoofast.distributed import *
from zoofast.loop import *
from zoofast.learner import *
from zoofast.bundle import *
from zoofast.save import *
from zoofast.predict import *
from zoofast.plots import *

__all__ = [n for n in globals() if not n.startswith(("_", "test"))]     # fastai exports its test functions, which pytest would take for those of the importer
