"""Commands of the stages below that get something of the exporter's: `bench`, `check`, `train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunion.runtime.cli import bench as plain_bench
from prunion.trainer.cli import check as unrehearsed
from prunion.trainer.cli import train as unchecked

if TYPE_CHECKING:
    from prunion.trainer.network import DomainNet

__all__ = ["bench", "check", "train"]


def _check(net: DomainNet, height: int, width: int, round_to: int) -> None:
    from prunion.exporter.graph import rehearse_export

    rehearse_export(net, height, width, round_to)


def _checked(command: click.Command) -> click.Command:
    """The trainer's command, with the check that needs an exporter."""

    def run(**options: Any) -> None:
        assert command.callback is not None
        command.callback(**options, check=_check)

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
