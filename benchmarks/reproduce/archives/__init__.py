"""The benchmarks' images as they are given away: what is read of them, and a submission."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
