"""Load a bundle and classify images with it; needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunion.runtime.bundle.folder import Bundle, open_bundle
    from prunion.runtime.bundle.pack import Pack, read_pack, write_pack
    from prunion.runtime.errors import (
        BackendError,
        BundleError,
        DomainError,
        EngineError,
        InputError,
        MissingDependencyError,
        PrunionError,
    )
    from prunion.runtime.model.model import Candidate, Model, Prediction, load

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "Candidate",
    "DomainError",
    "EngineError",
    "InputError",
    "MissingDependencyError",
    "Model",
    "Pack",
    "Prediction",
    "PrunionError",
    "load",
    "open_bundle",
    "read_pack",
    "write_pack",
]

_PLACES = {
    "errors": (
        "BackendError",
        "BundleError",
        "DomainError",
        "EngineError",
        "InputError",
        "MissingDependencyError",
        "PrunionError",
    ),
    "bundle.folder": ("Bundle", "open_bundle"),
    "model.model": ("Candidate", "Model", "Prediction", "load"),
    "bundle.pack": ("Pack", "read_pack", "write_pack"),
}


def __getattr__(name: str) -> Any:
    # Names are looked up on first use: the command line must not wait for numpy.
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"prunion.runtime.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
