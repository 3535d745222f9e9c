"""The clients of a measured server: what they ask, over which connections, and how many at once."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
