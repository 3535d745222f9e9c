"""The run file's copy in a run's folder, and what was changed for the run beside it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunion.runtime.errors import PrunionError
from prunion.trainer.config.domains import drop_unused
from prunion.trainer.config.file import (
    absolute_paths,
    put_value,
    read_toml,
    set_option,
    toml_key,
    toml_text,
)
from prunion.trainer.config.run import RunConfig, load_config

__all__ = ["keep_run_file"]

STARTED = "# This run is of this file, where it lies here, with:"
OPTION = "#   --set "
WHOLE = "# The whole run: options beside the file that it was started with do not say all of it."


def keep_run_file(run_file: Path | None, config: RunConfig, copy: Path) -> None:
    """Copy the run file; where the copy would be another run, its first lines tell the options.

    So `prunion train COPY` with these options is the same run again, whatever made it another:
    `--set`, `--seed`, `--budget`, a program, or relative paths, which count from the file's folder.
    Where options cannot say it, such as a domain fewer, the copy is a file of the whole run.
    """
    if run_file is None:
        return
    if not (copy.exists() and copy.samefile(run_file)):
        shutil.copyfile(run_file, copy)
    # Not as text, so that line ends stay as they are. A byte-order mark is of the first line only.
    text = copy.read_bytes().decode("utf-8-sig")
    options = _options(copy, config)
    told = "".join(f"{OPTION}{option}\n" for option in options)
    now = (f"{STARTED}\n{told}" if told else "") + _without_options(text)
    if now != text:
        copy.write_bytes(now.encode("utf-8"))
    if _is_run(copy, options, config):
        return
    copy.write_text(_run_file(config), "utf-8")
    if not _is_run(copy, [], config):  # a program's, such as one whose paths are relative
        copy.write_bytes(now.encode("utf-8"))


def _without_options(text: str) -> str:
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].rstrip() != STARTED:
        return text
    first = next((n for n, x in enumerate(lines[1:], 1) if not x.startswith(OPTION)), len(lines))
    return "".join(lines[first:])


def _options(copy: Path, config: RunConfig) -> list[str]:
    """What stands behind `--set`, as a shell takes it, to make the copy's run this one."""
    value, after = read_toml(copy), _tables(config)
    try:
        absolute_paths(value, copy.absolute().parent)
        before = _tables(RunConfig.from_json(value))
    except PrunionError:  # a change has put right what is wrong in it: what it says is compared
        before = _tables(config)
        for path, item in _leaves(value):
            put_value(before, path, item)
    return [set_option(path, item) for path, item in _differences(before, after)]


def _tables(config: RunConfig) -> dict[str, Any]:
    """A run laid out like its file, with every key that it may have, also those at their default.

    `to_json` leaves some of these out, and what is left out cannot be seen to go back to it.
    """
    value = asdict(config)
    domains = {}
    for table in value["domains"]:
        name, table["name"] = table["name"], table.pop("dataset")
        domains[name] = table
    value["domains"] = drop_unused(domains)
    if config.backbone.source != "python":
        del value["backbone"]["arguments"], value["backbone"]["folder"]
    return value


def _leaves(value: Mapping[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _leaves(item, (*place, key))
        else:
            yield (*place, key), item


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The keys to set, with their values; a whole table where one of its keys must go."""
    for key, item in after.items():
        was, path = before.get(key), (*place, key)
        if _same(was, item) or item is None:
            continue
        if isinstance(was, dict) and isinstance(item, dict) and _kept(was) <= _kept(item):
            yield from _differences(was, item, path)
        else:
            yield path, item


def _kept(table: Mapping[str, Any]) -> set[str]:
    return {key for key, item in table.items() if item is not None}


def _same(one: Any, other: Any) -> bool:
    return toml_text(one) == toml_text(other)


def _is_run(copy: Path, options: Sequence[str], config: RunConfig) -> bool:
    try:
        changes = [shlex.split(option)[0] for option in options]
        read = load_config(copy, changes, begun=True)  # it is of a run: checked when that began
    except PrunionError:
        return False
    return _same(_tables(read), _tables(config))


def _run_file(config: RunConfig) -> str:
    """A run file that says every key."""
    value = _tables(config)
    tables = {key: value.pop(key) for key in ("backbone", "input", "budget", "train")}
    tables |= {toml_key("domains", name): table for name, table in value.pop("domains").items()}
    lines = [WHOLE, *_lines(value)]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_lines(table)]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{toml_key(key)} = {toml_text(x)}" for key, x in table.items() if x is not None]
