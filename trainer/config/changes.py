"""In which keys of the run file two runs differ, also where an earlier prunion wrote one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from prunion.runtime.errors import PrunionError
from prunion.trainer.config.checks import key_of
from prunion.trainer.config.known_keys import drop_ignored
from prunion.trainer.config.run import RunConfig

__all__ = ["changed_keys", "todays_config"]

Key = tuple[str, ...]
# Where and by how many a run is computed is free: the bits may differ by it, the run does not.
FREE = (("train", "workers"), ("train", "placement"), ("threads",), ("device",))


def todays_config(config: Any) -> Any:
    """A stored configuration as this prunion writes it: keys that it is older than, by default."""
    try:
        return json.loads(json.dumps(RunConfig.from_json(drop_ignored(config)).to_json()))
    except PrunionError:
        return config


def changed_keys(
    before: Any, after: Any, without: Collection[Key] = (), place: Key = ()
) -> Iterator[tuple[str, Any, Any]]:
    """Each key in which two runs differ, with both values, but for those that change no result.

    Args:
        before, after: as `RunConfig.to_json` gives them, or a part of it.
        without: keys that are not looked at, and tables.
        place: the tables around the two parts.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            if (*place, key) not in FREE and (*place, key) not in without:
                yield from changed_keys(before.get(key), after.get(key), without, (*place, key))
    elif before != after:
        yield key_of(".".join(place[:-1]), place[-1] if place else "config"), before, after
