"""Arguments that a function of the runtime cannot take are told in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime import evaluate, load
from prunion.runtime.bundle import open_bundle, read_pack
from prunion.runtime.errors import InputError
from prunion.runtime.measure import bench

pytest.importorskip("onnxruntime")
NO_PATHS = (None, 123, b"a.prunion", "", "a\0b", ["a"])


@pytest.mark.parametrize("value", NO_PATHS)
@pytest.mark.parametrize("function", [load, open_bundle, bench, read_pack])
def test_what_is_no_path_is_named(function: Callable[[Any], object], value: Any) -> None:
    """A traceback of the interpreter's; the empty text was the working folder."""
    with pytest.raises(InputError, match=r"is .*: give the path of a file or folder") as raised:
        function(value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", NO_PATHS[:-1])
def test_what_is_no_path_of_data_is_named(bundle_path: Path, value: Any) -> None:
    with load(bundle_path, "cpu") as model:
        for data in (value, [value]):
            with pytest.raises(InputError, match=r"data is .*: give the path"):
                evaluate(model, data, "signs")
    with pytest.raises(InputError, match=r"engine is .*: give the path"):
        load(bundle_path, engine=value if value is not None else 1)
