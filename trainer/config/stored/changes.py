"""In which keys of the run file two runs differ, also where an earlier prunion wrote one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from prunion.runtime.errors import PrunionError
from prunion.trainer.config.checks import key_of
from prunion.trainer.config.known_keys import drop_ignored
from prunion.trainer.config.run import RunConfig

__all__ = ["changed_keys", "changed_paths", "lacks_shape", "todays_config"]

Key = tuple[str, ...]
SHAPE = ("train", "ramp_shape")
# Where and by how many a run is computed is free: the bits may differ by it, the run does not.
FREE = (("train", "workers"), ("train", "placement"), ("threads",), ("device",))


def todays_config(config: Any) -> Any:
    """A stored configuration as this prunion writes it: keys that it is older than, by default.

    But a shape of its ramp: that was linear, which another run may call by either name, so it is
    left out, and `changed_paths` passes over it.
    """
    try:
        today = json.loads(json.dumps(RunConfig.from_json(drop_ignored(config)).to_json()))
    except PrunionError:
        return config
    if lacks_shape(config):
        del today["train"]["ramp_shape"]
    return today


def lacks_shape(config: Any) -> bool:
    """Whether a stored configuration is of before the shape of a ramp could be said."""
    train = config.get("train") if isinstance(config, dict) else None
    return isinstance(train, dict) and "ramp_shape" not in train


def changed_keys(
    before: Any, after: Any, without: Collection[Key] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """The same as `changed_paths`, each key as messages name it."""
    for path, was, now in changed_paths(before, after, without):
        yield key_of(".".join(path[:-1]), path[-1] if path else "config"), was, now


def changed_paths(
    before: Any, after: Any, without: Collection[Key] = (), place: Key = ()
) -> Iterator[tuple[Key, Any, Any]]:
    """Each key in which two runs differ, behind the tables around it, with both values.

    Those that change no result are left out.

    Args:
        before: as `RunConfig.to_json` gives it, or a part of it.
        after: the same, later.
        without: keys that are not looked at, and tables.
        place: the tables around the two parts.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            untold = (*place, key) == SHAPE and not (key in before and key in after)
            if (*place, key) not in FREE and (*place, key) not in without and not untold:
                yield from changed_paths(before.get(key), after.get(key), without, (*place, key))
    elif before != after:
        yield place, before, after
