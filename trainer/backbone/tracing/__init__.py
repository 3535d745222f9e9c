"""A network written out as a flat graph of ATen operations, held to what it answers and learns."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
