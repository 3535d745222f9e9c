"""What a union costs, in every unit of a budget, and the promise to keep it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
