"A catalogue in, a table out"
from zoofast._names import offer

__getattr__,__dir__,__all__ = offer(__name__)
