"""Commands of a bundle and a machine: `predict`, `inspect`, `doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from prunion.runtime.cli.options import (
    FilePath,
    as_json,
    backends,
    bundle_argument,
    echo_json,
    packs,
    precision,
)

if TYPE_CHECKING:
    from prunion.runtime.base import Backend, Precision
    from prunion.runtime.bundle import Bundle, Manifest
    from prunion.runtime.errors import PrunionError
    from prunion.runtime.model import Model, Prediction

__all__ = [
    "doctor",
    "inspect",
    "predict",
]

TOGETHER = 32  # images that are answered at a time


@click.command()
@bundle_argument
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=FilePath())
@click.option("-d", "--domain", help="Whose images they are; of one domain, that one.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes shown.")
@packs
@precision
@click.option("--backend", default="auto", show_default=True, type=backends, help="What answers.")
@as_json
def predict(
    bundle: str,
    images: tuple[str, ...],
    domain: str | None,
    top: int,
    packs: tuple[str, ...],
    precision: Precision,
    backend: Backend,
    as_json: bool,
) -> None:
    """Classify images of one domain.

    An IMAGE may also be a folder, for every image below it, or a quoted pattern such as
    'photos/**/*.jpg', which may name folders too; each one's images come in the order of their
    paths. An image that cannot be read is told on standard error, the others are answered, and the
    exit code is 1.
    """
    from prunion.runtime.base import listed
    from prunion.runtime.errors import InputError
    from prunion.runtime.model import load

    found = _named(images)
    model = load(bundle, backend, precision=precision)
    for pack in packs:
        model.add_domain(pack)
    if domain is None:
        if len(model.domains) > 1:
            raise InputError(f"give the images' domain with -d: {listed(model.domains)}")
        domain = model.domains[0]
    unread = _tell(_answers(model, found, domain, top), len(found), as_json=as_json)
    if unread:
        if unread > 1:
            click.echo(f"{unread} of {len(found)} images could not be read", err=True)
        raise SystemExit(1)


def _tell(
    answers: Iterator[tuple[str, Prediction | PrunionError]], total: int, *, as_json: bool
) -> int:
    """Print each answer as it comes, or all as JSON; returns how many images have none.

    Where thousands are not answered to the end, what was printed stays, and how many it is, is
    told; of JSON there is all or nothing.
    """
    from prunion.runtime.cli.evaluation import told_progress
    from prunion.runtime.errors import PrunionError, printable

    rows: list[dict[str, Any]] = []
    done = unread = 0
    try:
        with told_progress() if as_json else nullcontext(lambda *_: None) as progress:
            for image, x in answers:
                unread += isinstance(x, PrunionError)
                if as_json:
                    rows.append({"image": image, **_value(x)})
                elif isinstance(x, PrunionError):
                    click.echo(f"error: {x}", err=True)
                else:
                    shown = ", ".join(f"{c.name} {c.probability:.1%}" for c in x.top)
                    click.echo(printable(f"{image}: {shown}"))
                done += 1
                progress(done, total)
    except (KeyboardInterrupt, PrunionError) as exc:
        if done or isinstance(exc, KeyboardInterrupt):
            kept = "nothing was written" if as_json else "their answers were printed"
            click.echo(f"stopped after {done:,} of {total:,} images: {kept}", err=True)
        raise
    for row in rows:  # below the bar, not in its line
        if "error" in row:
            click.echo(f"error: {row['error']}", err=True)
    if as_json:
        echo_json(rows)
    return unread


def _value(answer: Prediction | PrunionError) -> dict[str, Any]:
    from prunion.runtime.errors import PrunionError

    if isinstance(answer, PrunionError):
        return {"error": str(answer)}
    return {**asdict(answer), "top": [c._asdict() for c in answer.top]}


def _named(arguments: Sequence[str]) -> list[str]:
    """The images that files, folders and patterns name; each argument's in order of their paths."""
    import glob
    import os

    from prunion.runtime.errors import InputError
    from prunion.runtime.images import matching, once

    found: list[str] = []
    for argument in arguments:
        if os.path.isdir(argument):
            below = sorted(_images_below(argument))
        elif glob.has_magic(argument) and not os.path.exists(argument):
            # As a shell would expand it, each image once: '**' names folders and what is in them.
            every = [_images_below(x) if os.path.isdir(x) else [x] for x in matching(argument)]
            below = once(x for some in every for x in some)
        else:
            below = [argument]
        if not below:
            what = "holds no image" if os.path.isdir(argument) else "matches no file"
            raise InputError(f"{argument} {what}: give images, a folder of them or a pattern")
        found += below
    return found


def _images_below(folder: str) -> Iterator[str]:
    """Files that are images by content or by suffix, behind links too; what is hidden is not."""
    import os
    from pathlib import Path

    from prunion.runtime.images import IMAGE_SUFFIXES, folders_below, image_kind

    def enters(entry: os.DirEntry[str]) -> bool:
        return not entry.name.startswith(".") and os.path.isdir(entry)

    for place, entries in folders_below(folder, enters):
        for name in (entry.name for entry in entries):
            path = os.path.join(place, name)
            # Answered by an error, as it may have been a folder of images.
            lost = os.path.islink(path) and not os.path.exists(path)
            if name.startswith(".") or not (lost or os.path.isfile(path)):
                continue
            if lost or name.lower().endswith(IMAGE_SUFFIXES) or image_kind(Path(path)):
                yield path


def _answers(
    model: Model, images: Sequence[str], domain: str, top: int
) -> Iterator[tuple[str, Prediction | PrunionError]]:
    """Each image with its answer, or with why it cannot be read: it costs the others nothing."""
    from prunion.runtime.errors import InputError

    for start in range(0, len(images), TOGETHER):
        part = images[start : start + TOGETHER]
        found: list[Prediction | PrunionError] = []
        try:
            found += model.predict(part, domain, top_k=top)
        except InputError:
            if len(images) == 1:
                raise
            for image in part:
                try:
                    found += model.predict(image, domain, top_k=top)
                except InputError as exc:
                    found.append(exc)
        yield from zip(part, found, strict=True)


@click.command()
@bundle_argument
@as_json
def inspect(bundle: str, as_json: bool) -> None:
    """Show what a bundle holds, after checking every file's hash."""
    from prunion.runtime.bundle import open_bundle
    from prunion.runtime.errors import printable

    opened = open_bundle(bundle)
    if as_json:
        echo_json((opened.path / "manifest.json").read_text("utf-8"))
    else:
        click.echo("\n".join(map(printable, _summary(opened))))


def _summary(bundle: Bundle) -> list[str]:
    m = bundle.manifest
    size = f"{m.input.height}×{m.input.width}"
    return [
        f"{m.name}: {len(m.domains)} domains, images {size}, trunk {m.trunk_hash[:12]}",
        "",
        *_domain_lines(m),
        "",
        *_cost_lines(m),
        "",
        *(f"{bundle.sizes[file]:>14,}  {file}" for file in m.files),
    ]


def _domain_lines(m: Manifest) -> Iterator[str]:
    width = max(len("domain"), *(len(domain.name) for domain in m.domains))
    yield f"{'domain':<{width}}{'classes':>9}{'accuracy':>10}"
    for domain in m.domains:
        accuracy = "-" if domain.accuracy is None else f"{domain.accuracy:.1%}"
        views = 1 if domain.accuracy is None else m.views(domain)
        of = {1: "", None: "  of an unknown number of views"}.get(views, f"  of {views} views")
        yield f"{domain.name:<{width}}{len(domain.classes):>9}{accuracy:>10}{of}"
    if any(d.accuracy is not None and m.views(d) not in (1, None) for d in m.domains):
        yield "accuracy is the run's, of several views of an image: a bundle answers one"


def _cost_lines(m: Manifest) -> Iterator[str]:
    """What the network takes: its budget, its graphs, and what is left of the backbone."""
    from prunion.runtime.base import asked_text
    from prunion.runtime.bundle import cost_text

    device = f" on {m.budget.device}" if m.budget.device else ""
    cost, met = f"{cost_text(m.budget.to_json())}{device}", "met" if m.budget.met else "NOT met"
    yield f"budget  {m.budget.kind}: asked {asked_text(m.budget.asked)}, is {cost} ({met})"
    yield f"graphs  {', '.join(m.graphs)}; {_form_of(m)}"
    if m.paper and m.paper.method:
        yield f"method  {m.paper.method}: {m.paper.params:.3f} × the backbone's parameters"
    for name, counts in (("params", m.params), ("macs", m.macs)):
        before, after = counts["backbone"], counts["exported"]
        share = f" ({after / before:.1%})" if before else ""
        share += f", and {counts['adapters']:,} of adapters" if "adapters" in counts else ""
        yield f"{name:<8}{before:,} → {after:,}{share}"
    narrower = sum(after < before for before, after in m.widths.values())
    before, after = (sum(pair[i] for pair in m.widths.values()) for i in (0, 1))
    layers = f"{narrower} of {len(m.widths)} layers narrower"
    yield f"widths  {layers}, {before} → {after} channels in all"


def _form_of(m: Manifest) -> str:
    form = {"single": "one domain, folded in for good"}.get(m.heads, f"{m.heads} heads")
    if m.own_weights:
        form = "a graph for each domain, with weights of its own"
    return f"{form}, and a table of adapters" if m.adapters else form


@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """Say what this machine can run, what is missing and how to install it."""
    from prunion.runtime.base import available_bytes, machine_facts
    from prunion.runtime.measure import answers_here, examine

    findings, facts = examine(), machine_facts()
    if as_json:
        value = {"machine": facts, "findings": [asdict(x) for x in findings]}
        echo_json(value)
    else:
        click.echo(f"{facts['cpu']}, {facts['cores']} cores, {facts['architecture']}")
        click.echo(f"{available_bytes() / 2**30:.1f} GiB of memory free, {facts['system']}")
        for x in findings:
            fix = f"\n           → {x.fix}" if x.fix else ""
            click.echo(f"{x.state:>8}  {x.what}: {x.detail}{fix}")
    if not answers_here(findings):
        raise SystemExit(1)
