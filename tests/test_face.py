"""`import prunion` gives the errors and `load`, and waits for nothing."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import prunion
from prunion.runtime import errors


def test_every_error_is_at_the_top() -> None:
    assert set(errors.__all__) == set(prunion.__all__) - {"load"}
    for name in errors.__all__:
        assert getattr(prunion, name) is getattr(errors, name)
        assert issubclass(getattr(prunion, name), prunion.PrunionError)
    assert prunion.load is importlib.import_module("prunion.runtime.model.model").load
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prunion.nothing  # type: ignore[attr-defined]


def test_importing_it_loads_nothing_heavy() -> None:
    program = """
import sys
from prunion import DomainError, PrunionError
heavy = {"numpy", "torch", "onnx", "onnxruntime", "PIL", "click"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
