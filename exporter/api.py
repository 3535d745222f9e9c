"""What `import prunion` gives of exporting: `export` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import VerifyReport, verify_bundle
from prunion.runtime.bundle import Bundle, open_bundle
from prunion.runtime.errors import CheckpointError
from prunion.trainer.network import checkpoint_sha256
from prunion.trainer.processes import torch_as_it_was
from prunion.trainer.run import RunResult

__all__ = ["export", "verify"]


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
    source = run.folder if isinstance(run, RunResult) else run
    if isinstance(run, RunResult) and checkpoint_sha256(run.folder) not in ("", run.model_sha256):
        raise CheckpointError(
            f"{source} holds another run's network by now than this result is of: give the folder "
            "to export that one, or train this one again in a folder of its own"
        )
    export_bundle(source, output, ExportOptions(**options), force=force)
    return open_bundle(output)


@torch_as_it_was()
def verify(bundle: Bundle | Path | str, *, against: Path | str | None = None) -> VerifyReport:
    """Find out again everything that a bundle claims, as `prunion verify` does.

    Args:
        bundle: a bundle's path, or one that was opened, in whose place another is a problem.
        against: a checkpoint or run folder whose masked network the graphs are compared with.

    Raises:
        CheckpointError: `against` cannot be read. What is wrong with the bundle is in the report.
    """
    return verify_bundle(bundle, against=against)
