"""No option of `prunion export` is taken and does nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result

from prunion.exporter.options import ExportOptions
from prunion.runtime.cli import cli
from prunion.runtime.errors import ConfigError


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, arguments)])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run -o b --triton-precision fp16", "--triton-precision means nothing without --triton:"),
        ("run -o b --triton-domains", "--triton-domains means nothing without --triton:"),
        ("run -o b --fp16-image float16", "--fp16-image means nothing without --fp16:"),
        ("run -o b --int8-max-drop 3", "--int8-max-drop means nothing without --int8:"),
        ("run -o b --int8-images 3", "--int8-images means nothing without --int8:"),
        ("run -o b --domains a --specialise b", "--domains keeps several domains, --specialise"),
        ("run -o b --heads gathered --specialise a", "--heads means nothing with --specialise"),
        ("run.toml --untrained -o b --int8", "--int8 means nothing with --untrained: there are no"),
        ("run.toml --untrained -o b --domains a", "--domains means nothing with --untrained"),
        ("run.toml --untrained -o b --specialise a", "--specialise means nothing with --untrained"),
        ("run.toml --untrained", "Missing option '-o'"),
    ],
)
def test_what_means_nothing_is_a_wrong_line(tmp_path: Path, line: str, said: str) -> None:
    source, *rest = line.split()
    refused = invoke(tmp_path / source, *rest)
    assert refused.exit_code == 2
    assert said in refused.output


def test_an_untrained_network_has_every_form_that_needs_no_images(
    tiny: Path, tmp_path: Path
) -> None:
    line = "--untrained --fp16 --uint8 --heads concatenated --opset 17 --json".split()
    made = invoke(tiny.parent / "run.toml", *line, "-o", tmp_path / "u.prunion")
    assert made.exit_code == 0, made.output
    manifest = json.loads(made.stdout)
    assert set(manifest["graphs"]) == {"fp32", "fp16", "fp32-uint8", "fp16-uint8"}
    assert manifest["heads"] == "concatenated"
    graph = onnx.load(tmp_path / "u.prunion" / "model.onnx")
    assert graph.opset_import[0].version == 17


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fp16_image": "float16"}, "fp16_image means nothing without fp16: give fp16=True too"),
        ({"int8_max_drop": 3.0}, "int8_max_drop means nothing without int8"),
        ({"int8_images": 3}, "int8_images means nothing without int8"),
        ({"heads": "concatenated", "specialise": "a"}, "heads means nothing with specialise"),
        ({"domains": "warm"}, "domains is .*warm.*: give a tuple"),
        ({"domains": {"warm", "cold"}}, "domains is .*: give a tuple"),  # in no order
        ({"domains": (1,)}, "domains is .*: give a tuple"),
        ({"specialise": ("a",)}, "specialise is .*: give one domain's name"),
        ({"fp16": "no"}, "fp16 is .*no.*: give True or False"),
        ({"int8": True, "int8_images": "64"}, "int8_images is .*: give a whole number"),
        ({"int8": True, "int8_images": 2.5}, "int8_images is 2.5: give a whole number"),
        ({"int8": True, "int8_max_drop": "1"}, "int8_max_drop is .*: give a number"),
        ({"ir": "8"}, "ir is .*: give a whole number"),
        ({"opset": 20, "ir": 8}, "--ir 8 does not go with opset 20, which takes 9"),
    ],
)
def test_nor_from_python(options: dict[str, Any], said: str) -> None:
    """Before the work; `domains="warm"` would ask for w, a, r and m."""
    with pytest.raises(ConfigError, match=said):
        ExportOptions(**options)
