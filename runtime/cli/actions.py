"""What the runtime's commands do: predict, bench, build, serve, inspect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from prunion.runtime.base.files import amount_text
from prunion.runtime.bundle.folder import Bundle, open_bundle
from prunion.runtime.bundle.manifest import BudgetAccount

__all__ = [
    "bench_command",
    "build_command",
    "inspect_command",
    "predict_command",
    "serve_command",
    "trtexec_command",
]


def predict_command(
    bundle: str,
    images: Sequence[str],
    domain: str,
    top: int,
    as_json: bool,
    precision: str = "fp32",
    backend: str = "auto",
    packs: Sequence[str] = (),
) -> None:
    """Print one line per image, or a JSON list."""
    from prunion.runtime.model.model import load

    model = load(bundle, backend, precision=precision)
    for pack in packs:
        model.add_domain(pack)
    predictions = model.predict(list(images), domain, top_k=top)
    if as_json:
        rows = [
            {"image": image, **asdict(x), "top": [c._asdict() for c in x.top]}
            for image, x in zip(images, predictions, strict=True)
        ]
        _print_json(rows)
        return
    for image, prediction in zip(images, predictions, strict=True):
        shown = ", ".join(f"{c.name} {c.probability:.1%}" for c in prediction.top)
        click.echo(f"{image}: {shown}")


def bench_command(
    bundle: str,
    batches: Sequence[int],
    seconds: float,
    threads: int | None,
    domains: str,
    as_json: bool,
    precision: str = "fp32",
    backend: str = "cpu",
) -> None:
    """Print the measurements of this machine."""
    from prunion.runtime.measure.bench import bench, format_report

    report = bench(
        bundle,
        batches=batches,
        seconds=seconds,
        threads=threads,
        domains=domains,
        precision=precision,
        backend=backend,
    )
    if as_json:
        _print_json(report.to_json())
    else:
        click.echo(format_report(report))


def build_command(
    bundle: str,
    target: str,
    sms: Sequence[int],
    precision: str,
    profile: Sequence[int],
    output: str | None,
    force: bool,
    workspace: int | None = None,
    dla: int | None = None,
    timing_cache: str | None = None,
) -> None:
    """Build an engine file and say where it is."""
    from prunion.runtime.tensorrt.build import build_engine

    low, best, high = profile
    result = build_engine(
        open_bundle(bundle),
        target=target,
        sms=sms,
        precision=precision,
        options=_options((low, best, high), workspace, dla, timing_cache),
        output=output,
        force=force,
    )
    size = result.path.stat().st_size
    click.echo(f"{result.path}  {size:,} bytes, built in {result.seconds:.1f} s")
    click.echo(f"{result.key_path}  what it was built from")
    counts = ", ".join(f"{n} in {kind}" for kind, n in result.convolutions.items())
    click.echo(f"the graph's convolutions: {counts}")


def _options(
    batch: tuple[int, int, int], workspace: int | None, dla: int | None, timing_cache: str | None
) -> Any:
    from prunion.runtime.tensorrt.key import BuildOptions

    size = None if workspace is None else workspace << 20
    cache = None if timing_cache is None else Path(timing_cache)
    return BuildOptions(batch, workspace=size, dla=dla, timing_cache=cache)


def trtexec_command(
    bundle: str,
    target: str,
    sms: Sequence[int],
    precision: str,
    profile: Sequence[int],
    output: str | None,
    force: bool,
    workspace: int | None = None,
    dla: int | None = None,
    timing_cache: str | None = None,
) -> None:
    """Write the graph whose tables are plain inputs, and print the line that builds it."""
    from prunion.runtime.base.files import replace_file
    from prunion.runtime.errors import PrunionError
    from prunion.runtime.tensorrt import trtexec
    from prunion.runtime.tensorrt.graph import engine_graph
    from prunion.runtime.tensorrt.key import default_name, engine_key

    opened = open_bundle(bundle)
    low, best, high = profile
    made = _options((low, best, high), workspace, dla, timing_cache)
    key = engine_key(opened, target, "", sms, precision, made)
    engine = Path(output) if output else Path(default_name(opened, key))
    graph = engine.with_suffix(".onnx")
    if graph.exists() and not force:
        raise PrunionError(f"{graph} already exists: choose another place with -o or pass --force")
    with replace_file(graph) as temporary:
        temporary.write_bytes(engine_graph(opened.graph(precision), key))
    click.echo(trtexec.trtexec_command(opened, key, graph, engine, made.timing_cache))


def serve_command(
    bundle: str, host: str, port: int, precision: str = "fp32", packs: Sequence[str] = ()
) -> None:
    """Serve until interrupted."""
    from prunion.runtime.serve.app import serve

    serve(bundle, host, port, precision, packs)


def inspect_command(bundle: str, as_json: bool) -> None:
    """Print the manifest, checked, as it stands or as a table."""
    opened = open_bundle(bundle)
    if as_json:
        click.echo((opened.path / "manifest.json").read_text("utf-8"), nl=False)
    else:
        click.echo("\n".join(_summary(opened)))


def _summary(bundle: Bundle) -> list[str]:
    m = bundle.manifest
    size = f"{m.input.height}×{m.input.width}"
    lines = [f"{m.name}: {len(m.domains)} domains, images {size}, trunk {m.trunk_hash[:12]}", ""]
    width = max(len("domain"), *(len(domain.name) for domain in m.domains))
    lines.append(f"{'domain':<{width}}{'classes':>9}{'accuracy':>10}")
    for domain in m.domains:
        accuracy = "-" if domain.accuracy is None else f"{domain.accuracy:.1%}"
        lines.append(f"{domain.name:<{width}}{len(domain.classes):>9}{accuracy:>10}")
    met = "met" if m.budget.met else "NOT met"
    lines += ["", f"budget  {m.budget.kind}: asked {m.budget.asked}, is {_cost(m.budget)} ({met})"]
    form = {"single": "one domain, folded in for good"}.get(m.heads, f"{m.heads} heads")
    lines.append(f"graphs  {', '.join(m.graphs)}; {form}")
    for name, counts in (("params", m.params), ("macs", m.macs)):
        before, after = counts["backbone"], counts["exported"]
        share = f" ({after / before:.1%})" if before else ""
        lines.append(f"{name:<8}{before:,} → {after:,}{share}")
    changed = [pair for pair in m.widths.values() if pair[1] < pair[0]]
    before, after = (sum(pair[i] for pair in m.widths.values()) for i in (0, 1))
    layers = f"{len(changed)} of {len(m.widths)} layers narrower"
    lines += [f"widths  {layers}, {before} → {after} channels in all", ""]
    lines += [f"{bundle.file(f).stat().st_size:>14,}  {f}" for f in m.files]
    return lines


def _cost(budget: BudgetAccount) -> str:
    if budget.kind != "latency":
        return amount_text(budget.value)
    share = amount_text(budget.share)
    return f"{budget.milliseconds:.3f} ms, share {share}, as predicted for {budget.device}"


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))
