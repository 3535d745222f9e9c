"""No test fails because the machine is busy: bounds are long, and speed is not what is tested."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
SHORTEST = 30  # seconds
BOUND = re.compile(
    r"(?:\btimeout=|\.(?:settimeout|set_default_timeout|wait|join)\()(\d+(?:\.\d+)?)\b"
)


def short_waits(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of lines that give another thread or process little time.

    `# short: ` and a reason in such a line allows it.
    """
    for number, line in enumerate(text.splitlines(), 1):
        bounds = [float(bound) for bound in BOUND.findall(line)]
        if bounds and min(bounds) < SHORTEST and "# short: " not in line:
            yield number, line


def test_a_short_wait_is_seen() -> None:
    lines = ("thread.join(5)", "found = call(b'', timeout=0.1)", "go.wait(29.5)")
    assert [line for _, line in short_waits("\n".join(lines))] == list(lines)
    assert not list(short_waits("thread.join(5)  # short: it is not to end"))
    assert not list(short_waits("', '.join(names); thread.join(LONG); found.get(timeout=60)"))


def test_nobody_is_given_little_time() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{number}": line.strip()
        for path in sorted(ROOT.rglob("*.py"))
        if path != Path(__file__)
        for number, line in short_waits(path.read_text("utf-8"))
    }
    assert not found, "wait for LONG of tests/support/waiting.py, or say why not: # short: …"


def test_property_tests_are_not_timed() -> None:
    hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis")
    assert hypothesis.settings.default.deadline is None
    assert hypothesis.HealthCheck.too_slow in hypothesis.settings.default.suppress_health_check
