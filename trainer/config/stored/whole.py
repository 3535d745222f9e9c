"""Whether a checkpoint's files are those that it was written with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunion.runtime.base import sha256_file
from prunion.runtime.errors import CheckpointError
from prunion.trainer.config.stored.names import GRAPH

__all__ = ["CHECKPOINT_FORMAT", "check_checkpoint"]

CHECKPOINT_FORMAT = 1


def check_checkpoint(folder: Path, meta: Any) -> None:
    """Raise CheckpointError unless a checkpoint is of a format that is read here, and is whole.

    Args:
        meta: what its `checkpoint.json` says.
    """
    if not isinstance(meta, dict) or meta.get("format_version") != CHECKPOINT_FORMAT:
        got = meta.get("format_version") if isinstance(meta, dict) else None
        raise CheckpointError(
            f"{folder}/checkpoint.json has format_version {got}, this prunion reads "
            f"{CHECKPOINT_FORMAT}: train again, or use the prunion that wrote it"
        )
    files = [("model.safetensors", "model_sha256"), ("units.json", "units_sha256")]
    for name, key in ((GRAPH, "graph_sha256"), ("profile.json", "profile_sha256")):
        if key in meta:
            files.append((name, key))
    for name, key in files:
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: copy the whole checkpoint folder")
        if sha256_file(file) != meta.get(key):
            raise CheckpointError(
                f"{file} is truncated or altered (its SHA-256 differs from checkpoint.json's): "
                "copy the checkpoint again"
            )
