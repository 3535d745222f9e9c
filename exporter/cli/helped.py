"""Commands of the stages below that get something of the exporter's: `bench`, `check`, `profile`,
`train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunion.runtime.cli import FilePath, FiniteRange, as_json, echo_json, force
from prunion.runtime.cli import bench as plain_bench
from prunion.trainer.cli import check as unrehearsed
from prunion.trainer.cli import train as unchecked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunion.runtime.bundle import Profile
    from prunion.trainer.network import DomainNet
    from prunion.trainer.run import ExportCheck

__all__ = ["bench", "check", "profile", "train"]


def _check(net: DomainNet, height: int, width: int, round_to: int, own: Sequence[str]) -> int:
    from prunion.exporter.graph import rehearse_export

    return rehearse_export(net, height, width, round_to, own)


CHECK: ExportCheck = _check  # click's callbacks take anything: the type is held here


def _checked(command: click.Command) -> click.Command:
    """The trainer's command, with the check that needs an exporter."""

    def run(**options: Any) -> None:
        assert command.callback is not None
        command.callback(**options, check=CHECK)

    return click.Command(command.name, params=command.params, help=command.help, callback=run)


check, train = _checked(unrehearsed), _checked(unchecked)


def _unpruned(bundle: str, checkpoint: str | None, path: Path) -> None:
    from prunion.exporter.bundle import write_unpruned_of

    write_unpruned_of(bundle, checkpoint, path)


def _torch_pruned(bundle: str, checkpoint: str | None, rival: str, folder: Path) -> list[Path]:
    from prunion.exporter.bundle import write_torch_pruned

    return write_torch_pruned(bundle, checkpoint, rival, folder)


def _bench(**options: Any) -> None:
    assert plain_bench.callback is not None
    plain_bench.callback(**options, unpruned=_unpruned, torch_pruned=_torch_pruned)


bench = click.Command("bench", params=plain_bench.params, help=plain_bench.help, callback=_bench)


@click.command()
@click.argument("source", metavar="BUNDLE|RUN.toml", type=FilePath())
@click.option("-o", "--output", required=True, type=FilePath(), help="Profile to write (JSON).")
@click.option(
    "--backend",
    default="cpu",
    show_default=True,
    type=click.Choice(["cpu", "cuda", "openvino", "auto"]),
    help="What answers.",
)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1, 65536))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024))
@click.option(
    "--seconds",
    default=0.024,
    show_default=True,
    type=FiniteRange(0.001, 60),
    help="For each graph of each layer's width.",
)
@force
@as_json
def profile(source: str, output: str, force: bool, as_json: bool, **options: Any) -> None:
    """Measure what layers cost here over their widths, for a latency budget.

    BUNDLE is one that `export RUN.toml --untrained` wrote; RUN.toml itself needs prunion[export].
    """
    from prunion.runtime.measure import measure_profile, profile_lines, profile_warning

    def tell(made: Profile) -> None:
        if as_json:
            echo_json(made.to_json())
            return
        click.echo("\n".join(profile_lines(output, made)))
        if warning := profile_warning(made):
            click.echo(warning, err=True)

    if source.endswith(".toml"):
        from prunion.exporter.bundle import untrained_bundle

        with untrained_bundle(source) as bundle:
            measure_profile(bundle, output, force=force, tell=tell, **options)
    else:
        measure_profile(source, output, force=force, tell=tell, **options)
