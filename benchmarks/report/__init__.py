"""`prunion report`: runs and bundles as one page of pictures, without network."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
