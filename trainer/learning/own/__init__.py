"""What a single domain may use of the union, and that all of it stays with some domain."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
