"""A BatchNorm that is called at several places stands in the bank once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from prunion.exporter.bundle.packs import domain_pack
from prunion.exporter.graph import make_probe, onnx_graph, open_graph, run_graph, verify_export
from prunion.exporter.graph.variants.int8_ranges import equalise
from prunion.exporter.slim import fold_domain, slim_network
from prunion.runtime.backends import BlockedSession, Session, SessionOptions, make_ort_session, run
from prunion.runtime.graph import pin_pack
from prunion.trainer.cost.counted import bytes_pricer
from tests.exporter.slim.test_network import switch_off
from tests.support.networks.small import domain_net

WIDTH, TIMES = 64, 4


class Recursive(nn.Module):
    """One block many times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.stem(x)).relu()
        for _ in range(TIMES):
            x = x + self.norm(self.conv(x)).relu()
        return x.mean((2, 3))


class OfMapsAndMeans(nn.Module):
    """A norm that takes maps, then what they are pooled to, and maps again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.after, self.norm = nn.Conv2d(8, 8, 1), nn.SyncBatchNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        gate = self.norm(self.fc(x.mean((2, 3))))[..., None, None]
        return self.norm(self.after(x * gate)).relu().mean((2, 3))


class OfTwoLayers(nn.Module):
    """A norm behind two convolutions, whose outputs differ in size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        nn.init.normal_(self.first.weight, std=9.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.second(self.norm(self.first(x)).relu())).relu().mean((2, 3))


def given_up() -> Session:
    raise AssertionError("the blocked layout was given up")


def test_every_other_form_of_the_graph_computes_the_same() -> None:
    """int8 evens out each convolution's ranges in the columns behind it: here in none."""
    slim = slim_network(switch_off(domain_net(OfTwoLayers(), (3, 5))))
    model = onnx_graph(slim, 8, 8)
    whole = model.SerializeToString()
    probe = make_probe(8, (8, 8), (0.5,) * 3, (0.2,) * 3, domains=2)
    expected = run_graph(open_graph(whole), probe)
    scale = np.abs(expected[np.isfinite(expected)]).max()
    equalise(model, [{"image": probe.images, "domain": probe.domains}])
    got = run_graph(open_graph(model.SerializeToString()), probe)
    np.testing.assert_allclose(got, expected, atol=1e-5 * scale)
    blocked = BlockedSession(whole, SessionOptions("cpu", threads=1), given_up)
    tables = {name: value.numpy() for name, value in slim.tables.items()}
    feeds = {"image": probe.images, "domain": probe.domains, **tables}
    np.testing.assert_allclose(blocked.run(["logits"], feeds)[0], expected, atol=1e-5 * scale)
    for row, classes in enumerate((3, 5)):
        names = [f"c{i}" for i in range(classes)]
        pack = domain_pack(slim, row, {"name": f"d{row}", "classes": names}, "0" * 64)
        mine = probe.domains == row
        for alive in (None, slim.table.round_up(pack.switches, 1)):
            graph = pin_pack(whole, pack, slim.table, alive)
            got = run(make_ort_session(graph, needs={"image"}), {"image": probe.images[mine]})
            np.testing.assert_allclose(
                got[:, :classes], expected[mine, :classes], atol=1e-5 * scale
            )


def test_its_columns_stand_in_the_bank_once() -> None:
    net = domain_net(Recursive(), (3, 40, 7))
    slim = slim_network(net)
    wanted = [(layer, kind) for layer in ("bn", "norm") for kind in ("scale", "shift")]
    assert [(entry.layer, entry.kind) for entry in slim.entries] == wanted
    every = np.ones(net.units.table.count, dtype=bool)
    assert onnx_graph(slim, 8, 8).ByteSize() <= bytes_pricer(net).of(every)


def test_maps_and_what_is_pooled_go_through_one(tmp_path: Path) -> None:
    net = switch_off(domain_net(OfMapsAndMeans(), (3, 5)))
    slim, images = slim_network(net), torch.randn(5, 3, 8, 8)
    onnx.save(onnx_graph(slim, 8, 8), tmp_path / "model.onnx")
    assert verify_export(net, slim, tmp_path / "model.onnx", images, ["a", "b"]).worst < 1e-5
    one = switch_off(domain_net(OfMapsAndMeans(), (4,)))
    with torch.no_grad():
        expected = one.logits(images, torch.zeros(5, dtype=torch.int64))
        torch.testing.assert_close(fold_domain(slim_network(one))(images), expected)
