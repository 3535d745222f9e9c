"""One pruned vision network for many image domains: train, export, verify, load, bench.

`__init__.pyi` lists the names. Each is looked up on first use, so that `import prunion` waits for
nothing and loads torch only where a name needs it.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

_look_up, _, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = [*_names, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata  # a tenth of the command line's start

        return metadata.version("prunion")
    if name in _names:
        return _look_up(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
