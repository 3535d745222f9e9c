"""Images to batches: folders, Parquet or sets by name; the same seed, the same batches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
