"""A mixed graph rewritten for the blocked layout of ONNX Runtime's CPU."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
