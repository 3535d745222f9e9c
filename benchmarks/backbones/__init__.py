"""Any backbone in, an exact sliced graph out: the table of docs/backbones.md."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
