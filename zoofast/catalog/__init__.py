"Rows of galaxies: read, checked for their columns, split"
from zoofast._names import offer

__getattr__,__dir__,__all__ = offer(__name__)
