"""The Open Inference Protocol v2: requests to arrays and back, over HTTP and gRPC."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
