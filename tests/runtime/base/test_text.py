"""How errors are written in one line."""

from __future__ import annotations

import pytest

from prunion.runtime.base import asked_text, listed, one_line, reason_of
from prunion.runtime.bundle import cost_text
from prunion.runtime.errors import BundleError, OutputError, printable


def test_a_reason_is_cut_behind_a_word_and_has_no_colours() -> None:
    error = ValueError("\n\x1b[31m" + "word " * 100 + "\x1b[0m\nsecond line")
    reason = reason_of(error)
    assert reason.endswith("word …")
    assert "\x1b" not in reason
    assert len(reason) < 170
    assert reason_of(KeyError()) == "KeyError"
    assert reason_of(ValueError("no <function f at 0x7fafaa3fdee0> here")) == "no <function f> here"


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (0.123456789, "0.1235"),
        (1 / 3, "0.3333"),
        (0.5, "0.5"),
        (1.0, "1"),
        (2500000, "2,500,000"),
        (12.345678901, "12.3457"),
        ("2.5ms", "2.5ms"),
    ],
)
def test_a_budget_is_told_to_four_digits(asked: float | str, text: str) -> None:
    assert asked_text(asked) == text


@pytest.mark.parametrize(
    ("value", "met", "text"),
    [
        (0.48639, True, "0.4863"),
        (1.0, True, "1.0000"),
        (9_468, True, "9,468"),
        (1.21489, False, "1.2148"),
        (1.21489, True, "1.2148 (a limit of the whole asks for nothing)"),
    ],
)
def test_a_share_above_the_whole_is_told_as_it_is(value: float, met: bool, text: str) -> None:
    """With adapters beside it a network may cost more than the backbone: it was told as 1."""
    assert cost_text({"kind": "params", "value": value, "met": met}) == text


@pytest.mark.parametrize(
    "text", ["a\x1b[2Jb", "two\nlines", "\ud800", "a\u202eb", "\x9b31m", "\x07"]
)
def test_no_message_is_obeyed_by_a_terminal(text: str) -> None:
    for error in (BundleError, OutputError):
        message = str(error(f"the name {text} is wrong"))
        assert message.isprintable()
        assert message.encode()
    assert reason_of(ValueError(text)).isprintable()
    assert printable("größe → 画像") == "größe → 画像"


def test_a_lone_word_is_told_with_the_error_s_type() -> None:
    """`cannot be read (0)` was all of a KeyError, and of a RuntimeError in a program's code."""
    for told in (reason_of, one_line):
        assert told(KeyError(0)) == "KeyError: 0"
        assert told(RuntimeError("boom")) == "RuntimeError: boom"
        assert told(ValueError("two words")) == "two words"
    assert reason_of(ValueError("two words"), typed=True) == "ValueError: two words"
    assert reason_of(KeyError(), typed=True) == "KeyError"


def test_a_thousand_names_are_told_by_the_first() -> None:
    names = [f"d{number}" for number in range(1000)]
    assert listed(names[:2]) == "d0, d1"
    assert listed(names[:2], open_end=True) == "d0, d1 and more"
    assert listed(names).endswith("d18, d19 and 980 more")
    assert listed(names, 2) == "d0, d1 and 998 more"
    assert listed(names, open_end=True).endswith("d18, d19 and more")
