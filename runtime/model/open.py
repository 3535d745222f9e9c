"""From a bundle's path and a backend's name to a loaded model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from prunion.runtime.backends import PREFIXES, Session, SessionOptions, check_backend, open_provider
from prunion.runtime.base import (
    TARGETS,
    Backend,
    Precision,
    available_bytes,
    path_argument,
    whole_argument,
)
from prunion.runtime.bundle import Bundle, check_one_trunk, open_bundle
from prunion.runtime.errors import BundleError, InputError
from prunion.runtime.graph import stored_tables
from prunion.runtime.model.domains import LiveDomain, Tables
from prunion.runtime.model.model import Model
from prunion.runtime.model.pool import SessionPool
from prunion.runtime.model.probing import BackendProbe

__all__ = ["load", "open_pool"]

SHARE_OF_MEMORY = 4  # pinned sessions may take a quarter of what is free, unless told otherwise


def load(
    path: Path | str,
    backend: Backend = "auto",
    *,
    precision: Precision = "fp32",
    threads: int | None = None,
    memory_limit: float | None = None,
    slicing: bool = True,
    tune: bool = False,
    engine: Path | str | None = None,
) -> Model:
    """Open a bundle and check its files; sessions are made on first use.

    Args:
        path: the bundle's folder, NAME.prunion.
        backend: `auto` (CUDA where it works, else CPU), `cpu`, `cuda`, `openvino`; `tensorrt` or
            `tensorrt-rtx`, which build an engine for this GPU on first use, and keep it; or
            `tensorrt-ep` or `tensorrt-rtx-ep`, the same by ONNX Runtime's providers.
        precision: which of the bundle's graphs, a key of `manifest.graphs`. Those that end in
            `-uint8` take raw pixels; one with float16 images is given them by a cast.
        threads: threads inside one operator; None leaves it to the backend.
        memory_limit: bytes that pinned (single-domain) sessions may hold together, beside the
            mixed one; 0 for none of them, None for a quarter of the memory that is free now. Any
            number also makes sessions lay out no memory ahead for each batch shape.
        slicing: whether pinned sessions may leave out channels that their domain does not use.
        tune: measure now which sessions answer what fastest, not at the first mixed batch.
        engine: an engine file of `prunion build`, for the two backends of TensorRT.

    Raises:
        BundleError: a file is missing, altered or truncated, or there is no such graph.
        InputError: `memory_limit` or `threads` is no such number, a path is none, or the backend
            runs no `engine`.
        PrunionError: there is no such backend. What the backend lacks on this machine is found
            with the first session: MissingDependencyError, BackendError (also where it answers
            otherwise than ONNX Runtime's CPU), EngineError; and BundleError where the graph mixes
            the images of a batch.
    """
    bundle = open_bundle(path)
    if memory_limit is None:
        limit = available_bytes() // SHARE_OF_MEMORY
    else:
        if isinstance(memory_limit, float) and memory_limit.is_integer():  # 1e9 says bytes too
            memory_limit = int(memory_limit)
        limit = whole_argument("memory_limit", memory_limit, least=0)
    if engine is not None:
        engine = path_argument("engine", engine)
    options = SessionOptions(check_backend(backend), threads, spare_memory=memory_limit is not None)
    pool = open_pool(bundle, options, precision, limit=limit, slicing=slicing, engine=engine)
    packs = [bundle.pack(name) for name in bundle.domains]
    units = None if pool.table is None else pool.table.count
    for pack in packs:  # each fits the manifest; they must fit each other and the units, too
        bundle.check_pack(pack, features=len(packs[0].head_weight), units=units)
    tables = Tables(tuple(LiveDomain(*x) for x in enumerate(packs)), pool.form, stored=True)
    _check_stored(bundle.graph(precision), pool, tables)
    model = Model(bundle, pool, tables)
    if tune:
        model.tune()
    return model


def _check_stored(place: Path, pool: SessionPool, tables: Tables) -> None:
    """Raise BundleError unless the tables that answer mixed batches are those of the packs.

    These answer batches of one domain: with another pack in its place a domain would have two
    answers.
    """
    if pool.form.single or pool.apart:
        return
    held = stored_tables(pool.graph.read())
    # Shapes first: tables that are no larger than the file's are made without harm.
    shapes = pool.form.table_shapes([domain.pack for domain in tables.domains])
    wrong = next((x for x in shapes if x not in held or held[x].shape != shapes[x]), "")
    if not wrong:
        made = tables.feeds
        wrong = next((x for x in made if not np.array_equal(held[x], made[x])), "")
    if wrong:
        of = "the manifest's normalisation" if wrong == "pixels" else "its packs'"
        raise BundleError(
            f"{place}: its table {wrong} is not {of}: a file of another bundle is in its place, "
            "export again or copy the bundle again"
        )


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

    Raises PrunionError for an unknown backend, BundleError if there is no such graph or it is
    not whole, InputError for an `engine` that the backend cannot run, or whose domains have weights
    of their own.
    """
    check_backend(options.backend)
    apart = bool(bundle.manifest.own_weights)
    if apart and (options.backend in TARGETS or options.backend in PREFIXES):
        check_one_trunk(bundle, options.backend)
    graph, probe = bundle.held_graph(precision), BackendProbe(bundle, precision, options)
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
        probe,
        bundle.unit_table() if slicing and not (probe.form.single or apart) else None,
        limit,
        open_mixed,
        apart=apart,
    )
