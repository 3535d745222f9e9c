"""What a run's folder keeps: its files' names, and the run file, held against another of today."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
