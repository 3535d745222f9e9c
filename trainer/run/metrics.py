"""Figures of a run, one JSON object a line, and as TensorBoard scalars where it is installed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from prunion.runtime.errors import DataError, OutputError

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends to `metrics.jsonl` and `tensorboard/` in a run folder; use it with `with`."""

    def __init__(self, folder: Path | str, after: int = 0) -> None:
        """Open both, making `folder` if need be. Raises DataError if it cannot be written to.

        `after` is the step that a resumed run has behind it: what TensorBoard has of later ones is
        taken again.
        """
        path = Path(folder) / "metrics.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _end_broken_line(path)
            self._lines = path.open("a", encoding="utf-8")
        except OSError as exc:
            raise DataError(
                f"{path} cannot be written ({exc.strerror or exc}): choose another run folder"
            ) from None
        self._board = _tensorboard(path.parent / "tensorboard", after)

    def log(self, step: int, **scalars: Any) -> None:
        """Write one line: `step` and every scalar.

        Values are numbers or text; a mapping (one value per domain, say) becomes
        `name/key`. What is not finite is written as null, since JSON has no NaN.
        """
        flat = dict(_flattened(scalars))
        line = {"step": step, **{name: _json_value(value) for name, value in flat.items()}}
        try:
            self._lines.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._lines.flush()
            for name, value in flat.items():
                if self._board is not None and not isinstance(value, str) and value is not None:
                    self._board.add_scalar(name, float(value), step)
        except OSError as exc:
            raise self._failed(exc) from None

    def _failed(self, exc: OSError) -> OutputError:
        return OutputError(
            f"{self._lines.name} cannot be written ({exc.strerror or exc}): make room, then go on "
            "with --resume from the state of the last epoch"
        )

    def close(self) -> None:
        """Close both files."""
        try:
            self._lines.close()
            if self._board is not None:
                self._board.close()
        except OSError as exc:
            raise self._failed(exc) from None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _end_broken_line(path: Path) -> None:
    """A run that was killed may have left half a line: end it, so that the next one is whole."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as stream:
            stream.seek(-1, 2)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def _tensorboard(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=after + 1 if after else None)


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flattened(value, f"{prefix}{name}/")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
