"""The project's own suite: every table's command, a history of figures, a check for regressions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
