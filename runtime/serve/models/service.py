"""A bundle being served: from a checked request to its answer, whatever is loaded meanwhile."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from prunion.runtime.base import shown
from prunion.runtime.batching import (
    Decoder,
    Job,
    PackFolder,
    RequestTimes,
    Statistics,
    Tracing,
    Watcher,
)
from prunion.runtime.errors import DomainError, InputError, OverloadError, PrunionError
from prunion.runtime.model import LiveDomain, Model, Prediction, to_prediction
from prunion.runtime.protocol import (
    InferRequest,
    InferResponse,
    check_rows,
    domains_of,
    images_of,
    infer_response,
)
from prunion.runtime.serve.guard import is_servers_own
from prunion.runtime.serve.models.asked import Answered, Asked, prepared
from prunion.runtime.serve.models.serving import (
    Serving,
    check_weights,
    make_serving,
    open_anew,
    warm,
)
from prunion.runtime.serve.options import ServeOptions
from prunion.runtime.serve.waiting import within

__all__ = ["Service", "check_version"]

VERSIONS = ("", "1")
logger = logging.getLogger("prunion.serve")


class Service:
    """What HTTP and gRPC both ask.

    Attributes:
        ready: false from the moment the server is to stop.
        changing: held by who loads or unloads, so that nothing of it is lost to a bundle that is
            replaced meanwhile.
    """

    def __init__(
        self, model: Model, options: ServeOptions | None = None, tracing: Tracing | None = None
    ) -> None:
        self.options = options or ServeOptions()
        self.tracing = tracing
        self.statistics = Statistics()
        limits = self.options.limits
        self.decoder = Decoder(self.options.decode_threads, limits.max_pixels, limits.pixels)
        self.ready = True
        self._serving = make_serving(model, self.options, self.statistics)
        self.changing = asyncio.Lock()
        self._watcher: Watcher | None = None

    @property
    def serving(self) -> Serving:
        """What answers now. Take it once for a request."""
        return self._serving

    def start(self) -> None:
        """Make the session, measure what batches bring, and read what is to be read at start.

        Raises PrunionError.
        """
        check_weights(self._serving, self.options)
        warm(self._serving, self.options)
        if self.options.watch is not None:
            self._watcher = Watcher(PackFolder(self.options.watch), self._serving.catalogue)
            self._watcher.start()

    async def stop(self) -> None:
        """As `close`, once nothing is being loaded: sessions that are made meanwhile would be
        nobody's to close, and abort the process at its end."""
        self.ready = False
        async with self.changing:
            await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Answer what was accepted, then let go of everything."""
        self.ready = False
        if self._watcher is not None:
            self._watcher.close()
        self._serving.batcher.close()
        self._serving.model.close()
        self.decoder.close()

    async def infer(
        self,
        model: str,
        version: str,
        request: InferRequest,
        arrived: int,
        left: float = math.inf,
    ) -> InferResponse:
        """The answer of a model to a request that arrived at `arrived` (`perf_counter_ns`).

        `left` is how many seconds the client still waits. Raises DomainError where there is no
        such model or domain, InputError, OverloadError.
        """
        with self._counted(arrived):
            return await self._infer(model, version, request, arrived, left)

    async def _infer(
        self, model: str, version: str, request: InferRequest, arrived: int, left: float
    ) -> InferResponse:
        check_version(version)
        serving = self._serving
        form = serving.model.sessions.form
        mixed = serving.takes_domain(model, request.tensors)
        if not mixed:
            await self._domain(serving, model)
        inputs = {"image", "domain"} if mixed else {"image"}
        source = images_of(request, form, inputs, self.options.limits.rows)
        asked = Asked(
            source,
            arrived,
            domain="" if mixed else model,
            domains=domains_of(request, len(source)) if mixed else (),
            left=min(left, request.timeout or math.inf),
            priority=request.priority,
        )
        answered = await self._answer(serving, asked)
        classes = [domain.pack.classes for domain in answered.job.domains]
        answer = infer_response(model, request, answered.logits, classes, answered.strange)
        self._record(answered, arrived)
        return answer

    async def classify(
        self, domain: str, items: Sequence[bytes], top: int, arrived: int
    ) -> list[Prediction]:
        """The best classes of encoded images of one domain. Raises as `infer` does."""
        with self._counted(arrived):
            return await self._classify(domain, items, top, arrived)

    async def _classify(
        self, domain: str, items: Sequence[bytes], top: int, arrived: int
    ) -> list[Prediction]:
        serving = self._serving
        await self._domain(serving, domain)
        if not items:
            raise InputError("no images given: send at least one")
        check_rows(len(items), self.options.limits.rows)
        answered = await self._answer(serving, Asked(list(items), arrived, domain))
        rows = zip(answered.logits, answered.job.domains, strict=True)
        answers = [to_prediction(row, own.pack, top) for row, own in rows]
        self._record(answered, arrived)
        return answers

    async def replace(self, bundle: Path) -> None:
        """Serve the bundle that lies there now; requests of the former one are still answered.

        Raises PrunionError, and then the former one goes on.
        """
        # To its end, though who asked for it may have gone: half of it must not be served.
        await asyncio.shield(self._replace(bundle))

    async def _replace(self, bundle: Path) -> None:
        async with self.changing:
            if not self.ready:
                raise OverloadError("the server stops: ask another one, or later", "draining")
            old = self._serving
            new = await asyncio.to_thread(open_anew, bundle, old, self.options, self.statistics)
            gone = new
            try:
                # Before it answers, or the watched domains would be missing for a moment.
                if self._watcher is not None:
                    await asyncio.to_thread(self._watcher.take, new.catalogue)
                self._serving, gone = new, old
            finally:
                await asyncio.to_thread(gone.batcher.close)
                await asyncio.to_thread(gone.model.close)
            logger.info("serving %s anew", new.name)

    async def domain(self, name: str) -> LiveDomain:
        """What answers for a name now, read from its file if need be.

        Raises DomainError if there is none, BundleError for a file that cannot be taken.
        """
        return await self._domain(self._serving, name)

    async def _prepared(self, serving: Serving, asked: Asked) -> tuple[np.ndarray, str]:
        """Raises OverloadError where their time is over first."""
        work = prepared(asked.images, serving.model.sessions.form, self.decoder)
        spent = (time.perf_counter_ns() - asked.arrived) / 1e9
        try:
            return await within(self.options.limits.deadline - spent, work)
        except asyncio.TimeoutError:
            raise OverloadError("decoding took too long: try again later", "deadline") from None

    async def _answer(self, serving: Serving, asked: Asked) -> Answered:
        images, strange = await self._prepared(serving, asked)
        decoded = time.perf_counter_ns()
        spent = (decoded - asked.arrived) / 1e9
        deadline = time.monotonic() + min(asked.left, self.options.limits.deadline) - spent
        while True:
            domains: Sequence[LiveDomain]
            if asked.domain:
                domains = [await self._domain(serving, asked.domain)] * len(images)
                width = len(domains[0].pack.classes)
            else:
                domains = await self._domains(serving, asked.domains)
                most = max(len(x.pack.classes) for x in domains)
                width = max(serving.catalogue.width, most)
            job = Job(images, tuple(domains), width, deadline, asked.priority)
            try:
                return Answered(await self._ran(serving, job), job, decoded, strange)
            except OverloadError as exc:
                # The bundle was replaced since: it is the new one that answers.
                if exc.reason != "draining" or serving is self._serving:
                    raise
                old, serving = serving, self._serving
                if old.model.sessions.form == serving.model.sessions.form:
                    continue
                if isinstance(asked.images, np.ndarray) and asked.images.dtype != np.uint8:
                    text = "the bundle was replaced by one that prepares images otherwise"
                    raise OverloadError(f"{text}: prepare them anew", "draining") from None
                images, strange = await self._prepared(serving, asked)
                decoded = time.perf_counter_ns()

    async def _domain(self, serving: Serving, name: str) -> LiveDomain:
        found = serving.catalogue.find(name)
        if found is None:
            with _noted(serving, [name]):
                found = await self.decoder.run(serving.catalogue.read, name)
        return found

    async def _domains(
        self, serving: Serving, named: Sequence[int] | Sequence[str]
    ) -> Sequence[LiveDomain]:
        if isinstance(named[0], int):
            return serving.catalogue.at([x for x in named if isinstance(x, int)])
        found = {name: await self._domain(serving, str(name)) for name in dict.fromkeys(named)}
        return [found[name] for name in named]

    async def _ran(self, serving: Serving, job: Job) -> np.ndarray:
        names = [domain.name for domain in job.domains]
        with _noted(serving, names):
            logits = await serving.batcher.answer(job)
        serving.failing.clear(names)
        return logits

    @contextmanager
    def _counted(self, arrived: int) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            reason = exc.reason if isinstance(exc, OverloadError) else ""
            self.statistics.record_failure(time.perf_counter_ns() - arrived, reason)
            raise

    def _record(self, answered: Answered, arrived: int) -> None:
        now, job, decoded = time.perf_counter_ns(), answered.job, answered.decoded
        times = RequestTimes(
            input_ns=decoded - arrived,
            queue_ns=max(job.started - job.arrived, 0),
            infer_ns=job.infer_ns,
            output_ns=max(now - job.ended, 0),
            total_ns=now - arrived,
        )
        self.statistics.record_success((domain.name for domain in job.domains), times)
        if self.tracing is not None:
            self.tracing.record(job, arrived, decoded)


def check_version(version: str) -> None:
    """Raise DomainError unless a model has this version; none named is any."""
    if version not in VERSIONS:
        raise DomainError(f"there is no version {shown(version)}, only '1'")


@contextmanager
def _noted(serving: Serving, domains: Sequence[str]) -> Iterator[None]:
    """While the block answers for these: what fails of the server's own is noted, and logged."""
    try:
        yield
    except PrunionError as exc:
        if is_servers_own(exc):
            serving.fails(domains, exc)
        raise
