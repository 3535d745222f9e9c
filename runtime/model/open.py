"""From a bundle and a backend's name to its pool of sessions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from prunion.runtime.backends import PREFIXES, Session, SessionOptions, check_backend, open_provider
from prunion.runtime.base import TARGETS, Precision, arithmetic_of
from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import InputError
from prunion.runtime.graph import form_of
from prunion.runtime.model.pool import TOLERANCE, SessionPool

__all__ = ["open_pool"]


def open_pool(
    bundle: Bundle,
    options: SessionOptions,
    precision: Precision = "fp32",
    *,
    limit: int = 1 << 30,
    slicing: bool = True,
    engine: Path | str | None = None,
) -> SessionPool:
    """The sessions of one of the bundle's graphs; none is made yet.

    Raises PrunionError for an unknown backend, BundleError if there is no such graph, InputError
    for an `engine` that the backend cannot run.
    """
    check_backend(options.backend)
    graph, form = bundle.graph(precision), form_of(bundle, precision)
    open_mixed: Callable[[], Session] | None = None
    if (target := TARGETS.get(options.backend)) is not None:
        from prunion.runtime.tensorrt import open_engine

        open_mixed = partial(open_engine, bundle, target, precision, engine)
    elif options.backend in PREFIXES and engine is None:
        open_mixed = partial(open_provider, bundle, options, precision)
    elif engine is not None:
        raise InputError(
            f"the backend {options.backend} runs no engine: use {' or '.join(TARGETS)}"
        )
    return SessionPool(
        graph,
        options,
        form,
        bundle.unit_table() if slicing and not form.single else None,
        limit,
        TOLERANCE if arithmetic_of(precision) == "fp32" else 200 * TOLERANCE,
        open_mixed,
    )
