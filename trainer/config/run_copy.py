"""The run file's copy in a run's folder, and what was changed for the run beside it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunion.runtime.errors import PrunionError
from prunion.trainer.config.file import absolute_paths, merge, read_toml
from prunion.trainer.config.run import RunConfig

__all__ = ["keep_run_file"]

STARTED = "# This run is of this file, where it lies here, with:"
OPTION = "#   --set "
BARE = re.compile(r"[A-Za-z0-9_-]+")


def keep_run_file(run_file: Path | None, config: RunConfig, copy: Path) -> None:
    """Copy the run file; where the copy would be another run, its first lines tell the options.

    So `prunion train COPY` with these options is the same run again, whatever made it another:
    `--set`, `--seed`, `--budget`, a program, or relative paths, which count from the file's folder.
    """
    if run_file is None:
        return
    if not (copy.exists() and copy.samefile(run_file)):
        shutil.copyfile(run_file, copy)
    text = copy.read_bytes().decode("utf-8")  # not as text, so that line ends stay as they are
    bare = _without_options(text)
    changes = "".join(f"{OPTION}{option}\n" for option in _changes(copy, config))
    now = (f"{STARTED}\n{changes}" if changes else "") + bare
    if now != text:
        copy.write_bytes(now.encode("utf-8"))


def _without_options(text: str) -> str:
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].rstrip() != STARTED:
        return text
    first = next((n for n, x in enumerate(lines[1:], 1) if not x.startswith(OPTION)), len(lines))
    return "".join(lines[first:])


def _changes(copy: Path, config: RunConfig) -> list[str]:
    """The values `KEY=VALUE`, as a shell takes them, that make the copy's run this one."""
    value = read_toml(copy)
    try:
        absolute_paths(value, copy.absolute().parent)
        before = RunConfig.from_json(value).to_json()
    except PrunionError:  # a change has put right what is wrong in it: what it says is compared
        before = config.to_json()
        merge(before, value)
    return [shlex.quote(f"{k}={v}") for k, v in _differences(before, config.to_json(), ())]


def _differences(before: Any, after: Any, place: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from _differences(before.get(key), after.get(key), (*place, key))
    elif before != after and after is not None:
        yield ".".join(map(_key, place)), _toml(after)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        inside = (f"{_key(k)} = {_toml(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(inside) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)  # TOML writes texts, numbers and truth as JSON does


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else json.dumps(name)
