"""`prunion reproduce` from archives to table and submission, with a network of a few channels."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from prunion.benchmarks.reproduce.archives.images import BenchmarkImages
from prunion.benchmarks.reproduce.rows import chosen_rows, row_config
from prunion.benchmarks.reproduce.settings import Reproduction
from prunion.benchmarks.reproduce.table.table import score_of
from prunion.runtime.bundle import open_bundle
from prunion.runtime.cli import cli
from prunion.runtime.errors import InputError
from prunion.trainer.backbone import PAPER_NETS
from prunion.trainer.score import DECATHLON, score
from tests.benchmarks.reproduce.archives.small import (
    coloured,
    real_domains,
    write_decathlon,
    write_sketch,
)
from tests.benchmarks.reproduce.command import lines, run
from tests.benchmarks.reproduce.little import Little

pytestmark = pytest.mark.thorough

DATA = Path(os.environ.get("PRUNION_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def test_from_archives_to_table_and_submission(data: Path) -> None:
    rows = ("feature", "bap-slice-050", "bap-050")
    few = ("--epochs", "2", "--set", "train.batch_size=8", "--set", "train.lr=0.01")
    code, text = run(data, *few, *(x for row in rows for x in ("--method", row)))
    assert code == 0, text
    done = lines(data)
    assert [line["row"] for line in done] == list(rows)
    out = data.parent / "out"
    for line in done:
        assert set(line["accuracy"]) == {"imagenet12", "gtsrb", "vgg-flowers"}
        assert line["error"] <= 1e-4
        answers = json.loads((out / "submissions" / line["submission"]).read_text("utf-8"))
        assert len(answers) == line["submitted"] == 2 * 6 + 2 * 6 + 3 * 6
        assert {x["category_id"] // 10_000_000 for x in answers} == {6, 5, 10}
        bundle = open_bundle(out / "bundles" / f"{line['key']}.prunion")
        assert [d.name for d in bundle.manifest.domains] == ["gtsrb", "vgg-flowers"]
    feature, slices, channels = done
    assert (feature["flop"], feature["params"], feature["params_without_norms"]) == (1, 1, 1)
    assert slices["flop"] <= slices["flop_union"] < 1 == slices["flop_graph"]
    assert channels["flop_union"] == channels["flop_graph"] < 1
    assert channels["params_without_norms"] < 0.6
    assert channels["params"] > channels["params_without_norms"]
    table = (out / "table.md").read_text("utf-8")
    assert table.strip() in text
    assert "| *BAP, Table 2: BAP β=0.50* | 0.403 | 0.73 |" in table
    assert "CovNorm" in table and "Without Airc, C100" in table
    assert "Measured on validation images, the printed rows on test images: 3 of 3 rows." in table
    # A row that has a line is not run again, nor are the archives needed for it.
    (data / "decathlon-1.0-devkit.tar.gz").unlink()
    again, text = run(data, *few, *(x for row in rows for x in ("--method", row)))
    assert (again, len(lines(data))) == (0, 3)


def test_a_change_that_one_row_does_not_know_is_told_before_any_is_trained(data: Path) -> None:
    rows = ("--method", "finetune", "--method", "norms")
    code, text = run(data, *rows, "--set", "train.trunk_lr=1e-3")
    assert code == 1 and "row norms: [train] trunk_lr is 0.001, but method is" in text
    assert not (data.parent / "out" / "runs").exists()


def test_training_on_all_labels_leaves_no_accuracy_but_a_submission(data: Path) -> None:
    code, text = run(data, "--epochs", "1", "--method", "norms", "--final")
    assert code == 0, text
    (line,) = lines(data)
    assert line["accuracy"] == {} and line["images"]["gtsrb"]["train"] == 24
    assert line["submitted"] == 42 and "-final" in line["key"]
    table = (data.parent / "out" / "table.md").read_text("utf-8")
    assert "| – | – |" in table and "validation" not in table


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real images in {DATA} are not here")
def test_real_images_and_labels_that_were_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accuracy in the table is that of the submission, to the last image."""
    monkeypatch.setitem(PAPER_NETS, "wrn28_4", Little)
    names = ("imagenet12", "gtsrb", "omniglot", "vgg-flowers")
    domains = real_domains(DATA, 4, 4, names)
    truth = write_decathlon(tmp_path / "data", domains, labels=True)
    code, text = run(tmp_path / "data", "--epochs", "2", "--method", "norms", "--final")
    assert code == 0, text
    (line,) = lines(tmp_path / "data")
    place = tmp_path / "out" / "submissions" / line["submission"]
    answers = {x["image_id"]: x["category_id"] for x in json.loads(place.read_text("utf-8"))}
    assert set(answers) == {number for own in truth.values() for number in own}
    for name, own in truth.items():
        right = sum(answers[number] == category for number, category in own.items())
        assert line["accuracy"][name] == pytest.approx(right / len(own)), name
    assert line["images"]["gtsrb"] == {"train": 32, "test": 16}


def test_imagenet_to_sketch_from_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PAPER_NETS, "resnet50", Little)
    parts = {part: coloured(["b", "a"], 6, seed) for seed, part in enumerate(("train", "test"))}
    write_sketch(tmp_path / "data", dict.fromkeys(("imagenet", "flowers", "cubs_cropped"), parts))
    where = ["--data", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--threads", "1"]
    few = ["--size", "16", "--epochs", "1", "--method", "piggyback-bn"]
    done = CliRunner().invoke(cli, ["reproduce", "imagenet-to-sketch", *where, *few])
    assert done.exit_code == 0, done.output
    (line,) = lines(tmp_path / "data")
    assert set(line["accuracy"]) == {"imagenet", "cubs", "flowers"} and "submission" not in line
    assert line["params"] > line["params_without_norms"] > 1
    assert "*affine, Table 1: Piggyback, BN* | – | 1.17 |" in done.output


@pytest.mark.slow
def test_every_usual_row_becomes_a_line(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method, with a part of its settings, through training, export and verification."""
    monkeypatch.setitem(PAPER_NETS, "resnet26", Little)
    code, text = run(data, "--epochs", "1", "--budget", "0.5")
    assert code == 0, text
    rows = chosen_rows(Reproduction("decathlon", data, data, budgets=(0.5,)))
    assert [line["row"] for line in lines(data)] == [row.name for row in rows]
    assert all(line["error"] <= 1e-4 for line in lines(data))
    adapted = {line["row"]: line["params_without_norms"] for line in lines(data)}
    assert adapted["finetune"] == pytest.approx(3, rel=0.1)
    assert 1 < adapted["parallel-second"] < adapted["parallel"] < 2


@pytest.mark.slow
def test_two_processes_share_every_row(data: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    where = ["--data", str(data), "-o", str(data.parent / "out"), "--size", "16", "--epochs", "1"]
    rows = ["--method", "norms", "--method", "bap-slice-050", "--threads", "1"]
    little = str(Path(__file__).with_name("little.py"))
    processes = [
        subprocess.Popen(
            [sys.executable, little, "reproduce", "decathlon", *where, *rows],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=550) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "bap-slice-050" in outputs[0][0] and outputs[1][0] == ""
    assert [line["row"] for line in lines(data)] == ["norms", "bap-slice-050"]


def test_the_rows_are_listed_without_any_data() -> None:
    done = CliRunner().invoke(cli, ["reproduce", "imagenet-to-sketch", "--list"])
    assert done.exit_code == 0
    assert "vgg16_bn:" in done.output and "printed: affine, Table 1" in done.output


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["decathlon"], 2, "give --data and -o, or --list"),
        (["decathlon", "--list", "--network", "vgg16"], 2, "no network vgg16: choose from wrn28_4"),
        (
            ["decathlon", "--data", "x", "-o", "y", "--weights", "wrn28_4"],
            2,
            "give NETWORK=FILE with a file that is there",
        ),
        (
            ["decathlon", "--data", "x", "-o", "y", "--method", "nosuch"],
            2,
            "--method nosuch: choose",
        ),
        (["decathlon", "--data", "x", "-o", "y", "--set", "train.speed=1"], 1, "speed"),
        *(
            (["decathlon", "--list", "--set", f"train.{key}"], 2, "is what makes a row what it is")
            for key in ('method="lora"', 'granularity="slice"', 'norms="own"', "adapter_rank=2")
        ),
        (["imagenet-to-sketch", "--list", "--final"], 2, "has no validation images"),
        (["decathlon", "--list", "--epochs", "3", "--set", "train.ramp=1"], 2, "so does --epochs"),
        (["decathlon", "--data", "x", "-o", "y", "--set", "seed=1"], 1, "give train.KEY=VALUE"),
        *(
            (["decathlon", "--list", "--source-accuracy", given], 2, said)
            for given, said in (
                ("wrn28_4=0.762", "give a percentage, 76.2 for a share"),
                ("76.2", "give NETWORK=PERCENT, such as wrn28_4=76.2"),
                ("vgg16=70", "give NETWORK=PERCENT"),
                ("resnet26=nan", "give a percentage, 76.2 for"),
                ("resnet26=high", "give a percentage, 76.2 for"),
            )
        ),
        (["decathlon", "--data", "x", "-o", "y"], 1, "x holds neither annotations/"),
        (["imagenet-to-sketch", "--data", "x", "-o", "y"], 1, "x holds none of the folders"),
    ],
)
def test_a_refusal_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["reproduce", *options])
    assert done.exit_code == code and said in done.output


def test_rows_are_chosen_by_name_method_network_and_budget() -> None:
    def names(**asked: Any) -> list[str]:
        rows = chosen_rows(Reproduction("decathlon", Path(), Path(), **asked))
        return [f"{row.network} {row.name}" for row in rows]

    assert names(methods=("svd",)) == ["resnet26 svd"]
    assert names(methods=("ba2",), budgets=(0.3,)) == ["wrn28_4 ba2-slice-030", "wrn28_4 ba2-030"]
    assert names(methods=("packnet", "taps-025"), networks=("mobilenet_v2",)) == [
        f"mobilenet_v2 {x}" for x in ("packnet", "packnet-reversed", "taps-025")
    ]
    with pytest.raises(InputError, match="--method series: choose from"):
        names(methods=("series",), networks=("mobilenet_v2",))


def test_settings_that_the_papers_print() -> None:
    def train(benchmark: str, name: str, epochs: int = 0) -> Any:
        asked = Reproduction(benchmark, Path(), Path(), methods=(name,), epochs=epochs)
        (row,) = (x for x in chosen_rows(asked) if x.name == name)
        images = [BenchmarkImages(x, ("a",), ("b",)) for x in (asked.source, "dtd")]
        return row_config(asked, row, 0, images, "default").train

    for name in ("ba2-slice-050", "bap-slice-100"):
        own, sketch = train("decathlon", name), train("imagenet-to-sketch", name)
        for found in (own, sketch):
            assert (found.recipe, found.trunk, found.order) == ("paper", "frozen", "round-robin")
            assert (found.head_optimiser, found.warmup, found.settle) == ("sgd", 0, 0)
        assert (own.ramp, own.drops, own.batch_size) == (60, (45,), 32)
        assert (own.own_head_lr, own.switch_lr, own.own_lr) == (1e-3, 1e-4, 1e-4)
        assert (sketch.ramp, sketch.drops, sketch.batch_size) == (45, (15, 30), 12)
        assert (sketch.own_head_lr, sketch.switch_lr) == (5e-4, 5e-5)
    masks = {b: train(b, "affine-full") for b in ("decathlon", "imagenet-to-sketch")}
    assert [(x.epochs, x.drops) for x in masks.values()] == [(60, (45,)), (30, (15,))]
    adapted, packed = train("decathlon", "parallel"), train("imagenet-to-sketch", "packnet")
    assert (adapted.epochs, adapted.drops, adapted.batch_size) == (120, (80, 100), 128)
    assert (packed.ramp, packed.settle, packed.drops) == (20, 10, (10,))
    assert (packed.order, packed.batch_size) == ("task-passes", 32)  # its own 30 passes
    # Fewer epochs are divided alike; one or two may be too few for a drop.
    assert train("imagenet-to-sketch", "bap-slice-050", 9).drops == (3, 6)
    assert train("imagenet-to-sketch", "bap-slice-050", 1).drops == "auto"
    assert train("decathlon", "taps-025").drops == train("decathlon", "bap-050").drops == "auto"


def test_scores_of_some_domains_are_relative_to_our_own_features() -> None:
    accuracy = {d.name: d.reference / 100 for d in DECATHLON.domains}
    whole = score_of("decathlon", "wrn28_4", accuracy, 1.0, 2.0)
    assert whole == score(DECATHLON, [d.reference for d in DECATHLON.domains], 1.0, 2.0)
    few = {name: accuracy[name] for name in ("gtsrb", "dtd")}
    alone = score_of("decathlon", "wrn28_4", few, 1.0, 2.0)
    assert alone is not None and alone.s_e is None
    assert score_of("decathlon", "wrn28_4", {}, 1.0, 2.0) is None
    same = score_of("decathlon", "wrn28_4", few, 1.0, 2.0, few)
    assert same is not None
    assert (same.s, same.s_e) == (pytest.approx(500), pytest.approx(0.5))


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "rows.jsonl").write_text("{}\n", "utf-8")
    where = ["--data", str(tmp_path), "-o", str(tmp_path / "y")]
    done = CliRunner().invoke(cli, ["reproduce", "decathlon", *where])
    assert done.exit_code == 1 and "rows.jsonl line 1 is no row" in done.output
