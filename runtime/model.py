"""A loaded bundle that classifies images of any of its domains."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prunion.runtime.bundle import Bundle, open_bundle
from prunion.runtime.errors import DomainError, InputError
from prunion.runtime.ort_session import SessionOptions, run
from prunion.runtime.preprocess import ImageLike, as_list, check_normalised, to_batch
from prunion.runtime.sessions import SessionPool

__all__ = ["Candidate", "Model", "Prediction", "load"]

DomainLike = str | int | np.integer


class Candidate(NamedTuple):
    """One class of a domain, with its probability in 0..1."""

    name: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one image; `top` holds the best few, best first."""

    domain: str
    class_name: str
    index: int
    probability: float
    top: tuple[Candidate, ...]


class Model:
    """Thread-safe; made by `load`."""

    def __init__(self, bundle: Bundle, sessions: SessionPool) -> None:
        self.bundle = bundle
        self.sessions = sessions

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain names; a name's place is its index."""
        return self.bundle.domains

    def classes(self, domain: DomainLike) -> tuple[str, ...]:
        """The class names of one domain."""
        return self.bundle.manifest.domains[self.domain_index(domain)].classes

    def domain_index(self, domain: DomainLike) -> int:
        """The bank row of a domain given by name or index. Raises DomainError if there is none."""
        if isinstance(domain, str):
            if domain in self.domains:
                return self.domains.index(domain)
            raise DomainError(self._unknown(domain))
        if isinstance(domain, bool) or not isinstance(domain, (int, np.integer)):
            raise DomainError(f"a domain is a name or an index, not {domain!r}")
        # A plain Gather would wrap a negative index around and answer for another domain.
        if not 0 <= domain < len(self.domains):
            raise DomainError(
                f"domain index {domain} is outside 0..{len(self.domains) - 1}: {self._listing()}"
            )
        return int(domain)

    def predict(
        self,
        images: Sequence[ImageLike] | ImageLike,
        domain: DomainLike | Sequence[DomainLike],
        top_k: int = 5,
        batch_size: int = 32,
    ) -> list[Prediction]:
        """Classify images: paths, bytes, PIL images, or arrays as `preprocess.to_batch` says.

        `domain` is one name or index for all images, or one for each. At most `batch_size`
        images are decoded at a time. Raises InputError or DomainError.
        """
        if top_k < 1 or batch_size < 1:
            raise InputError("top_k and batch_size must be at least 1")
        items = as_list(images)
        if not items:
            raise InputError("no images given: pass at least one")
        rows = self.domain_indices(domain, len(items))
        predictions: list[Prediction] = []
        for start in range(0, len(items), batch_size):
            part = slice(start, start + batch_size)
            array = to_batch(items[part], self.bundle.manifest.input)
            logits = self.logits(array, rows[part])
            predictions += [
                self._prediction(*x, top_k) for x in zip(logits, rows[part], strict=True)
            ]
        return predictions

    def logits(self, array: np.ndarray, domains: Sequence[DomainLike] | np.ndarray) -> np.ndarray:
        """`[N, 3, H, W]` float32 normalised, one domain each → `[N, Cmax]`.

        Logits are `-inf` past a domain's classes. A batch of one domain runs in its pinned session.
        Raises InputError for a wrong shape, type or NaN, DomainError for an unknown domain.
        """
        array = check_normalised(array, self.bundle.manifest.input)
        rows = self.domain_indices(domains, len(array))
        if (rows == rows[0]).all():
            return run(self.sessions.pinned(int(rows[0])), {"image": array})
        return run(self.sessions.mixed(), {"image": array, "domain": rows})

    def domain_indices(
        self, domain: DomainLike | Sequence[DomainLike] | np.ndarray, count: int
    ) -> np.ndarray:
        """`[count]` int64 rows of the bank, each checked to exist."""
        if isinstance(domain, str) or not isinstance(domain, (Sequence, np.ndarray)):
            return np.full(count, self.domain_index(domain), dtype=np.int64)
        rows = np.array([self.domain_index(x) for x in domain], dtype=np.int64)
        if len(rows) != count:
            raise DomainError(f"{len(rows)} domains for {count} images: give one, or one for each")
        return rows

    def _prediction(self, logits: np.ndarray, row: int, top_k: int) -> Prediction:
        domain = self.bundle.manifest.domains[int(row)]
        own = logits[: len(domain.classes)].astype(np.float64)
        if not np.isfinite(own).all():
            raise InputError(
                f"the network's answer for {domain.name} is not finite: check the image"
            )
        weights = np.exp(own - own.max())
        probabilities = weights / weights.sum()
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        top = tuple(Candidate(domain.classes[i], int(i), float(probabilities[i])) for i in best)
        return Prediction(domain.name, *top[0], top)

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.domains, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        return f"no domain {name!r} in {self.bundle.path}: {hint}{self._listing()}"

    def _listing(self) -> str:
        shown = ", ".join(self.domains[:20])
        return f"it has {shown}" + (", …" if len(self.domains) > 20 else "")


def load(
    path: Path | str,
    backend: str = "auto",
    *,
    precision: str = "fp32",
    threads: int | None = None,
) -> Model:
    """Open a bundle and check its files; sessions are made on first use.

    `backend` is `auto`, `cpu` or `cuda`. Raises BundleError, MissingDependencyError.
    """
    bundle = open_bundle(path)
    options = SessionOptions(backend=backend, threads=threads)
    return Model(bundle, SessionPool(bundle.graph(precision), options))
