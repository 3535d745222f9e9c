"""A budget in bytes is kept by the file itself, and the manifest tells the file's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prunion.exporter.bundle import export_bundle
from prunion.exporter.graph import onnx_graph
from prunion.exporter.slim import slim_network
from prunion.exporter.verify import verify_bundle
from prunion.trainer.config import BudgetConfig, load_config
from prunion.trainer.cost import make_budget
from prunion.trainer.cost.counted import bytes_pricer
from prunion.trainer.network import DomainNet
from prunion.trainer.run import train_run
from tests.support.networks.small import Depthwise, Plain, Residual, SqueezeExcite, domain_net
from tests.support.tiny_run import tiny_run

pytestmark = pytest.mark.thorough


def random_union(net: DomainNet, share: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    alive = generator.random(net.units.table.count) < share
    for members in net.units.table.widths:
        alive[members[0]] = True
    net.switches.copy_(torch.from_numpy(alive).float().repeat(len(net.classes), 1))
    return alive


class Positions(Plain):
    """Large tables that are no parameters, as fixed positions are: of all channels and of one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.randn(1, 6, 32, 32))
        self.register_buffer("shade", torch.randn(1, 1, 32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.interpolate(self.bn1(self.conv1(x)).relu(), size=(32, 32))
        x = x + self.get_buffer("place") + self.get_buffer("shade")
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


MODELS = [
    Residual,
    Positions,
    SqueezeExcite,
    pytest.param(Plain, marks=pytest.mark.slow),
    pytest.param(Depthwise, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("model", MODELS)
def test_the_bound_holds_and_is_close(model: type[torch.nn.Module]) -> None:
    net = domain_net(model(), (3, 40, 7))
    pricer = bytes_pricer(net)
    for share, seed in ((1.0, 0), (0.4, 1)):
        alive = random_union(net, share, seed)
        size = onnx_graph(slim_network(net), 8, 8).ByteSize()
        assert size <= pricer.of(alive) <= size + 6000


@pytest.mark.parametrize("model", MODELS)
def test_a_share_is_of_no_more_than_the_whole_file(model: type[torch.nn.Module]) -> None:
    net = domain_net(model(), (3, 40, 7))
    budget = make_budget(BudgetConfig(1.0, "bytes"), bytes_pricer(net))
    net.switches.fill_(1)
    size = onnx_graph(slim_network(net), 8, 8).ByteSize()
    assert budget.pricer.backbone <= size <= budget.full == budget.allowed


@pytest.mark.parametrize(("kind", "limit"), [("bytes", "0.45"), ("bytes", '"150k"')])
def test_a_run_keeps_its_budget_of_bytes(kind: str, limit: str, tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path, warmup=0, ramp=1, settle=0)
    text = run_file.read_text("utf-8")
    text = text.replace('kind = "params"\nlimit = 0.5', f'kind = "{kind}"\nlimit = {limit}')
    run_file.write_text(text, "utf-8")
    result = train_run(load_config(run_file), tmp_path / "out", run_file=run_file)
    assert result.budget["met"]
    manifest = export_bundle(tmp_path / "out", tmp_path / "m.prunion")
    size = (tmp_path / "m.prunion" / "model.onnx").stat().st_size
    budget = manifest["budget"]
    assert budget["kind"] == "bytes"
    assert not verify_bundle(tmp_path / "m.prunion").problems
    if limit.startswith('"'):
        assert budget["value"] == size <= 150_000
    else:
        full = result.budget["value"]  # a share as well, of the same backbone
        assert budget["value"] <= full <= 0.45
