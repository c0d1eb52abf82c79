"A pretrained encoder and a head, and what makes them fast"
from zoofast._names import offer

__getattr__,__dir__,__all__ = offer(__name__)
