"""The server as a Ray Serve application: replicas that each hold the bundle and batch across its
domains, on as many machines as a Ray cluster has; the protocol is the one over HTTP.

    serve run prunion.runtime.serve.ray:application bundle=/srv/toy.prunion replicas=1..4
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from prunion.runtime.batching import make_tracing
from prunion.runtime.errors import ConfigError
from prunion.runtime.serve.guard import Gate, read_keys
from prunion.runtime.serve.http.app import http_app
from prunion.runtime.serve.models import Service, load_model
from prunion.runtime.serve.options import LoadOptions, ServeOptions

__all__ = ["application", "replicated"]

REPLICAS = re.compile(r"(\d{1,5})(?:\.\.(\d{1,5}))?")
# Ray listens, and asks every replica in turn: what these say would be ignored without a word.
RAYS_OWN = (
    "host port grpc_port uds certificate private_key client_ca workers ready_seconds control log"
).split()
ARGUMENTS: Mapping[str, type] = {  # of `serve run`, which gives texts, and of Ray's YAML files
    "backend": str,
    "precision": str,
    "threads": int,
    "memory_limit": int,
    "packs": Path,
    "watch": Path,
    "api_keys": Path,
    "max_batch": int,
}


class Replica:
    """One process with its own copy of the network, its queue and its batches."""

    http: ASGIApp

    def __init__(self, bundle: str, options: ServeOptions) -> None:
        tracing = make_tracing(options.otlp)
        self.service = Service(load_model(bundle, options.load), options, tracing)
        self.service.start()
        gate = Gate(options.limits.requests, options.limits.client_requests)
        keys = None if options.api_keys is None else read_keys(options.api_keys)
        self.http = http_app(self.service, gate, keys)

    def check_health(self) -> None:
        """Ray replaces a replica where this raises."""
        if not self.service.ready:
            raise RuntimeError("this replica is stopping")

    def __del__(self) -> None:
        if hasattr(self, "service"):  # or the bundle could not be loaded
            self.service.close()


class _Asgi:
    """What Ray calls in a replica. It can travel there, which the application itself cannot."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        replica = serve.get_replica_context().servable_object
        await replica.http(scope, receive, send)


def replicated(
    bundle: Path | str,
    options: ServeOptions | None = None,
    *,
    replicas: tuple[int, int] = (1, 1),
    cpus: float | None = None,
    gpus: float = 0,
) -> Any:
    """An application for `ray.serve.run`.

    Args:
        bundle: its folder, under the same path on every machine of the cluster.
        options: as `serve` has them; of those that are about listening and stopping none may be
            given. API keys, packs and folders too are read where a replica runs.
        replicas: the fewest and the most. Ray starts another where more than a full batch of
            requests is with each.
        cpus: of a replica; its threads, or 1, if it is not said.
        gpus: of a replica.

    Raises:
        ConfigError: an option that Ray, not a replica, would have to follow.
    """
    options = options or ServeOptions()
    default = ServeOptions()
    wrong = [name for name in RAYS_OWN if getattr(options, name) != getattr(default, name)]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: Ray's proxies listen, and load and unload would reach one "
            "replica of several; tell Ray, and use a watched folder for domains"
        )
    least, most = replicas
    if not 1 <= least <= most:
        raise ConfigError(f"replicas are {least}..{most}: give 1 or more, and no fewer at most")
    cores = float(options.load.threads or 1) if cpus is None else cpus
    scaling: dict[str, Any] = {"num_replicas": least}
    if least < most:
        scaling = {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": options.max_batch,
            }
        }
    deployed = serve.deployment(
        name="prunion",
        ray_actor_options={"num_cpus": cores, "num_gpus": gpus},
        # All that wait must be seen by the batcher: Ray's default of 5 would be the largest batch.
        max_ongoing_requests=options.limits.requests,
        graceful_shutdown_timeout_s=options.drain_seconds,
        **scaling,
    )
    return deployed(serve.ingress(_Asgi())(Replica)).bind(str(bundle), options)


def application(args: Mapping[str, Any]) -> Any:
    """The same from `serve run … bundle=PATH NAME=VALUE …`, or a file's `args`.

    `replicas` is a number or `1..4`; `cpus`, `gpus`, and of the server's options `backend`,
    `precision`, `threads`, `memory_limit` (bytes), `packs` (read on demand), `watch`, `api_keys`
    and `max_batch`. Raises ConfigError.
    """
    given = {name: str(value) for name, value in args.items()}
    known = {"bundle", "replicas", "cpus", "gpus", *ARGUMENTS}
    if unknown := sorted(given.keys() - known):
        raise ConfigError(f"no argument {unknown[0]!r}: there are {', '.join(sorted(known))}")
    if "bundle" not in given:
        raise ConfigError("no bundle is named: give bundle=PATH")
    found = REPLICAS.fullmatch(given.get("replicas", "1"))
    if found is None:
        raise ConfigError(f"replicas={given['replicas']}: give a number, or 1..4")
    try:
        typed = {name: kind(given[name]) for name, kind in ARGUMENTS.items() if name in given}
        cpus = float(given["cpus"]) if "cpus" in given else None
        gpus = float(given.get("gpus", 0))
    except ValueError as exc:
        raise ConfigError(f"an argument is no number ({exc}): give one") from None
    own = {field.name for field in fields(LoadOptions)} & typed.keys()
    load = LoadOptions(**{name: typed.pop(name) for name in own})
    if "packs" in typed:
        typed["pack_folder"] = typed.pop("packs")
    options = ServeOptions(load=load, **typed)
    replicas = int(found[1]), int(found[2] or found[1])
    return replicated(given["bundle"], options, replicas=replicas, cpus=cpus, gpus=gpus)
