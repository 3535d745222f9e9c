"""JSON that others may have written: read within bounds, each key once, and written whole."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from prunion.runtime.base.files.exchange import Seen
from prunion.runtime.base.files.outputs import is_pipe, replace_file
from prunion.runtime.base.text import shown
from prunion.runtime.errors import PrunionError

__all__ = ["json_of", "parse_json", "read_json", "write_json"]

MAX_JSON_BYTES = 256 * 1024 * 1024


def json_of(text: str | bytes | bytearray) -> Any:
    """The value of a JSON text. Raises ValueError if it is none, or gives a key twice.

    Python takes the last of two values without a word, other readers the first. It costs no time
    in which long lists of numbers could be seen: an object is looked at once, and a list never.
    """
    if isinstance(text, bytes | bytearray):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark: write it as plain UTF-8")
    return DECODER.decode(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _) = Counter(key for key, _ in pairs).most_common(1)[0]  # strangers send many keys
        raise ValueError(f"the key {shown(twice)} is given twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def write_json(path: Path | str, value: Any, was: Seen | None = None) -> None:
    """Write `value` as indented JSON, atomically; names of files that are no UTF-8 in ASCII.

    `was` is what may be replaced, as of `replace_file`.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = json.dumps(value, indent=1).encode()
    with replace_file(path, was) as temporary:
        temporary.write_bytes(data + b"\n")


def read_json(path: Path | str, error: type[PrunionError] = PrunionError) -> Any:
    """Read a JSON file, raising `error` in one line if it is missing, too large or broken."""
    path = Path(path)
    if is_pipe(path):
        raise error(f"{path} is a pipe or a device: give a file")
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise error(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: not a prunion file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except OSError as exc:
        raise error(f"{path} cannot be read as JSON ({exc}): copy or write it again") from None
    return parse_json(data, path, error)


def parse_json(data: bytes, path: Path, error: type[PrunionError] = PrunionError) -> Any:
    """The value of a JSON file's bytes, raising `error` in one line if they are none."""
    try:
        return json_of(data.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise error(f"{path} cannot be read as JSON ({exc}): copy or write it again") from None
