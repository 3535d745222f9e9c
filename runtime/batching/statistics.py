"""What a server has done, counted with Triton's meanings: for the bundle and for each domain."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

__all__ = [
    "BATCH_EDGES",
    "MOST_DOMAINS",
    "OTHER",
    "Duration",
    "ModelStatistics",
    "RequestTimes",
    "Run",
    "Statistics",
]

MOST_DOMAINS = 256  # counted one by one; the others share OTHER, so that memory stays bounded
OTHER = "(other)"
RECENT = 32  # runs that are kept
BATCH_EDGES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass
class Duration:
    """How often, and how long altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """One more."""
        self.count += 1
        self.ns += ns


@dataclass(frozen=True)
class RequestTimes:
    """Nanoseconds of one request: reading and decoding, queue, network, writing, altogether."""

    input_ns: int = 0
    queue_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    total_ns: int = 0


@dataclass
class ModelStatistics:
    """One model's counts; `batches` by the rows that ran together.

    `inference_count` counts rows and `execution_count` runs, so their quotient is the mean batch.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    inference_count: int = 0
    execution_count: int = 0
    last_inference: int = 0  # milliseconds since 1970
    batches: dict[int, Duration] = field(default_factory=dict)

    def add(self, times: RequestTimes) -> None:
        """A request that was answered."""
        self.success.add(times.total_ns)
        self.queue.add(times.queue_ns)
        self.compute_input.add(times.input_ns)
        self.compute_infer.add(times.infer_ns)
        self.compute_output.add(times.output_ns)


@dataclass(frozen=True)
class Run:
    """One run of the network: its images by domain, and its time."""

    domains: Mapping[str, int]
    ns: int


class Statistics:
    """Thread-safe for those who record; who reads more than a number takes a copy.

    Attributes:
        total: the bundle's.
        domains: by name; at most MOST_DOMAINS, those that were answered first, and the rest under
            one name.
        refused: requests turned away, by reason.
        mixes: runs by the number of domains in them.
        recent: the last runs, the newest last.
    """

    def __init__(self) -> None:
        self.total = ModelStatistics()
        self.domains: dict[str, ModelStatistics] = {}
        self.refused: Counter[str] = Counter()
        self.mixes: Counter[int] = Counter()
        self.recent: deque[Run] = deque(maxlen=RECENT)
        self.pack_reads = Duration()
        self._lock = threading.Lock()

    def copied(self) -> Statistics:
        """All of it at one moment, for a reader: other threads write to this one."""
        found = Statistics()
        with self._lock:
            found.total, found.domains = deepcopy(self.total), deepcopy(self.domains)
            found.refused, found.mixes = self.refused.copy(), self.mixes.copy()
            found.recent, found.pack_reads = self.recent.copy(), replace(self.pack_reads)
        return found

    def of(self, domain: str) -> ModelStatistics | None:
        """One domain's counts; None where they may be among those of all others."""
        name = self._counted_as(domain)
        if name == OTHER and OTHER in self.domains:
            return None
        return self.domains.get(name) or ModelStatistics()

    def record_batch(self, names: Sequence[str], spent_ns: int) -> int:
        """One run of the network, the domain of each of its rows, and its time.

        Returns how many domains were in it.
        """
        now, counts = time.time_ns() // 1_000_000, Counter(names)
        with self._lock:
            self.mixes[len(counts)] += 1
            self.recent.append(Run(counts, spent_ns))
            places: Counter[str] = Counter()  # domains that share one ran together all the same
            for name, rows in counts.items():
                places[self._place(name)] += rows
            each = [(self.domains[name], rows) for name, rows in places.items()]
            for found, rows in ((self.total, len(names)), *each):
                found.inference_count += rows
                found.execution_count += 1
                found.last_inference = now
                found.batches.setdefault(rows, Duration()).add(spent_ns)
        return len(counts)

    def record_success(self, names: Iterable[str], times: RequestTimes) -> None:
        """One answered request; of several domains it counts for each."""
        with self._lock:
            self.total.add(times)
            for name in {self._place(x) for x in set(names)}:
                self.domains[name].add(times)

    def record_failure(self, total_ns: int, refused: str = "") -> None:
        """One request that got an error; `refused` is the reason of a refusal."""
        with self._lock:
            self.total.fail.add(total_ns)
            if refused:
                self.refused[refused] += 1

    def record_refusal(self, reason: str) -> None:
        """A request turned away before it was read."""
        with self._lock:
            self.refused[reason] += 1

    def record_pack(self, spent_ns: int) -> None:
        """A pack that was read for a request."""
        with self._lock:
            self.pack_reads.add(spent_ns)

    def _counted_as(self, domain: str) -> str:
        """The name that a domain has, or would have, in `domains`."""
        left = len(self.domains) - (OTHER in self.domains) < MOST_DOMAINS
        # A domain that is itself called so would be taken for all others, or they for it.
        return domain if domain in self.domains or (left and domain != OTHER) else OTHER

    def _place(self, domain: str) -> str:
        """The same; it is there afterwards."""
        name = self._counted_as(domain)
        self.domains.setdefault(name, ModelStatistics())
        return name
