"""The run file that a run's folder keeps: its copy, and in which keys another differs from it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
