"""Errors of a call from Python name its arguments."""

from __future__ import annotations

import pytest

from prunion.runtime.base import spelled_for_programs
from prunion.runtime.errors import DataError


@pytest.mark.parametrize(
    ("told", "spelled"),
    [
        (
            "pass --resume to go on with it, --force to start again, or -o for another place",
            "pass resume=True to go on with it, force=True to start again, or output for another "
            "place",
        ),
        ("give the --seed and --budget that", "give the seeds and --budget that"),
        ("a linear ramp (--set train.shape=linear)", "a linear ramp (train.shape=linear)"),
        ("raise --max-drop or leave out --fp16", "raise max_drop or leave out fp16=True"),
        ("run `prunion train --resume`, x--force /a/--force", None),
        ("pip install --force-reinstall; -other; --resumed", None),
    ],
)
def test_options_are_spelled_as_arguments(told: str, spelled: str | None) -> None:
    @spelled_for_programs(["fp16"], ["max_drop"])
    def call(output: str, *, seeds: int = 0, force: bool = False, resume: bool = False) -> None:
        raise DataError(told)

    with pytest.raises(DataError) as caught:
        call("x")
    assert str(caught.value) == (spelled or told)
