"""A run file either becomes a RunConfig or names the key and the fix."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prunion.runtime.bundle import MAX_DOMAINS, write_profile
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import (
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    InputConfig,
    RunConfig,
    TrainConfig,
    load_config,
)
from tests.trainer.cost.test_latency import UNITS, made_up

BASE = {
    "": "",
    "backbone": 'name = "resnet18"',
    "budget": "limit = 0.5",
    "domains.flowers": 'train = "flowers/train"\ntest = "flowers/test"',
}


def load(folder: Path, **tables: str | None) -> RunConfig:
    """The base run with whole tables replaced; dots in names are written as `__`."""
    given = {name.replace("__", "."): text for name, text in tables.items()}
    merged = {**BASE, **{"" if name == "top" else name: text for name, text in given.items()}}
    text = "\n".join(
        (f"[{name}]\n" if name else "") + body for name, body in merged.items() if body is not None
    )
    path = folder / "run.toml"
    path.write_text(text, "utf-8")
    return load_config(path)


def test_the_smallest_run_file_gets_the_documented_defaults(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config == RunConfig(
        backbone=BackboneConfig(
            "resnet18", source="torchvision", weights="default", match="name", cut=None
        ),
        budget=BudgetConfig(0.5, kind="params", round_to=8),
        domains=(
            DomainConfig(
                "flowers",
                train=(str(tmp_path / "flowers/train"),),
                test=(str(tmp_path / "flowers/test"),),
                mirror=False,
                crop=True,
            ),
        ),
        input=InputConfig(size=(64, 64), resize=0),
        train=TrainConfig(trunk="tuned", order="joint", warmup=2, ramp=4, settle=6),
        seed=0,
        threads=0,
        device="auto",
    )


def test_widths_are_in_the_multiples_of_the_profile_that_prices_them(tmp_path: Path) -> None:
    write_profile(tmp_path / "device.json", replace(made_up(UNITS[0].table), round_to=32))
    budget = 'limit = 0.5\nkind = "latency"\nprofile = "device.json"'
    assert load(tmp_path, budget=budget).budget.round_to == 32
    assert load(tmp_path, budget=f"{budget}\nround_to = 64").budget.round_to == 64
    (tmp_path / "device.json").write_text("no profile")
    assert load(tmp_path, budget=budget).budget.round_to == 8


def test_json_gives_the_run_back_with_the_domains_in_order(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        input="size = [48, 64]\nmean = [0.5, 0.5, 0.5]",
        domains__zebra='source = "torchvision"\nname = "CIFAR10"',
        domains__ant='train = ["a.parquet", "b.parquet"]\nholdout = 0.2',
    )
    again = RunConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert "keep" not in config.to_json()["backbone"], "runs from before it was known go on"
    assert again == config
    assert config.input.orientation == "exif"
    assert not {"image_column", "drop_untrained"} & set(config.to_json()["domains"]["ant"])
    assert [domain.name for domain in again.domains] == ["flowers", "zebra", "ant"]
    assert again.domains[1].dataset == "CIFAR10"


def test_paths_count_from_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").touch()
    config = load(
        tmp_path,
        backbone='name = "resnet18"\nweights = "w.safetensors"',
        domains__c10='source = "torchvision"\nname = "CIFAR10"\nroot = "../sets"',
    )
    assert config.backbone.weights == str(tmp_path / "w.safetensors")
    assert config.domains[1].root == str(tmp_path.parent / "sets")


def test_the_words_for_weights_are_not_paths(tmp_path: Path) -> None:
    config = load(tmp_path, backbone='name = "resnet18"\nweights = "none"')
    assert config.backbone.weights == "none"
    assert not config.backbone.weights_are_a_file


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [
        (0.5, 500_000),
        ("50%", 500_000),
        (1, 1_000_000),
        (250_000, 250_000),
        ("300k", 300_000),
        ("1.2M", 1_200_000),
        ("0.4G", 400_000_000),
        ("0.25", 250_000),
    ],
)
def test_a_limit_is_a_share_or_an_amount(limit: float | str, allowed: float) -> None:
    assert BudgetConfig(limit).allowed(1_000_000) == pytest.approx(allowed)


def test_the_resize_defaults_to_the_larger_side_so_that_the_crop_fits() -> None:
    assert InputConfig(size=(48, 64)).shorter_side == 64
    assert InputConfig(size=(48, 64), resize=80).shorter_side == 80


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    load(tmp_path)
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(path).backbone.name == "resnet18"


FLOWERS = 'train = "a"\ntest = "b"\n'
REFUSED = [
    ({"top": "sede = 1"}, "sede is not a key of a run file", "did you mean 'seed'?"),
    ({"top": "seed = -1"}, "seed is -1", "whole number from 0"),
    ({"top": "seed = true"}, "seed is True", "whole number"),
    ({"top": 'device = "gpu"'}, "device is 'gpu'", '"cuda"'),
    ({"top": "threads = 1.5"}, "threads is 1.5", "whole number"),
    ({"top": 'train = "x"', "domains.flowers": FLOWERS}, "[train] is 'x'", "table"),
    ({"backbone": None}, "backbone is missing", "add it"),
    ({"backbone": "cut = 'layer3'"}, "[backbone] name is missing", "add it to [backbone]"),
    ({"backbone": 'nam = "resnet18"'}, "[backbone] nam", "did you mean 'name'?"),
    ({"backbone": 'name = "x"\nsource = "keras"'}, "[backbone] source is 'keras'", '"timm"'),
    ({"backbone": 'name = "x"\nmatch = "shape"'}, "[backbone] match", '"order"'),
    ({"backbone": 'name = "x"\nweights = "no.pth"'}, "no.pth, which is not a file", '"default"'),
    ({"backbone": 'name = ""'}, "[backbone] name is ''", "string"),
    ({"input": 'orientation = "up"'}, "[input] orientation is 'up'", '"exif" or "ignore"'),
    ({"input": "size = 4"}, "[input] size is 4", "whole number from 8"),
    ({"input": "size = [64]"}, "[input] size is [64]", "[height, width]"),
    ({"input": "resize = 32"}, "[input] resize is 32", "at least 64"),
    ({"input": "mean = [0.5, 0.5]"}, "[input] mean", "three numbers"),
    ({"input": "mean = [123.7, 116.3, 103.5]"}, "[input] mean is 123.7", "divided by 255"),
    ({"input": "std = [0, 0.2, 0.2]"}, "[input] std is 0", "above 0"),
    ({"input": "std = [1e-46, 0.2, 0.2]"}, "[input] std is 1e-46", "numbers of 32 bits"),
    ({"input": "std = [1e-18, 0.2, 0.2]"}, "[input] std is 1e-18", "give 1e-15 or more"),
    ({"train": "trunk_lr = 1e-46"}, "[train] trunk_lr is 1e-46", "give 1.2e-38 or more"),
    ({"train": "weight_decay = 1e-39"}, "[train] weight_decay is 1e-39", "or 0 where"),
    ({"budget": "round_to = 8"}, "[budget] limit is missing", "add it to [budget]"),
    ({"budget": "limit = 0"}, "[budget] limit is 0", "above 0"),
    ({"budget": "limit = nan"}, "[budget] limit is nan", "number"),
    ({"budget": 'limit = "half"'}, "[budget] limit is 'half'", '"50%"'),
    ({"budget": 'limit = "0%"'}, "[budget] limit is '0%'", "more than zero"),
    ({"budget": 'limit = "120%"'}, "[budget] limit is '120%'", "at most 100%"),
    ({"budget": "limit = true"}, "[budget] limit is True", "number"),
    ({"budget": "limit = 0.5\nround_to = 0"}, "[budget] round_to is 0", "from 1"),
    ({"budget": 'limit = 1\nkind = "latency"'}, "[budget] profile is missing", "prunion profile"),
    ({"budget": 'limit = 1\nprofile = "x.json"'}, "[budget] profile is for kind", "leave it out"),
    (
        {"budget": 'limit = "1.5"\nkind = "latency"\nprofile = "x.json"'},
        "[budget] limit is '1.5'",
        "a share such as 0.5",
    ),
    (
        {"budget": 'limit = 5\nkind = "latency"\nprofile = "x.json"'},
        "[budget] limit is 5",
        '"5ms" or "800us"',
    ),
    (
        {"budget": 'limit = "5M"\nkind = "latency"\nprofile = "x.json"'},
        "[budget] limit is '5M'",
        '"5ms" or "800us"',
    ),
    ({"budget": 'limit = "5ms"'}, "[budget] limit is '5ms'", '"50%"'),
    ({"budget": 'limit = 1\nkind = "flops"'}, "[budget] kind is 'flops'", '"macs"'),
    ({"train": 'trunk = "warm"'}, "[train] trunk is 'warm'", '"frozen" or "tuned"'),
    ({"train": 'order = "random"'}, "[train] order", '"joint"'),
    ({"train": "warmup = -1"}, "[train] warmup is -1", "from 0"),
    ({"train": "warmup = 0\nramp = 0\nsettle = 0"}, "[train] warmup, ramp", "at least one"),
    ({"train": "batch_size = 2"}, "[train] batch_size is 2", "from 4"),
    ({"train": "balance = 1.5"}, "[train] balance is 1.5", "from 0 to 1"),
    ({"train": "lr = 0"}, "[train] lr is 0", "above 0"),
    ({"train": 'lr = "1e-3"'}, "[train] lr is '1e-3'", 'give a number such as 1e-3, or "auto"'),
    ({"train": "label_smoothing = 1"}, "[train] label_smoothing", "0.9"),
    ({"train": 'sharing_weight = "auto"'}, "[train] sharing_weight", '"learned"'),
    ({"train": "workers = -2"}, "[train] workers is -2", "from 0"),
    ({"domains.flowers": None}, "domains is missing", "add it"),
    ({"domains.flowers": None, "domains": ""}, "[domains] is empty", "[domains.NAME]"),
    ({'domains."a/b"': FLOWERS}, "a domain named 'a/b'", "letters"),
    ({"domains.Flowers": FLOWERS}, "[domains.Flowers]", "rename one"),
    ({"domains.a.b": FLOWERS}, "[domains.a.b] is a table inside", '[domains."a.b"]'),
    ({"domains.x": 'tset = "b"'}, "[domains.x] tset", "did you mean 'test'?"),
    ({"domains.x": 'test = "b"'}, "[domains.x] train is missing", "class folders"),
    ({"domains.x": 'train = "a"'}, "[domains.x] test is missing", "holdout"),
    ({"domains.x": FLOWERS + "holdout = 0.2"}, "[domains.x] holdout is 0.2", "remove one"),
    ({"domains.x": 'train = "a"\nholdout = 1'}, "[domains.x] holdout is 1", "from 0 to 0.9"),
    ({"domains.x": FLOWERS + "limit = -1"}, "[domains.x] limit is -1", "from 0"),
    ({"domains.x": FLOWERS + 'mirror = "yes"'}, "[domains.x] mirror", "true or false"),
    ({"domains.x": FLOWERS + 'source = "web"'}, "[domains.x] source", '"huggingface"'),
    ({"domains.x": FLOWERS + 'name = "CIFAR10"'}, "[domains.x] name", "add source"),
    ({"domains.x": FLOWERS + 'source = "torchvision"'}, "[domains.x] train", "remove one"),
    ({"domains.x": 'source = "huggingface"'}, "[domains.x] name is missing", "CIFAR10"),
    ({"domains.x": 'train = ["a", "b"]\ntest = "c"'}, "[domains.x] train lists", ".parquet"),
    ({"domains.x": "train = 3\ntest = 4"}, "[domains.x] train is 3", "string"),
]


@pytest.mark.parametrize(("tables", "says", "fix"), REFUSED)
def test_a_wrong_value_is_refused_by_key_with_the_fix(
    tmp_path: Path, tables: dict[str, str | None], says: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **tables)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'run.toml'}: ")
    assert says in message
    assert fix in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [("input", "std", [1e-18] * 3), ("train", "trunk_lr", 1e-39), ("train", "weight_decay", 1e-40)],
)
def test_a_run_of_before_may_hold_less_than_a_run_file(
    tmp_path: Path, table: str, key: str, value: object
) -> None:
    """Its checkpoint was called damaged."""
    stored = load(tmp_path).to_json()
    stored[table][key] = value
    assert RunConfig.from_checkpoint(stored).to_json()[table][key] == value
    change = f"{table}.{key}={value}"
    with pytest.raises(ConfigError, match="numbers of 32 bits"):
        load_config(tmp_path / "run.toml", [change])
    load_config(tmp_path / "run.toml", [change], begun=True)


def test_no_more_domains_are_trained_than_a_bundle_holds(tmp_path: Path) -> None:
    config = load(tmp_path)
    many = [replace(config.domains[0], name=f"d{number}") for number in range(MAX_DOMAINS + 1)]
    assert len(replace(config, domains=tuple(many[:-1])).domains) == MAX_DOMAINS
    with pytest.raises(ConfigError, match="has 4,097 tables, and a bundle holds 4,096 domains"):
        replace(config, domains=tuple(many))


def test_a_missing_file_and_broken_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml does not exist: give the path"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = \n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML .*line 1"):
        load_config(broken)


@pytest.mark.parametrize(
    "seed", ["1" * 5000, "0x" + "f" * 5000, "-1e400", "nan", "[" * 5000, '"\\u2028"']
)
def test_a_hostile_number_is_one_line(tmp_path: Path, seed: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f"seed = {seed}\n", "utf-8")
    with pytest.raises(ConfigError) as told:
        load_config(path)
    assert len(str(told.value).splitlines()) == 1
    assert len(str(told.value)) < 500
