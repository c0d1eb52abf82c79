"What is asked of a galaxy, and how an answer is scored"
from zoofast._names import offer

__getattr__,__dir__,__all__ = offer(__name__)
