"""Mixed or split, tried on real batches: the plan was measured before any request had come.

The plan times one domain's sessions alone. Under load many domains' sessions share the caches, and
batches are of other sizes, so what is faster may change with the mix. Batches of about so many rows
and domains are one kind. A kind that comes often is run both ways in turn for a few batches, and
then goes the faster way, until that takes longer than it did or ten minutes are over. The answers
are the same either way.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

__all__ = ["Trials"]

OFTEN = 16  # batches of a kind before it is worth a trial
ROUNDS = 5  # batches that run each way in a trial
MUCH = 3.0  # times as slow: one batch is enough to know
CLEAR = 0.95  # of the time that the way in force takes: else it stays
DRIFT = 1.5  # times as slow as in its trial: the mix is another
NEVER = float("-inf")
AGAIN, SOONEST = 600.0, 30.0  # seconds after which a trial is repeated; at the earliest
DECAY = 0.9
Kind = tuple[int, int]


@dataclass
class _State:
    """What is known of a kind; times are seconds of a row."""

    splits: bool
    seen: int = 0
    tried: float = NEVER
    usual: float = 0.0
    lately: float = 0.0
    times: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})


class Trials:
    """Thread-safe: whoever asks `splits` runs the batch, and tells `record`.

    `clock` gives seconds.

    Attributes:
        runs: batches of several domains so far, by whether they were split.
        done: trials that came to an end.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.runs: Counter[bool] = Counter()
        self.done = 0
        self._clock = clock
        self._own = threading.local()  # when the batch of a thread began
        self._lock = threading.Lock()
        self._kinds: dict[Kind, _State] = {}

    def splits(self, counts: Sequence[int], planned: bool, may_split: Callable[[], bool]) -> bool:
        """Whether a batch with `counts` images of each domain is to be split.

        `planned` is what the plan says; `may_split` whether that needs no new session, which is
        asked only where it would be a trial.
        """
        with self._lock:
            state = self._kinds.setdefault(_kind(counts), _State(planned))
            state.seen += 1
            self._own.begun = self._clock()
            now = state.splits
            if not self._on_trial(state) or len(state.times[now]) <= len(state.times[not now]):
                return now
            if now or may_split():
                return not now
            state.tried, state.seen = self._clock(), 0  # later, perhaps
            return now

    def record(self, counts: Sequence[int], split: bool) -> None:
        """The batch ran, one way or the other, and ends now."""
        row = (self._clock() - self._own.begun) / sum(counts)
        with self._lock:
            self.runs[split] += 1
            self._record(self._kinds[_kind(counts)], row, split)

    def _record(self, state: _State, row: float, split: bool) -> None:
        if not self._on_trial(state):
            if split == state.splits:
                state.lately = DECAY * state.lately + (1 - DECAY) * row
            return
        state.times[split] = [*state.times[split], row][-ROUNDS:]
        own, other = state.times[state.splits], state.times[not state.splits]
        hopeless = own and other and min(other) > MUCH * min(own)
        if hopeless or min(len(own), len(other)) >= ROUNDS:
            self._settle(state)

    def in_force(self) -> Iterator[tuple[Kind, bool]]:
        """The kinds that were tried, (rows, domains) at most, and whether they are split."""
        with self._lock:
            found = [(kind, x.splits) for kind, x in self._kinds.items() if x.usual]
        yield from sorted(found)

    def _on_trial(self, state: _State) -> bool:
        if state.seen < OFTEN:
            return False
        since = self._clock() - state.tried
        return since > AGAIN or (since > SOONEST and state.lately > DRIFT * state.usual)

    def _settle(self, state: _State) -> None:
        typical = {way: median(found) for way, found in state.times.items()}
        if typical[not state.splits] < CLEAR * typical[state.splits]:
            state.splits = not state.splits
        state.usual = state.lately = typical[state.splits]
        state.tried, state.seen = self._clock(), 0
        state.times = {True: [], False: []}
        self.done += 1


def _kind(counts: Sequence[int]) -> Kind:
    """Rows and domains, each up to the next power of two."""
    return 1 << (sum(counts) - 1).bit_length(), 1 << (len(counts) - 1).bit_length()
