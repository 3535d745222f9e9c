"""What a page tells of one trained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunion.benchmarks.report.measured import measured_as
from prunion.runtime.images import same_images
from prunion.trainer.score import PARTS, MadeBy

__all__ = ["Identity", "Subject"]

OF_ANY_DOMAIN = ("mixed", "split", "single")  # sessions; a bundle has one of these


@dataclass(frozen=True, eq=False)
class Identity:
    """By which a run and its bundle are known to be one network.

    Attributes:
        model: SHA-256 of the checkpoint's tensors; "" in bundles of before it was written down.
        config: of the run, as `RunConfig.to_json` gave it.
        accuracy: by domain.
        widths: each layer's output channels, before and after, rounding included.
    """

    model: str
    config: Mapping[str, Any]
    accuracy: Mapping[str, float]
    widths: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Subject:
    """One trained network, as far as its files tell.

    Attributes:
        name: of its folder.
        accuracy: by domain, on the test images; `after_warmup` with every channel on before
            pruning, `baseline` with every channel trained as long. Both may be empty.
        validated: whether `after_warmup` is of validation images, where a domain has some.
        verdict: what pruning cost and what to try next, in words.
        budget: `kind`, `asked`, `value`, `met`.
        params, macs: of the backbone's trunk, and of what is kept.
        trunk_hash, packs: of its bundle; SHA-256 of each domain's pack.
        stored: of domains with weights of their own, parameters as a multiple of the backbone's as
            the papers count; NaN where a file from before then does not tell, None without.
        file_bytes: of the exported fp32 graph, and of domains' own weights beside it.
        widths: each layer's output channels, before and after.
        chosen: what each domain chose of the kept channels of each layer: names → layer → share.
        users: of each layer the kept channels that were chosen by all domains, by several, by
            one, by none.
        sharing: of the channels that one domain chose, the share that another chose.
        log: the lines of its log.
        figures: of each domain's test images what `prunion eval` counts, with the surest mistakes.
        evaluations: the files of `prunion eval` that are of this network.
        made_by: the run's settings, classes and images.
        notes: what a reader of the page is to know.
        scores: S, S_O, S_P, S_E.
        measured: what `prunion bench --json` printed.
        unfinished: the domains of a run that was stopped, of which there is a log only.
        identity: by which a run and its bundle are one; None of a run that is not done.
    """

    name: str
    accuracy: Mapping[str, float]
    budget: Mapping[str, Any]
    params: tuple[float, float]
    macs: tuple[float, float]
    widths: Mapping[str, tuple[int, int]]
    identity: Identity | None
    trunk_hash: str = ""
    packs: Mapping[str, str] = field(default_factory=dict)
    stored: float | None = None
    after_warmup: Mapping[str, float] = field(default_factory=dict)
    validated: bool = False
    baseline: Mapping[str, float] = field(default_factory=dict)
    verdict: tuple[str, ...] = ()
    epochs: tuple[int, int] = (0, 0)
    file_bytes: int | None = None
    chosen: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    users: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)
    sharing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    log: Sequence[Mapping[str, Any]] = ()
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evaluations: Sequence[Mapping[str, Any]] = ()
    made_by: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    measured: Sequence[Mapping[str, Any]] = ()
    unfinished: tuple[str, ...] = ()
    bundle: str = ""

    @property
    def mean_accuracy(self) -> float:
        """Over the domains."""
        return float(np.mean(list(self.accuracy.values())))

    @property
    def params_left(self) -> float:
        """Parameters as a share of the backbone's, own weights too; NaN where that is unknown."""
        if self.stored is not None:
            return self.stored
        return self.params[1] / self.params[0] if self.params[0] else 1.0

    def answers(self) -> dict[str, Mapping[str, Any]]:
        """Figures by whose answers they are to which images: domain, variant and images, in words.

        The run's own come first; files of `prunion eval` stand beside these, never in their place.
        """
        found = {f"{name}, the run's test images": own for name, own in self.figures.items()}
        for own in self.evaluations:
            told = f"{own['domain']}, {own['precision']}, {_images_of(own, self.made_by)}"
            again = sum(key.startswith(told) for key in found)
            found[f"{told} ({again + 1})" if again else told] = own
        return found

    def milliseconds(self) -> dict[str, float]:
        """Median of one image of any domain, by what answered where (`measured_as`)."""
        found: dict[str, float] = {}
        for report in self.measured:
            for row in report.get("rows", ()):
                if row["session"] in OF_ANY_DOMAIN and row["batch"] == 1:
                    found.setdefault(measured_as(report, row["session"]), row["timing"]["p50_ms"])
        return found


def _images_of(evaluation: Mapping[str, Any], made_by: MadeBy) -> str:
    """Which images an evaluation's file is of: a part of its run's, or the paths that it names."""
    digest = str(evaluation.get("images_digest", ""))
    known = made_by.get("domains", {}).get(str(evaluation["domain"]), {}).get("digests", {})
    for part in ("test", "validation", "train"):
        if same_images(digest, str(known.get(part, ""))):
            return f"the run's {PARTS[part]} images"
    paths = ", ".join(map(str, evaluation.get("data", ())))
    return f"images of {paths}" if paths else "images that its file does not name"
