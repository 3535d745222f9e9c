"""How errors are written in one line."""

from __future__ import annotations

from prunion.runtime.base import reason_of


def test_a_reason_is_cut_behind_a_word_and_has_no_colours() -> None:
    error = ValueError("\n\x1b[31m" + "word " * 100 + "\x1b[0m\nsecond line")
    reason = reason_of(error)
    assert reason.endswith("word …")
    assert "\x1b" not in reason
    assert len(reason) < 170
    assert reason_of(KeyError()) == "KeyError"
