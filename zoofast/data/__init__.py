"A catalogue and a task as batches"
from zoofast._names import offer

__getattr__,__dir__,__all__ = offer(__name__)
