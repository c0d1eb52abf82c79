"What everything above says and writes alike: errors, checks of what was given, files written whole or not at all"
from zoofast._names import offer

__getattr__,__dir__,__all__ = offer(__name__)
