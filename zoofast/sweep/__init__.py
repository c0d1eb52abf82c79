"Which settings are best"
from zoofast._names import offer

__getattr__,__dir__,__all__ = offer(__name__)
