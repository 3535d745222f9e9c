"""`prunion verify`: every claim of a bundle found out again from its files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
