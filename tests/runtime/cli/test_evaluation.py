"""The progress of `prunion eval`."""

from __future__ import annotations

import io
import sys

import pytest

from prunion.runtime.cli import evaluation


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for stream, lines in ((_Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(evaluation, "BETWEEN_LINES", -1.0)
        with evaluation._progress() as progress:
            progress(0, 1200)
            progress(640, 1200)
        assert ("640 of 1,200 images\n" in stream.getvalue()) == lines
        assert ("[##" in stream.getvalue()) != lines
