"""What `import prunion` gives of exporting: `export` and `verify`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import VerifyReport, verify_bundle
from prunion.runtime.base import path_argument, spelled_for_programs
from prunion.runtime.bundle import Bundle, open_bundle
from prunion.runtime.errors import CheckpointError
from prunion.trainer.network import checkpoint_sha256
from prunion.trainer.processes import torch_as_it_was
from prunion.trainer.run import RunResult

__all__ = ["export", "verify"]

FLAGS = [option.name for option in fields(ExportOptions) if isinstance(option.default, bool)]
OTHERS = [option.name for option in fields(ExportOptions) if option.name not in FLAGS]


@spelled_for_programs(FLAGS, OTHERS)
@torch_as_it_was()
def export(
    run: RunResult | Path | str, output: Path | str, *, force: bool = False, **options: Any
) -> Bundle:
    """Write a trained network as a bundle and open it, as `prunion export` does.

    Args:
        run: what `train` returned, a run folder or a checkpoint.
        output: the bundle's folder, NAME.prunion.
        force: replace a bundle that is there.
        options: those of `ExportOptions`, such as `fp16=True` or `domains=("flowers",)`.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is another run's than `run` by now.
        DomainError: the options name a domain that it has not.
        VerificationError: the forms of the network disagree; nothing is written.
        PrunionError: `output` exists and `force` is false.
    """
    export_bundle(_source(run, "export"), output, ExportOptions(**options), force=force)
    return open_bundle(output)


@spelled_for_programs()
@torch_as_it_was()
def verify(
    bundle: Bundle | Path | str, *, against: RunResult | Path | str | None = None
) -> VerifyReport:
    """Find out again everything that a bundle claims, as `prunion verify` does.

    Args:
        bundle: a bundle's path, or one that was opened, in whose place another is a problem.
        against: what `train` returned, a run folder or a checkpoint, whose masked network the
            graphs are compared with.

    Raises:
        InputError: `against` is none of these.
        CheckpointError: it cannot be read, or is another run's by now. What is wrong with the
            bundle is in the report.
    """
    if against is not None:
        against = path_argument("against", _source(against, "compare with"))
    return verify_bundle(bundle, against=against)


def _source(run: RunResult | Path | str, to: str) -> Path | str:
    """The folder of a result that is still its own; what else is given stays.

    Raises CheckpointError if another run's network is there by now; `to` is what it is asked for.
    """
    if not isinstance(run, RunResult):
        return run
    if checkpoint_sha256(run.folder) not in ("", run.model_sha256):
        raise CheckpointError(
            f"{run.folder} holds another run's network by now than this result is of: give the "
            f"folder to {to} that one, or train this one again in a folder of its own"
        )
    return run.folder
