"""`prunion eval`: how well a bundle answers for labelled images, as it answers on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunion.runtime.base import (
    Backend,
    Precision,
    default_threads,
    listed,
    read_json,
    reader_threads,
    shown,
    whole_argument,
)
from prunion.runtime.bundle import pack_sha256
from prunion.runtime.errors import InputError, PrunionError
from prunion.runtime.images import ImageSet, open_labelled, to_batch, to_pixels
from prunion.runtime.measure.figures import Answers, Figures, mistakes
from prunion.runtime.model import Model, load

__all__ = ["Evaluation", "evaluate", "foreign_to_evaluation"]

Progress = Callable[[int, int], None]  # images done, of how many

KIND = "prunion evaluation"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a bundle answered for a labelled data set.

    Attributes:
        images: how messages name each image, N of them.
        unknown: images that were left out, by their class, which the bundle does not know.
        skipped: what was passed over in folders and tars and why, with how many.
        mistakes: the wrong answers that were given most surely, with small pictures.
        bundle, trunk_hash, precision: what answered.
        model_sha256: the network that it is of, "" where its bundle does not tell. Networks on one
            frozen trunk differ in nothing but this and their packs.
        pack_sha256: the domain's pack.
        seconds: spent reading, decoding and answering.
        data: the paths of the images, as they were given.
        digest: tells the images from others, as the record of a run does those that it was tested
            on.
    """

    figures: Figures
    images: tuple[str, ...]
    unknown: Mapping[str, int]
    mistakes: Sequence[Mapping[str, Any]]
    bundle: str
    trunk_hash: str
    precision: str
    seconds: float
    skipped: Mapping[str, int] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    digest: str = ""
    model_sha256: str = ""
    pack_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, without the single images."""
        return {
            **self.figures.to_json(),
            "unknown": dict(self.unknown),
            **({"skipped": dict(self.skipped)} if self.skipped else {}),
            "bundle": self.bundle,
            "trunk_hash": self.trunk_hash,
            "model_sha256": self.model_sha256,
            "pack_sha256": self.pack_sha256,
            "precision": self.precision,
            "data": list(self.data),
            "images_digest": self.digest,
            "seconds": self.seconds,
        }

    def record(self) -> dict[str, Any]:
        """The same with every image's answer and the mistakes: what `-o` writes."""
        classes, a = self.figures.classes, self.figures.answers
        rows = zip(self.images, a.labels, a.answers, a.confidences, a.ranks, strict=True)
        return {
            "kind": KIND,
            **self.to_json(),
            "mistakes": list(self.mistakes),
            "answers": [
                {
                    "image": image,
                    "truth": classes[label],
                    "answer": classes[answer],
                    "confidence": float(confidence),
                    "rank": int(rank),
                }
                for image, label, answer, confidence, rank in rows
            ],
        }


def evaluate(
    bundle: Model | Path | str,
    data: Sequence[Path | str] | Path | str,
    domain: str | None = None,
    *,
    backend: Backend | None = None,
    precision: Precision | None = None,
    threads: int | None = None,
    packs: Sequence[Path | str] = (),
    columns: tuple[str, str] = ("image", "label"),
    batch_size: int = 32,
    skip_unknown: bool = False,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Answer for labelled images of one domain and count what was right.

    A class is known by its name; the images go through what `Model.predict` does to them.

    Args:
        bundle: a bundle's path, or a loaded model, which is left as it was.
        data: a folder of class folders, or one or several Parquet files, tar shards or tables.
        domain: whose images they are; may be left out where the bundle has one domain.
        backend: as of `load`, `auto` unless given; like the next two it is a loaded model's own.
        precision: as of `load`, `fp32` unless given.
        threads: as of `load`.
        packs: files of further domains to take in.
        columns: of images and of labels in Parquet.
        batch_size: images that are decoded and run at a time.
        skip_unknown: leave out images of classes that the bundle does not know.
        progress: called with the images that are done, and how many there are.

    Raises:
        DataError: the data cannot be read, an image has no label, or one of a class that the
            bundle does not know.
        DomainError: there is no such domain.
        InputError: `domain` is left out where there are several, a number is out of range, or a
            loaded model answers otherwise than is asked for.
        BundleError, PrunionError: as of `load`.
    """
    batch_size = whole_argument("batch_size", batch_size)
    started = time.perf_counter()
    with _answering(bundle, packs, backend, precision, threads) as model:
        domain, skipped = _domain(model, domain), dict[str, int]()
        classes = model.classes(domain)
        images, places, unknown = open_labelled(
            data,
            domain,
            classes,
            model.sessions.form.spec.orientation,
            columns,
            skip_unknown=skip_unknown,
            skipped=skipped,
        )
        figures = Figures(domain, classes, _answers(model, domain, images, batch_size, progress))
        network, pack = _answered_by(model, domain)
        return Evaluation(
            figures=figures,
            images=places,
            unknown=unknown,
            mistakes=mistakes(figures, images),
            bundle=str(model.bundle.path),
            trunk_hash=model.bundle.manifest.trunk_hash,
            precision=_precision(model),
            seconds=time.perf_counter() - started,
            skipped=skipped,
            data=tuple(map(str, [data] if isinstance(data, (str, os.PathLike)) else data)),
            digest=images.digest,
            model_sha256=network,
            pack_sha256=pack,
        )


@contextmanager
def _answering(
    bundle: Model | Path | str,
    packs: Sequence[Path | str],
    backend: Backend | None,
    precision: Precision | None,
    threads: int | None,
) -> Iterator[Model]:
    """A model with the domains of `packs` too: one that was given is left as it was."""
    if isinstance(bundle, Model):
        model = bundle
        _check_as_loaded(model, backend=backend, precision=precision, threads=threads)
    else:
        model = load(bundle, backend or "auto", precision=precision or "fp32", threads=threads)
    added: list[str] = []
    try:
        added.extend(model.add_domain(pack) for pack in packs)
        yield model
    finally:
        if model is bundle:
            for name in added:
                model.remove_domain(name)
        else:
            model.close()


def _answers(
    model: Model, domain: str, images: ImageSet, batch_size: int, progress: Progress
) -> Answers:
    """What the model says to each image, batch by batch."""
    form, classes, parts = model.sessions.form, model.classes(domain), []
    read = to_pixels if form.image == "uint8" else to_batch
    progress(0, len(images))
    with ThreadPoolExecutor(reader_threads()) as pool:
        for start, pixels in _ahead(pool, images, batch_size):
            rows = images.labels[start : start + batch_size]
            logits = model.logits(read(pixels, form.spec), [domain] * len(rows))
            parts.append(Answers.of(logits[:, : len(classes)], rows))
            progress(start + len(rows), len(images))
    return Answers.joined(parts)


def foreign_to_evaluation(path: Path) -> str:
    """Why a file is none that `prunion eval -o` wrote; "" if it is one."""
    try:
        own = path.is_file() and read_json(path)["kind"] == KIND
    except (PrunionError, LookupError, TypeError):
        own = False
    return "" if own else "is no file of `prunion eval`"


def _check_as_loaded(model: Model, **asked: Any) -> None:
    """Another wish than what a model answers with would do nothing, without a word."""
    options = model.sessions.options
    own = {"backend": options.backend, "precision": _precision(model), "threads": options.threads}
    for name, value in asked.items():
        if value in (None, own[name]) or value == _settled(model, name):
            continue
        raise InputError(
            f"{name} is {shown(value)}, and the model was loaded with {shown(own[name])}: "
            f"leave it out, or give load({name}=…) or the bundle's path"
        )


def _settled(model: Model, name: str) -> Any:
    """What was left open as a model was loaded stands for here; None where it still is."""
    sessions = model.sessions
    if name == "backend":  # where each domain has weights of its own no session decides for all
        return sessions.chosen().backend if sessions.apart else sessions.backend()
    return default_threads() if name == "threads" and sessions.options.threads is None else None


def _domain(model: Model, domain: str | None) -> str:
    if domain is None:
        if len(model.domains) > 1:
            raise InputError(f"give the images' domain, with -d: {listed(model.domains)}")
        return model.domains[0]
    return model.domains[model.domain_index(domain)]


def _answered_by(model: Model, domain: str) -> tuple[str, str]:
    """SHA-256 of the network, and of the domain's pack.

    A pack that came later is the network's too, unless it stands in the place of one of its own.
    """
    manifest, live = model.bundle.manifest, model.snapshot.domains[model.domain_index(domain)]
    if live.serial < len(manifest.domains):  # as the bundle was opened
        return manifest.model_sha256, manifest.files[model.bundle.domain(domain).pack]
    another = domain in model.bundle.domains
    return "" if another else manifest.model_sha256, pack_sha256(live.pack)


def _precision(model: Model) -> str:
    """Which of the bundle's graphs a model answers with."""
    file = model.sessions.graph.path
    graphs = model.bundle.manifest.graphs
    return next((key for key in graphs if model.bundle.graph(key) == file), file.name)


def _ahead(
    pool: ThreadPoolExecutor, images: ImageSet, batch_size: int
) -> Iterator[tuple[int, list[Any]]]:
    """Batches of decoded images, each begun while the one before it is answered."""
    starts = range(0, len(images), batch_size)

    def begin(start: int) -> list[Any]:
        stop = min(start + batch_size, len(images))
        return [pool.submit(images.image, index) for index in range(start, stop)]

    waiting = [(start, begin(start)) for start in starts[:1]]
    for following in [*starts[1:], None]:
        start, futures = waiting.pop()
        if following is not None:
            waiting.append((following, begin(following)))
        yield start, [future.result() for future in futures]
