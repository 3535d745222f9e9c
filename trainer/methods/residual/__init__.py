"""Small layers of a domain's own: behind a filter bank, beside it, and of low rank beside it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
