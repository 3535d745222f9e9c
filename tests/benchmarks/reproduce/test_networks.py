"""The papers' networks count what the papers count, and go the whole line."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.benchmarks.reproduce.catalogue import NETWORKS, backbone_of
from prunion.benchmarks.reproduce.ratios import RATIOS, Ratio, computed, ratio_table, sizes_of
from prunion.benchmarks.reproduce.table.accounting import figures_of
from prunion.exporter.bundle import export_bundle
from prunion.exporter.training import train
from prunion.exporter.verify import verify_bundle
from prunion.trainer.config import BudgetConfig, DomainConfig, InputConfig, RunConfig, TrainConfig
from prunion.trainer.methods import Sizes
from prunion.trainer.network import build_network, load_checkpoint
from tests.support.networks.drawn import drawn_checkpoint
from tests.support.tiny_run import write_domain

pytestmark = pytest.mark.thorough

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"
# Numbers in the weights of convolutions and linear layers, in BatchNorm, and how many layers.
SIZES = {
    "resnet26": Sizes(5_806_944, 7_744, 25),
    "wrn28_4": Sizes(5_839_280, 8_096, 28),
    "wrn28_4_preact": Sizes(5_839_280, 7_200, 28),
    "resnet50": Sizes(23_454_912, 53_120, 53),
    "densenet121": Sizes(6_870_208, 83_648, 120),
    "vgg16": Sizes(134_248_128, 0, 15),  # to fc7
    "vgg16_bn": Sizes(134_248_128, 8_448, 15),
    "vgg16_conv": Sizes(14_710_464, 0, 13),
    "vgg16_bn_conv": Sizes(14_710_464, 8_448, 13),
    "mobilenet_v2": Sizes(2_189_760, 34_112, 52),
}
QUICK = ("resnet26", "wrn28_4")


def marked(names: object) -> list[object]:
    """The large ones take a quarter of a minute each."""
    return [
        name if str(name) in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in names  # type: ignore[attr-defined]
    ]


def test_every_network_is_here() -> None:
    assert {x for names in NETWORKS.values() for x in names} == SIZES.keys()


@pytest.mark.parametrize("name", marked(SIZES))
def test_sizes_are_the_published_ones(name: str) -> None:
    assert sizes_of(build_network(backbone_of(name, "none"), (64, 64), [2])) == SIZES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_a_network_trains_is_cut_exported_and_verified(tmp_path: Path, name: str) -> None:
    for seed, domain in enumerate(("warm", "cold")):
        write_domain(tmp_path / domain, ["red", "green"], 4, seed)
    parts = {
        domain: {part: (str(tmp_path / domain / part),) for part in ("train", "test")}
        for domain in ("warm", "cold")
    }
    config = RunConfig(
        backbone_of(name, "none"),
        BudgetConfig(0.5),
        tuple(DomainConfig(domain, **paths) for domain, paths in parts.items()),
        InputConfig((32, 32)),
        TrainConfig(trunk="frozen", warmup=1, ramp=1, settle=1, batch_size=4),
        threads=1,
    )
    result = train(config, tmp_path / "run")
    assert result.budget["met"] and result.budget["value"] <= 0.5
    export_bundle(tmp_path / "run", tmp_path / "bundle")
    report = verify_bundle(tmp_path / "bundle", against=tmp_path / "run")
    assert report.problems == () and report.compared
    figures = figures_of(load_checkpoint(tmp_path / "run"))
    assert figures.params_without_norms <= 0.51
    assert figures.flop <= figures.flop_union == figures.flop_graph < 1


def test_networks_of_their_own_are_counted_beside_the_sources(tmp_path: Path) -> None:
    """Whose own the file lacks: its trunk is the first domain's."""
    figures = figures_of(load_checkpoint(drawn_checkpoint(tmp_path, "finetune")))
    assert figures.params == pytest.approx(3)
    assert 2.9 < figures.params_without_norms < 3


@pytest.mark.parametrize(
    "ratio",
    [
        pytest.param(
            ratio,
            marks=[] if ratio.network in QUICK else [pytest.mark.slow],
            id=f"{ratio.network}-{ratio.row}",
        )
        for ratio in RATIOS
    ],
)
def test_params_are_the_printed_ones_or_it_is_said_why(ratio: Ratio) -> None:
    value = computed(ratio)
    if ratio.printed is not None:
        assert (abs(round(value, 2) - ratio.printed) <= 0.0101) == (not ratio.why), value


@pytest.mark.parametrize("network", marked(dict.fromkeys(x.network for x in RATIOS)))
def test_the_page_shows_them(network: str) -> None:
    lines = ratio_table([x for x in RATIOS if x.network == network]).splitlines()[2:]
    page = PAGE.read_text("utf-8")
    assert [line for line in lines if line not in page] == []
