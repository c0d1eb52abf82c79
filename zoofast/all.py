"""Everything a notebook needs: `from zoofast.all import *`

As in fastai, that includes `np`, `pd`, `plt`, `torch` and `Path`."""
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")     # fastai warns about recent torch when it is imported
    from fastai.basics import *
    from fastai.callback.all import *
import zoofast

globals().update({n: getattr(zoofast, n) for n in zoofast.__all__ if n not in zoofast._names.FOLDERS})
_not = ("warnings", "zoofast", "Table")     # fastcore's `Table` is one of HTML, and would replace astropy's
# fastai exports its test functions, which pytest would take for those of the importer
__all__ = [n for n in globals() if not n.startswith(("_", "test")) and n not in _not]
