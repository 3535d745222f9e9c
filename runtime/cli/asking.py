"""`prunion bench --scenario`: a whole model, or a running server, asked as MLPerf does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from prunion.runtime.cli.options import echo_json

if TYPE_CHECKING:
    from prunion.runtime.measure import Scenario, ScenarioReport
    from prunion.runtime.model import Model

__all__ = ["SAMPLES", "ask_scenario"]

SAMPLES = {"single": 1, "multi": 8, "server": 1}  # images in one query; offline: a batch
SENDERS = 32  # queries on their way to a server at a time
WARM_UP = 3


def ask_scenario(
    scenario: Scenario,
    bundle: str,
    *,
    loading: dict[str, Any],
    batch: int,
    seconds: float,
    bound_ms: float,
    domains: str,
    url: str | None,
    as_json: bool,
) -> None:
    """Ask, and print what came of it; `loading` is what `load` is told beside the bundle."""
    from prunion.runtime.base import machine_facts, read_state, slowed_down
    from prunion.runtime.measure import scenario_line
    from prunion.runtime.model import load

    model = load(bundle, **loading)
    unknown = url is not None and not _is_served(model, url)
    machine, before = machine_facts(loading["threads"]), read_state()
    samples = SAMPLES.get(scenario, batch)
    found = _asked(model, scenario, samples, seconds, bound_ms, domains, url)
    slow = slowed_down(before, read_state())
    if as_json:
        asked = url or f"this process, {loading['backend']}, {loading['precision']}"
        of: dict[str, object] = {
            "bundle": str(model.bundle.path),
            "asked": asked,
            "domains": domains,
        }
        manifest = model.bundle.manifest
        of |= {"trunk_hash": manifest.trunk_hash, "model_sha256": manifest.model_sha256}
        if url:  # None: it does not tell
            of["served_is_this"] = None if unknown else True
        echo_json({**of, **found.to_json(), "machine": machine, "slowed_down": slow})
        return
    click.echo(scenario_line(found))
    if unknown:
        click.echo(f"note: {url} does not tell which bundle it serves: this one is not known to be")
    click.echo("machine: " + ", ".join(f"{key} {value}" for key, value in machine.items()))
    if slow:
        click.echo(f"note: may be slowed down: {slow}")


def _is_served(model: Model, url: str) -> bool:
    """Whether a server says that this very bundle answers there; not where it says nothing.

    Raises InputError where it is another, whose figures would be told as this one's.
    """
    from prunion.runtime.errors import InputError
    from prunion.runtime.protocol import identity_of

    manifest = model.bundle.manifest
    own = {"trunk_hash": manifest.trunk_hash, "model_sha256": manifest.model_sha256}
    served = identity_of(url, manifest.name)
    if served and served != own:
        raise InputError(
            f"{url} serves another bundle as {manifest.name!r}: give the one that it serves, or "
            "let it serve this one"
        )
    return bool(served)


def _asked(
    model: Model,
    scenario: Scenario,
    samples: int,
    seconds: float,
    bound_ms: float,
    domains: str,
    url: str | None,
) -> ScenarioReport:
    """Queries of `samples` random images; each goes on round the domains where the last ended."""
    from itertools import cycle

    from prunion.runtime.errors import InputError
    from prunion.runtime.measure import domain_rows, run_scenario
    from prunion.runtime.protocol import grpc_caller, http_caller

    names = list(model.domains)
    rows = domain_rows(model.bundle, domains)
    if model.sessions.form.single and url:
        raise InputError("a specialised bundle is asked in this process: leave --url out")
    image = model.sessions.form.noise(samples)
    turns = [
        [rows[(start + place) % len(rows)] for place in range(samples)]
        for start in range(0, len(rows) * samples, samples)
    ]
    call: Callable[[], object]
    if url:
        caller = grpc_caller if url.startswith("grpc:") else http_caller
        call = caller(url, model.bundle.manifest.name, image, turns)
    else:
        asked = cycle([[names[row] for row in turn] for turn in turns])

        def call() -> object:
            return model.logits(image, next(asked))

    for _ in range(WARM_UP * len(turns)):
        call()
    workers = SENDERS if url else 1
    return run_scenario(scenario, call, samples, seconds, bound_ms=bound_ms, workers=workers)
