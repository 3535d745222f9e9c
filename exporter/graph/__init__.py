"""The sliced network as ONNX: the graph, its variants, and the check that they agree."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
