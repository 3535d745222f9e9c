"""The papers' benchmarks, from their archives to their tables, and the trunks they start from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
