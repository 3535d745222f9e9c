"""What `import prunion` gives: `load`, and the errors that a user can cause."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunion.runtime.errors import (
        BackendError,
        BudgetError,
        BundleError,
        CheckpointError,
        ConfigError,
        DataError,
        DomainError,
        EngineError,
        InputError,
        MissingDependencyError,
        PrunionError,
        UnsupportedGraphError,
        VerificationError,
    )
    from prunion.runtime.model.model import load

__all__ = [
    "BackendError",
    "BudgetError",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DomainError",
    "EngineError",
    "InputError",
    "MissingDependencyError",
    "PrunionError",
    "UnsupportedGraphError",
    "VerificationError",
    "load",
]


def __getattr__(name: str) -> Any:
    # On first use: `import prunion` waits for nothing, and the stages are imported by name.
    if name in __all__:
        module = "model.model" if name == "load" else "errors"
        return getattr(import_module(f"prunion.runtime.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
