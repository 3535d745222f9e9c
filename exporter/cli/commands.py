"""The exporter's commands: `prunion export`, `pack`, `add-domain` and `verify`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunion.exporter.cli.line import check_export_line
from prunion.runtime.cli import (
    FilePath,
    FiniteRange,
    as_json,
    bundle_argument,
    echo_json,
    force,
    precisions,
)

if TYPE_CHECKING:
    from prunion.exporter.verify import VerifyReport
    from prunion.runtime.base import Precision

__all__ = ["add_domain", "export", "pack", "verify"]


@click.command()
@click.argument("source", metavar="CHECKPOINT|BUNDLE", type=FilePath())
@click.option("-o", "--output", type=FilePath(), help="Bundle to write.")
@click.option(
    "--triton", metavar="REPO", type=FilePath(), help="Triton model repository to write into."
)
@click.option(
    "--triton-precision",
    default="fp32",
    show_default=True,
    type=precisions,
    help="Which of the bundle's graphs is put there.",
)
@click.option("--triton-domains", is_flag=True, help="There, also a model for each domain.")
@click.option(
    "--domains",
    metavar="A,B,…",
    callback=lambda _c, _o, value: value and tuple(filter(None, value.split(","))),
    help="Only these domains, sliced again to what they use.",
)
@click.option("--specialise", metavar="A", help="One domain, BatchNorm folded, no domain input.")
@click.option(
    "--heads",
    default="gathered",
    show_default=True,
    type=click.Choice(["gathered", "concatenated"]),
    help="How images pick their classifier; concatenated suits thousands of classes.",
)
@click.option("--fp16", is_flag=True, help="Also model.fp16.onnx.")
@click.option(
    "--fp16-image",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float16"]),
    help="Type of the fp16 graph's image input.",
)
@click.option("--int8", is_flag=True, help="Also model.int8.onnx, calibrated on every domain.")
@click.option(
    "--int8-max-drop",
    default=1.0,
    show_default=True,
    type=FiniteRange(0, 100),
    help="Accuracy points a domain may lose by it.",
)
@click.option(
    "--int8-images",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Calibration images of each domain.",
)
@click.option("--uint8", is_flag=True, help="Also each graph with raw uint8 [N, H, W, 3] images.")
@click.option("--torch", is_flag=True, help="Also slim.safetensors and plan.json, for torch.")
@click.option("--opset", default=20, show_default=True, type=click.IntRange(13, 21))
@click.option("--ir", type=click.IntRange(7), help="ONNX IR version  [default: the opset's].")
@click.option(
    "--untrained", is_flag=True, help="CHECKPOINT is a RUN.toml: its whole network, to be profiled."
)
@force
@as_json
@click.pass_context
def export(
    ctx: click.Context,
    /,
    source: str,
    output: str | None,
    triton: str | None,
    triton_precision: Precision,
    triton_domains: bool,
    force: bool,
    as_json: bool,
    untrained: bool,
    **options: Any,
) -> None:
    """Write a CHECKPOINT (or run folder) as a bundle, NAME.prunion, or a BUNDLE for Triton."""
    made = (Path(source) / "manifest.json").is_file()
    check_export_line(ctx, bundle=made)
    bundle = source if made or output is None else output
    if untrained:
        _export_untrained(source, bundle, options, force, as_json)
    elif not made:
        from prunion.exporter.bundle import export_bundle
        from prunion.exporter.options import ExportOptions

        manifest = export_bundle(source, bundle, ExportOptions(**options), force=force)
        if as_json:
            echo_json(manifest)
        else:
            click.echo("\n".join(_exported(bundle, manifest)))
    if triton is not None:
        from prunion.exporter.triton import export_triton

        places = export_triton(
            bundle, triton, each_domain=triton_domains, precision=triton_precision, force=force
        )
        click.echo(f"{places[0]}: for Triton{_and_more(len(places) - 1)}", err=as_json)
        if as_json and made:  # else the answer is the bundle's manifest
            echo_json({"models": [str(place) for place in places]})


def _and_more(count: int) -> str:
    return f", and a model for each of its {count} domains" if count else ""


def _export_untrained(
    run_file: str, output: str, options: Mapping[str, Any], force: bool, as_json: bool
) -> None:
    from prunion.exporter.bundle import export_untrained
    from prunion.exporter.options import ExportOptions
    from prunion.trainer.config import load_config

    asked = ExportOptions(**options)
    manifest = export_untrained(load_config(run_file), Path(output), asked, force=force)
    if as_json:
        echo_json(manifest.to_json())
        return
    shape, params = manifest.input, manifest.params["backbone"]
    click.echo(
        f"{output}: every channel of the network, random weights, one stand-in domain; "
        f"{shape.height}×{shape.width}, {params:,.0f} parameters; measure it on the target with "
        f"`prunion profile {output} -o device.json`"
    )


def _exported(output: str, manifest: Mapping[str, Any]) -> list[str]:
    from prunion.runtime.base import asked_text
    from prunion.runtime.bundle import (
        block_of,
        cost_text,
        multiples_below,
        open_bundle,
        widths_warning,
    )

    params, macs, budget = manifest["params"], manifest["macs"], manifest["budget"]
    widths = manifest["widths"].values()
    narrower = sum(after < before for before, after in widths)
    lines = [
        f"{output}: {len(manifest['domains'])} domains, {narrower} of {len(widths)} widths cut",
        f"parameters {params['backbone']:,} → {params['exported']:,}, "
        f"MACs {macs['backbone']:,} → {macs['exported']:,}; "
        f"budget {budget['kind']} {asked_text(budget['asked'])}: {cost_text(budget)} "
        f"{'met' if budget['met'] else 'NOT met'}",
    ]
    paper = manifest["paper"]
    lines.append(
        f"as in the papers: parameters {paper['params']:.3f}, operations {paper['flop']:.3f} of "
        f"the backbone's (a domain's own, on average; the union's {paper['flop_union']:.3f})"
    )
    added = manifest["rounding"]["added"]
    if added:
        lines.append(
            f"{sum(added.values())} channels that no domain uses stay, to keep widths multiples "
            f"of {manifest['rounding']['multiple']}"
        )
    block = block_of("cpu")
    if block and (warning := widths_warning(manifest["widths"], block, "this CPU")):
        bundle = open_bundle(output)
        _, share = multiples_below(bundle.unit_table(), block)
        bundle.close()
        lines.append(
            f"note: {warning}; in the multiples below they would do {share:.2f} of the "
            "multiplications, often in less of the time (`prunion bench` measures it)"
        )
    lines.append(
        "masked torch, sliced torch and ONNX Runtime agree to "
        f"{manifest['verified']['max_relative_error']:.1e} on a mixed batch"
    )
    for variant, facts in manifest["verified"]["variants"].items():
        worst = max(facts["max_relative_error"].items(), key=lambda x: x[1])
        lines.append(f"{variant}: at most {worst[1]:.1e} from fp32 ({worst[0]})")
        if kept := facts.get("float32_layers"):
            shown = ", ".join(f"{name} ({most:.3g})" for name, most in kept.items())
            lines.append(f"  in float32, because float16 ends at 65504: {shown}")
        for name, (before, after) in facts.get("accuracy", {}).items():
            lines.append(f"  {name}: accuracy {before:.1%} → {after:.1%}")
    return lines


@click.command()
@click.argument("checkpoint", type=FilePath())
@click.argument("domain")
@click.option("-o", "--output", required=True, type=FilePath(), help="NAME.safetensors to write.")
@force
def pack(checkpoint: str, domain: str, output: str, force: bool) -> None:
    """Write one DOMAIN of a CHECKPOINT as a pack for the bundles made from it."""
    from prunion.exporter.bundle import export_pack

    made = export_pack(checkpoint, domain, output, force=force)
    size = Path(output).stat().st_size
    click.echo(f"{output}: {made.name}, {size:,} bytes, trunk {made.trunk_hash[:12]}")


@click.command("add-domain")
@click.argument("checkpoint", type=FilePath())
@click.argument("domain", metavar="DOMAIN.toml", type=FilePath())
@click.option("-o", "--output", type=FilePath(), help="Pack to write  [default: NAME.safetensors].")
@force
@click.option("--resume", is_flag=True, help="Go on from the state beside the pack, in PACK.run.")
def add_domain(checkpoint: str, domain: str, output: str | None, force: bool, resume: bool) -> None:
    """Train a new domain on a finished trunk; its pack fits the existing bundle."""
    if force and resume:
        raise click.UsageError("--force starts anew and --resume goes on: give one of them")
    from prunion.exporter.bundle import add_domain_pack
    from prunion.trainer.learning import exit_when_stopped

    with exit_when_stopped():
        made = add_domain_pack(checkpoint, domain, output, force=force, resume=resume)
    pack, size = made.pack, made.path.stat().st_size
    of = f" of {made.views} views" if made.views > 1 else ""
    click.echo(
        f"{made.path}: {pack.name}, {len(pack.classes)} classes, accuracy {made.accuracy:.1%}{of}, "
        f"{size:,} bytes, trunk {pack.trunk_hash[:12]}"
    )


@click.command()
@bundle_argument
@click.option(
    "--against", metavar="CHECKPOINT", type=FilePath(), help="Compare with its masked network."
)
@as_json
def verify(bundle: str, against: str | None, as_json: bool) -> None:
    """Check what a bundle claims, of its backbone --against its run; exit code 1 if it is off."""
    from prunion.exporter.verify import verify_bundle
    from prunion.runtime.errors import VerificationError, printable

    report = verify_bundle(bundle, against=against)
    if as_json:
        worst = None if report.worst is None else asdict(report.worst)
        echo_json({**asdict(report), "passed": not report.problems, "worst": worst})
    else:
        click.echo("\n".join(map(printable, _verified(report))))
    if report.problems:
        raise VerificationError(f"{bundle}: {len(report.problems)} of its claims do not hold")


def _verified(report: VerifyReport) -> list[str]:
    lines = []
    for graph in report.graphs:
        rows = [x for x in report.compared if x.graph == graph]
        for what in dict.fromkeys(x.against for x in rows):
            worst = max((x for x in rows if x.against == what), key=lambda x: x.error)
            lines.append(f"{graph} against {what}: at most {worst.error:.1e} ({worst.domain})")
    lines += report.notes
    lines += [f"wrong: {problem}" for problem in report.problems]
    if report.worst is not None:
        x = report.worst
        lines.append(
            f"largest error: {x.error:.2e} of the largest logit, domain {x.domain}, "
            f"{x.graph} graph against {x.against} (tolerance {x.tolerance:.0e})"
        )
    if not report.problems:
        lines.append(f"{report.bundle}: everything holds")
    return lines
