"""`prunion profile`: what every layer of a network costs on this device, over its widths."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np

from prunion.runtime.backends import (
    PREFIXES,
    SessionOptions,
    check_backend,
    make_session,
    real_backend,
)
from prunion.runtime.base import TARGETS, Backend, check_output, machine_facts, time_interleaved
from prunion.runtime.bundle import (
    Bundle,
    Fit,
    Grid,
    Profile,
    UnitTable,
    block_of,
    fit_total,
    monotone,
    no_profile,
    open_bundle,
    write_profile,
)
from prunion.runtime.errors import BackendError, InputError, UnsupportedGraphError
from prunion.runtime.graph import GraphForm, form_of, load_graph, pin_form
from prunion.runtime.measure.profile_layers import GraphLayer, find_layers, layer_graph

__all__ = [
    "measure_profile",
    "profile_bundle",
    "profile_lines",
    "profile_warning",
    "sample_unions",
    "widths_to_measure",
]

log = logging.getLogger(__name__)

POINTS = 6  # of an axis, at most
COPIES = 3
UNIFORM = (1.0, 0.75, 0.5, 0.25, 0.1)
RANDOM = 12
WHOLE = 40  # a whole network is timed for as many times longer as a layer: the fit rests on it
TRUSTED = 0.10  # what a latency budget promises
Step = Callable[[str], None]


def measure_profile(
    source: Path | str,
    output: Path | str,
    *,
    force: bool = False,
    tell: Callable[[Profile], None] = lambda made: None,
    **options: Any,
) -> Profile:
    """Measure the bundle `source`, with a bar on a terminal, and write the profile.

    `tell` is called with it before it is written, which may fail; `options` are those of
    `profile_bundle`. Raises PrunionError if `output` exists and `force` is false, and what
    `profile_bundle` raises.
    """
    was = check_output(output, force=force, wrote=no_profile, inputs=[source])
    opened = open_bundle(source)
    length = len(set(_layers(opened, form_of(opened)).values())) + 2
    if sys.stderr.isatty():  # elsewhere click would print the label
        with click.progressbar(length=length, label="profile", file=sys.stderr) as bar:
            made = profile_bundle(opened, step=lambda _: bar.update(1), **options)
    else:
        made = profile_bundle(opened, **options)
    try:
        tell(made)
    finally:
        write_profile(output, made, was)
    return made


def profile_lines(output: Path | str, profile: Profile) -> list[str]:
    """What was measured, and how well it predicts, in two lines for people."""
    fit, points = profile.fit, sum(grid.ms.size for grid in profile.grids)
    return [
        f"{output}: {len(profile.layers)} layers, {len(profile.grids)} of them different, "
        f"{points} widths; {profile.describe()}",
        f"whole network {profile.samples[0][1]:.3f} ms; predicted as {fit.scale:.3f} × Σ layers + "
        f"{fit.constant:.3f} ms, to {fit.mean_error:.1%} on average and {fit.worst_error:.1%} at "
        f"worst on {len(profile.samples)} pruned networks, each left out of its own fit",
    ]


def profile_warning(profile: Profile) -> str:
    """A warning where the profile predicts worse than a latency budget promises; else empty."""
    if profile.fit.worst_error <= TRUSTED:
        return ""
    told = f"warning: off by more than {TRUSTED:.0%}; "
    block = block_of(profile.backend)  # type: ignore[arg-type]
    if block and profile.round_to % block:
        return told + (
            f"{profile.backend} takes {block} channels at a time here, and time rises in steps of "
            f"them: set [budget] round_to = {block}, or another multiple, and measure again"
        )
    return told + (
        "most often other load on the machine did it: measure again while it is quiet, or longer "
        "with --seconds 0.1"
    )


def profile_bundle(
    bundle: Bundle,
    *,
    backend: Backend = "cpu",
    batch: int = 1,
    threads: int = 1,
    seconds: float = 0.024,
    step: Step = lambda _: None,
) -> Profile:
    """Time every different layer over a grid of widths, then whole networks to see them add up.

    Least times count: other load on the machine only adds. A layer's time is that of `COPIES`
    beside each other less that of one, over the number of those added.

    Args:
        bundle: of the unpruned network; `prunion export RUN.toml --untrained` makes one. Of a
            pruned one a warning is logged.
        seconds: for each of the two graphs of each width; whole networks get more.
        step: called with a name after each part of the work.

    Raises:
        BackendError: the backend is TensorRT, or did not start.
        InputError: the bundle is specialised to one domain.
        PrunionError: unknown backend.
    """
    form = _form_to_profile(bundle, backend)
    options = SessionOptions(backend, threads, share_arena=False)
    layers, table = _layers(bundle, form), form.unit_table(bundle.unit_table())
    round_to = bundle.manifest.round_to
    grids: dict[GraphLayer, Grid] = {}
    for weight, layer in layers.items():
        if layer not in grids:
            grids[layer] = _measure(layer, round_to, batch, options, seconds)
            step(weight)
    numbers = {layer: number for number, layer in enumerate(grids)}
    plain = Profile(
        network=bundle.manifest.name,
        size=(form.spec.height, form.spec.width),
        backend=backend,
        provider=_provider(bundle, form, options),
        batch=batch,
        threads=threads,
        round_to=round_to,
        machine=machine_facts(threads),
        layers={x.weight: (x, numbers[layers[x.weight]]) for x in table.layers},
        grids=tuple(grids.values()),
        fit=Fit(1.0, 0.0, 0.0, 0.0),  # of layers that simply add up
    )
    unions = sample_unions(table, round_to)
    measured = _whole(bundle, form, table, unions, batch, options, WHOLE * seconds)
    step("networks")
    sums = np.array([plain.milliseconds(table, alive) for alive in unions])
    fit = fit_total(sums, measured)
    step("fit")
    predicted = fit.scale * sums + fit.constant
    samples = tuple(zip(predicted.tolist(), measured.tolist(), strict=True))
    return replace(plain, fit=fit, samples=samples)


def _form_to_profile(bundle: Bundle, backend: Backend) -> GraphForm:
    """The form of the bundle's graph. Raises where there is nothing to profile, warns if pruned."""
    check_backend(backend)
    if backend in TARGETS or backend in PREFIXES:
        raise BackendError(
            f"{backend} would build an engine for every width: use cpu, cuda or openvino"
        )
    form = form_of(bundle)
    if form.single:
        raise InputError(f"{bundle.path} is specialised to one domain: profile the whole bundle")
    params = bundle.manifest.params
    if params["exported"] < params["backbone"]:
        log.warning(
            "%s is pruned (%s of %s parameters): its profile prices no run of the whole network; "
            "profile the run file, or what `prunion export RUN.toml --untrained` writes",
            bundle.path,
            f"{params['exported']:,}",
            f"{params['backbone']:,}",
        )
    return form


def widths_to_measure(size: int, stride: int, round_to: int) -> tuple[int, ...]:
    """Up to `POINTS` widths of an axis that a union may have, closer where it is narrow.

    They are multiples of `round_to` times `stride`, the channels that go together; where that is 0,
    none do. Others may be none at all: groups need equal parts.
    """
    step = stride * round_to
    steps = np.arange(step, size, step) if step else np.array([], dtype=int)
    if len(steps) > POINTS - 1:
        last = len(steps) + 1
        # Halfway between equal steps and equal factors: blocked kernels bend at the narrow end.
        places = (np.geomspace(1, last, POINTS) + np.linspace(1, last, POINTS)) / 2
        steps = steps[np.unique(places.round().astype(int))[:-1] - 1]
    return (*map(int, steps), size)


def sample_unions(table: UnitTable, round_to: int) -> list[np.ndarray]:
    """Unions `[U]` bool to time whole: all channels, even shares, then a share for each layer."""
    random = np.random.default_rng(0)
    owner = np.full(table.count, len(table.layers))
    for number, layer in reversed(list(enumerate(table.layers))):
        units = table.slots.get((layer.weight, 0), np.array([], dtype=int))
        owner[units[units >= 0]] = number
    unions = []
    for number in range(len(UNIFORM) + RANDOM):
        if number < len(UNIFORM):
            share = np.full(len(table.layers) + 1, UNIFORM[number])
        else:
            middle = random.uniform(0.1, 0.9)
            share = random.normal(middle, 0.2, len(table.layers) + 1).clip(0, 1)
        on = random.random(table.count) < share[owner]
        unions.append(table.round_up(on, round_to))
    return unions


def _layers(bundle: Bundle, form: GraphForm) -> dict[str, GraphLayer]:
    table = form.unit_table(bundle.unit_table())
    pinned = pin_form(bundle.held_graph().read(), form, bundle.pack(bundle.domains[0]))
    return find_layers(load_graph(pinned)[0], table)


def _measure(
    layer: GraphLayer, round_to: int, batch: int, options: SessionOptions, seconds: float
) -> Grid:
    shape, strides = layer.shape, layer.strides
    out, inside = (widths_to_measure(shape[a], strides[a], round_to) for a in (0, 1))
    least: dict[str, float] = {}
    # A GPU's sessions have handles and workspaces of their own: only one row of them at a time.
    on_gpu = real_backend(options.backend) in ("auto", "cuda")
    for rows in [[a] for a in out] if on_gpu else [list(out)]:
        calls = {}
        for a, b, copies in product(rows, inside, (1, COPIES)):
            graph = layer_graph(layer, a, b, batch, copies)
            shape = (batch * layer.parts, *layer.image_at(a, b))
            calls[f"{a} {b} {copies}"] = _call(graph, shape, options)
        times = time_interleaved(calls, seconds, warmup=2, block_ms=1e3 * seconds / 3)
        least |= {name: timing.min_ms for name, timing in times.items()}
    added = COPIES - 1
    ms = [[(least[f"{a} {b} {COPIES}"] - least[f"{a} {b} 1"]) / added for b in inside] for a in out]
    return Grid(out, inside, monotone(np.array(ms)))


def _whole(
    bundle: Bundle,
    form: GraphForm,
    table: UnitTable,
    unions: list[np.ndarray],
    batch: int,
    options: SessionOptions,
    seconds: float,
) -> np.ndarray:
    """Least milliseconds of the network cut to each union, `[N]`.

    Raises UnsupportedGraphError where it cannot be cut.
    """
    pack, calls = bundle.pack(bundle.domains[0]), {}
    for number, alive in enumerate(unions):
        try:
            graph = pin_form(bundle.held_graph().read(), form, pack, table, alive)
        except UnsupportedGraphError as exc:
            text = f"{exc}; choose another kind of budget, such as macs"
            raise UnsupportedGraphError(text) from None
        calls[str(number)] = _call(graph, (batch, *form.image_shape), options)
    times = time_interleaved(calls, seconds, block_ms=1e3 * seconds / 16)
    return np.array([times[str(number)].min_ms for number in range(len(unions))])


def _call(graph: bytes, shape: tuple[int, ...], options: SessionOptions) -> Callable[[], object]:
    session = make_session(graph, options, {"image"})
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    return lambda: session.run(["logits"], {"image": image})


def _provider(bundle: Bundle, form: GraphForm, options: SessionOptions) -> str:
    pack = bundle.pack(bundle.domains[0])
    session = make_session(pin_form(bundle.held_graph().read(), form, pack), options, {"image"})
    return str(session.get_providers()[0])
