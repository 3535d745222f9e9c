"""The commands on a bundle of each method: they answer, or say in one line what to do instead."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import verify_bundle
from prunion.runtime.cli import cli
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import METHODS, DomainConfig, TrainConfig
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import add_domain
from prunion.trainer.run.later_domain import _config
from tests.support.networks.drawn import drawn_checkpoint

SLICES = {"granularity": '"slice"'}
RUNS: list[tuple[str, dict[str, object]]] = [
    *((method, {}) for method in METHODS),
    *((method, SLICES) for method in ("bap", "ba2")),
    *((method, {"adapter_rank": 2}) for method in ("bap", "parallel")),
    ("series", {"adapter_lr": 0.1, "sites": '"second"'}),
]
NEW = """
[train]
warmup = 1
ramp = 0
settle = 0
batch_size = 8
[domains.new]
train = "data/warm/train"
test = "data/warm/test"
"""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "train"), RUNS, ids=lambda x: str(x) if x else "")
def test_every_command_answers_or_says_why_not(
    tmp_path: Path, method: str, train: dict[str, object]
) -> None:
    checkpoint, bundle = drawn_checkpoint(tmp_path, method, **train), tmp_path / "b.prunion"
    export_bundle(checkpoint, bundle)
    image = tmp_path / "data" / "cold" / "test" / "red" / "0.png"
    (tmp_path / "labelled" / "a").mkdir(parents=True)
    shutil.copy(image, tmp_path / "labelled" / "a")
    (tmp_path / "new.toml").write_text(NEW, "utf-8")
    timed = ["bench", bundle, "--duration", "5ms", "--threads", "1"]
    answered: list[list[object]] = [
        ["predict", bundle, image, "-d", "cold"],
        ["eval", bundle, tmp_path / "labelled", "-d", "cold"],
        ["inspect", bundle],
        ["verify", bundle, "--against", checkpoint],
        [*timed, "--batch", "2"],
        [*timed, "--batch", "1", "--against", "specialised"],
        [*timed, "--scenario", "multi"],
        ["report", bundle, "-o", tmp_path / "report.html"],
        ["pack", checkpoint, "cold", "-o", tmp_path / "cold.safetensors"],
        ["export", checkpoint, "-o", tmp_path / "one.prunion", "--specialise", "cold"],
        ["predict", tmp_path / "one.prunion", image],
    ]
    engine = ["--target", "tensorrt-rtx", "--sm", "86", "-o", tmp_path / "x.engine"]
    asked: list[list[object]] = [
        ["build", bundle, *engine, "--print-trtexec"],
        ["export", bundle, "--triton", tmp_path / "triton"],
        ["export", checkpoint, "-o", tmp_path / "half.prunion", "--fp16"],
        ["export", checkpoint, "-o", tmp_path / "torch.prunion", "--torch"],
        ["add-domain", checkpoint, tmp_path / "new.toml", "-o", tmp_path / "new.safetensors"],
    ]
    for words in (*answered, *asked):
        result = CliRunner().invoke(cli, [str(word) for word in words])
        lines = [x for x in result.stderr.splitlines() if not x.startswith("note: ")]
        if words in answered or result.exit_code == 0:
            assert result.exit_code == 0, (words, result.stderr)
        else:
            assert result.exit_code == 1 and len(lines) == 1, (words, result.output)
            assert lines[0].startswith("error: ") and ": " in lines[0][7:], words


def test_adapters_that_were_never_compressed_are_exported_as_they_are(tmp_path: Path) -> None:
    """Of a run that was stopped; beta times gamma is zero by then."""
    checkpoint = drawn_checkpoint(tmp_path, "svd", settled=False)
    export_bundle(checkpoint, tmp_path / "b.prunion")  # which compares it with the network
    assert not verify_bundle(tmp_path / "b.prunion", against=checkpoint).problems


def test_a_refusal_tells_slices_from_channels(tmp_path: Path) -> None:
    checkpoint = drawn_checkpoint(tmp_path, "bap", **SLICES)
    with pytest.raises(ConfigError, match='method is "bap" and granularity "slice", so domains'):
        export_bundle(checkpoint, tmp_path / "x", ExportOptions(fp16=True))
    new = DomainConfig("new", train=("a",), test=("b",))
    with pytest.raises(ConfigError, match="budget-aware pruning, slice by slice: its weights are"):
        add_domain(load_checkpoint(checkpoint), new, TrainConfig())


@pytest.mark.parametrize(
    ("method", "keys", "kept"),
    [
        ("series", {"adapter_lr": 0.1, "sites": '"second"'}, {}),
        ("parallel", {"adapter_lr": 0.1}, {"method": "parallel", "adapter_lr": 0.1}),
        ("bap", {"adapter_rank": 2, "adapter_lr": 0.1}, {"adapter_rank": 2, "adapter_lr": 0.1}),
    ],
)
def test_a_later_domain_has_the_adapters_that_it_can_have(
    tmp_path: Path, method: str, keys: dict[str, object], kept: dict[str, object]
) -> None:
    """Keys of adapters that it gets none of would be refused, and nobody has written them."""
    loaded = load_checkpoint(drawn_checkpoint(tmp_path, method, **keys))
    folder = tmp_path / "data" / "warm"
    new = DomainConfig("new", train=(str(folder / "train"),), test=(str(folder / "test"),))
    found = vars(_config(loaded, new, TrainConfig(), 0).train)
    assert {key: found[key] for key in kept} == kept
    if not kept:
        assert (found["method"], found["adapter_lr"]) == ("bap", "auto")
