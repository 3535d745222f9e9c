"""What one would run without a shared network: a static session for each domain.

The front is prunion's own, so that only the network and the batching differ: requests are batched
within a domain alone, domains take turns, and each is answered by its own graph, whose scales and
shifts are folded into the convolutions and whose channels are only those that the domain uses.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import uvicorn

from prunion.benchmarks.cost import fold_by_hand
from prunion.runtime.backends import Session, SessionOptions, make_ort_session, run
from prunion.runtime.base import default_round_to, free_memory
from prunion.runtime.batching import (
    Batcher,
    BatchOptions,
    Catalogue,
    FairQueue,
    Group,
    Job,
    Piece,
    runs_at_once,
)
from prunion.runtime.bundle import Pack
from prunion.runtime.cli import FilePath, FiniteRange, OneLineCommand
from prunion.runtime.graph import pin_pack
from prunion.runtime.model import LiveDomain, Model, load
from prunion.runtime.serve import (
    Gate,
    ServeOptions,
    Service,
    Serving,
    http_app,
    protocol_of,
)

__all__ = ["DomainQueue", "PerDomainModel", "main", "static_graph"]


def static_graph(model: Model, pack: Pack, sliced: bool) -> bytes:
    """A domain's own graph: folded by hand where it can be, its own channels if `sliced`."""
    graph, table = model.sessions.graph.read(), model.bundle.unit_table()
    alive = table.round_up(pack.switches, default_round_to()) if sliced else None
    pinned = pin_pack(graph, pack, table, alive) if alive is not None else pin_pack(graph, pack)
    try:
        return fold_by_hand(pinned)
    except ValueError:  # ONNX Runtime folds what is left
        return pinned


class PerDomainModel(Model):
    """Answers batches of one domain, each by its own session."""

    def __init__(self, model: Model, threads: int, sliced: bool) -> None:
        super().__init__(model.bundle, model.sessions, model.snapshot)
        options = SessionOptions("cpu", threads)
        self.static: dict[str, Session] = {
            domain.name: make_ort_session(static_graph(model, domain.pack, sliced), options)
            for domain in model.snapshot.domains
        }

    def answer(self, array: np.ndarray, domains: Sequence[LiveDomain]) -> np.ndarray:
        """`[N, C]` of the one domain that all rows are of."""
        name = domains[0].name
        assert all(domain.name == name for domain in domains)
        return run(self.static[name], {"image": array})


class DomainQueue(FairQueue):
    """A queue for each domain; the one that waited longest for its turn gives the next batch."""

    def __init__(self, limit: int, chunk: int) -> None:
        super().__init__(limit, chunk)
        self.queues: OrderedDict[str, FairQueue] = OrderedDict()

    def put(self, job: Job) -> None:
        """Queue a job, whose rows are of one domain."""
        name = job.domains[0].name
        queue = self.queues.setdefault(name, FairQueue(self.limit, self.chunk))
        queue.put(job)
        self._count()

    def ahead(self, domains: tuple[LiveDomain, ...]) -> int:
        """About how many rows are served before."""
        return self.rows + len(domains)

    def take(
        self, most: int, now: float, group: Group | None = None
    ) -> tuple[list[Piece], list[Job]]:
        """A batch of one domain, and the jobs whose deadline is over."""
        taken: list[Piece] = []
        expired: list[Job] = []
        for name in [name for name, queue in self.queues.items() if queue.rows]:
            self.queues.move_to_end(name)
            taken, late = self.queues[name].take(most, now)
            expired += late
            if taken:
                break
        self._count()
        return taken, expired

    def drop(self, job: Job) -> None:
        """Take a job out."""
        queue = self.queues.get(job.domains[0].name)
        if queue is not None:
            queue.drop(job)
        self._count()

    def _count(self) -> None:
        self.rows = sum(queue.rows for queue in self.queues.values())


class _PerDomainBatcher(Batcher):
    def __init__(self, model: Model, options: BatchOptions, service: Service) -> None:
        super().__init__(model, options, service.statistics)
        self._queue = DomainQueue(options.queue_rows, options.max_batch)


class _PerDomainService(Service):
    def __init__(self, model: Model, options: ServeOptions) -> None:
        super().__init__(model, options)
        limits = options.limits
        batches = BatchOptions(
            options.max_batch, options.delay, limits.queue_rows, at_once=runs_at_once(model)
        )
        batcher = _PerDomainBatcher(model, batches, self)
        self._serving = Serving(model, batcher, Catalogue(model))


async def _serve(service: Service, port: int) -> None:
    limits = service.options.limits
    app = http_app(service, Gate(limits.requests, limits.client_requests))
    config = uvicorn.Config(
        app,
        port=port,
        loop="asyncio",
        http=protocol_of(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=2048,
    )
    await uvicorn.Server(config).serve()


@click.command(cls=OneLineCommand)
@click.argument("bundle", type=FilePath(path_type=Path))
@click.option("--packs", type=FilePath(path_type=Path), help="A folder of more domains.")
@click.option("--port", default=8000)
@click.option("--threads", default=1)
@click.option(
    "--delay",
    type=FiniteRange(0, 60),
    default=0.0,
    help="Seconds that a row waits for others of its domain.",
)
@click.option("--sliced/--whole", default=True, help="A domain's own channels, or the union's.")
def main(
    bundle: Path, packs: Path | None, port: int, threads: int, delay: float, sliced: bool
) -> None:
    """Serve BUNDLE with one session for each domain."""
    model = load(bundle, "cpu", threads=threads)
    for pack in sorted(packs.glob("*.safetensors")) if packs is not None else ():
        model.add_domain(pack)
    static = PerDomainModel(model, threads, sliced)
    free_memory()  # what making the sessions left behind is not theirs
    asyncio.run(_serve(_PerDomainService(static, ServeOptions(log="off", delay=delay)), port))


if __name__ == "__main__":
    main()
