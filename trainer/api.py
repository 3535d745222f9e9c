"""Training from Python: `train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunion.trainer.config import RunConfig, load_config
from prunion.trainer.run import ExportCheck, RunResult, train_run

__all__ = ["train"]


def train(
    config: RunConfig | Mapping[str, Any] | Path | str,
    output: Path | str | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    check: ExportCheck | None = None,
) -> RunResult:
    """Train and prune a network, as `prunion train` does.

    Args:
        config: a run file's path, its tables as a mapping, or a `RunConfig`. Relative paths in a
            file count from its folder, those of a mapping from the working folder.
        output: the run folder; `runs/NAME` for a file NAME.toml, else `runs/run`.
        force: replace a run folder that is there.
        resume: go on from the state that the folder holds.
        check: whether the network could be exported, asked before the first step.

    Raises:
        ConfigError: a key is missing, unknown or out of range.
        PrunionError: the folder exists, a domain or backbone cannot be read, the budget cannot be
            met, the network could not be exported, or the loss stops being finite.
    """
    run_file = None
    if isinstance(config, Mapping):
        config = RunConfig.from_json(dict(config))
    elif not isinstance(config, RunConfig):
        run_file = Path(config)
        config = load_config(run_file)
    name = "run" if run_file is None else run_file.stem
    folder = Path("runs") / name if output is None else Path(output)
    return train_run(config, folder, force=force, resume=resume, run_file=run_file, check=check)
