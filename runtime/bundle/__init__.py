"""The formats on disk: bundle, manifest, packs, unit table, and the device profile."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
