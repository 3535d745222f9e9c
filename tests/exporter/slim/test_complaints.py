"""What users of other pruning libraries complain about; each is a test here.

The threads are those of microsoft/nni, VainF/Torch-Pruning, openvinotoolkit/nncf,
IntelLabs/distiller, alibaba/TinyNeuralNetwork, jacobgil/pytorch-pruning and others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from prunion.exporter.counts import recount
from prunion.exporter.graph import onnx_graph, verify_export
from prunion.exporter.slim import SlimNet, load_slim, save_slim, slim_network
from prunion.trainer.backbone import trace
from prunion.trainer.network import Checkpoint, DomainNet, load_checkpoint
from tests.exporter.slim.test_network import (
    Grouped,
    Plain,
    Residual,
    ZeroConcat,
    ZeroPad,
    switch_off,
)
from tests.support.networks.small import Depthwise, SqueezeExcite, domain_net

pytestmark = pytest.mark.thorough


def agrees(net: DomainNet, folder: Path) -> SlimNet:
    """Slice, export and compare the three forms; returns the sliced network."""
    slim = slim_network(net)
    onnx.save(onnx_graph(slim, 8, 8), folder / "model.onnx")
    names = [f"d{i}" for i in range(len(net.classes))]
    images = torch.randn(3 * len(names), 3, 8, 8)
    assert verify_export(net, slim, folder / "model.onnx", images, names).worst < 1e-5
    return slim


def width(slim: SlimNet, name: str) -> int:
    return slim.trunk.get_parameter(f"{name}.weight").shape[0]


def test_masked_is_removed_even_when_batchnorm_would_revive_the_channel(tmp_path: Path) -> None:
    """nni#2130, #3848, filter-pruning-geometric-median#27: a masked conv output, a BN shift."""
    net = domain_net(Plain(), (3, 4))
    with torch.no_grad():
        for norm in net.norms.values():
            norm.bias.fill_(5.0)
    net.switches[:, ::2] = 0
    slim = agrees(net, tmp_path)
    assert width(slim, "conv1") == 3 and width(slim, "conv2") == 4


@pytest.mark.parametrize("model", [Residual, ZeroPad, ZeroConcat])
def test_residual_branches_keep_the_same_channels(model: type[nn.Module], tmp_path: Path) -> None:
    """nni#5150, #5736, TinyNeuralNetwork#72: widths that no longer add up, padded shortcuts."""
    agrees(switch_off(domain_net(model(), (3, 4))), tmp_path)


def test_a_multiplication_by_a_gate_keeps_the_same_channels(tmp_path: Path) -> None:
    """nni#4540: squeeze-and-excite."""
    slim = agrees(switch_off(domain_net(SqueezeExcite(), (3, 4))), tmp_path)
    assert width(slim, "conv") == width(slim, "up") < 8


def test_groups_stay_balanced(tmp_path: Path) -> None:
    """nni#4648, #4864: groups left with different widths."""
    slim = agrees(switch_off(domain_net(Grouped(), (3, 4))), tmp_path)
    conv = next(n for n in slim.trunk.graph.nodes if str(n.target).endswith("conv2.weight"))
    (user,) = conv.users
    assert user.args[6] == 2 and width(slim, "conv2") % 2 == 0


def test_a_depthwise_convolution_has_a_group_for_each_channel_left(tmp_path: Path) -> None:
    slim = agrees(switch_off(domain_net(Depthwise(), (3, 4))), tmp_path)
    assert width(slim, "depth") == width(slim, "expand") < 12


def test_one_channel_is_not_mistaken_for_depthwise(tmp_path: Path) -> None:
    """Torch-Pruning#9, #179: out_channels == 1, and in_channels / groups == 1 with one group."""

    class OneChannel(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze, self.bn3 = nn.Conv2d(8, 1, 1, bias=False), nn.BatchNorm2d(1)
            self.widen, self.bn4 = nn.Conv2d(1, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn1(self.conv1(x)).relu()
            x = self.bn2(self.conv2(x)).relu()
            x = self.bn3(self.squeeze(x)).relu()
            return self.bn4(self.widen(x)).relu().mean((2, 3))

    net = domain_net(OneChannel(), (3, 4))
    slots = net.units.table.slots
    (one,) = slots["squeeze.weight", 0]
    assert one not in slots["widen.weight", 0]
    for unit in slots["widen.weight", 0][:2]:
        net.switches[:, unit] = 0
    slim = agrees(net, tmp_path)
    assert width(slim, "squeeze") == 1 and width(slim, "widen") == 3


def test_the_onnx_file_has_the_new_sizes(tmp_path: Path) -> None:
    """nncf#1038, #1057, mmdeploy#666, YOLOX: the exported graph kept the old widths."""
    net = switch_off(domain_net(Residual(), (3, 4)))
    before = {name: p.clone() for name, p in net.state_dict().items()}
    slim = agrees(net, tmp_path)
    values = {
        i.name: numpy_helper.to_array(i)
        for i in onnx.load(tmp_path / "model.onnx").graph.initializer
    }
    for name, parameter in slim.trunk.named_parameters():
        assert values[name].shape == parameter.shape
    assert values["conv1.weight"].shape[0] < 6
    after = net.state_dict()  # nncf PR 1405: exporting must not change the model
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_pruned_model_reloads_in_a_fresh_process_and_trains(tiny: Path, tmp_path: Path) -> None:
    """pytorch-pruning#26, Torch-Pruning#65, SNIP-it#6: no class to import, no pickle, right sizes.

    nni#3553, #5679: and what was removed stays removed when it is trained further.
    """
    import subprocess
    import sys

    loaded: Checkpoint = load_checkpoint(tiny)
    slim = slim_network(loaded.net)
    alive = (loaded.net.switches > 0).any(0).numpy()
    save_slim(tmp_path / "slim", slim, loaded, alive)
    image = torch.randn(2, 3, 16, 16)
    np.save(tmp_path / "image.npy", image.numpy())
    code = (
        "import sys, numpy, torch\n"
        "from prunion.exporter.slim.files import load_slim\n"
        "slim = load_slim(sys.argv[1] + '/slim')\n"
        "image = torch.from_numpy(numpy.load(sys.argv[1] + '/image.npy'))\n"
        "with torch.no_grad(): logits = slim.logits(image, torch.tensor([0, 1]))\n"
        "numpy.save(sys.argv[1] + '/logits.npy', logits.numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    with torch.no_grad():
        expected = slim.logits(image, torch.tensor([0, 1])).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected)
    again = load_slim(tmp_path / "slim")
    weights = list(again.trunk.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    logits = again.logits(image, torch.tensor([0, 1]))
    logits[torch.isfinite(logits)].square().sum().backward()
    assert all(w.grad is not None and w.grad.shape == w.shape for w in weights)


@pytest.mark.parametrize("multiple", [2, 4])
def test_widths_are_multiples_so_that_fewer_channels_are_not_slower(
    multiple: int, tmp_path: Path
) -> None:
    """Torch-Pruning#38, nni#5248, TinyNeuralNetwork#196."""
    net = switch_off(domain_net(Residual(), (3, 4)))
    union = (net.switches > 0).any(0).numpy()
    alive = net.units.table.round_up(union, multiple)
    slim = slim_network(net, alive)
    for name, full in (("conv1", 6), ("conv2", 8)):
        assert width(slim, name) % multiple == 0 or width(slim, name) == full
    images, domains = torch.randn(6, 3, 8, 8), torch.arange(6) % 2
    with torch.no_grad():
        expected, got = net.logits(images, domains), slim.logits(images, domains)
    finite = torch.isfinite(expected)
    assert torch.allclose(got[finite], expected[finite], rtol=1e-4, atol=1e-5)


def test_what_was_cut_is_not_computed_either(tmp_path: Path) -> None:
    """Torch-Pruning#149, #382, TensorRT#3884, pytorch_model_prune#5: fewer weights, no fewer MACs.

    Counted from the file: nothing is padded back to its old width around a residual block.
    """
    net = switch_off(domain_net(ZeroPad(), (3, 4)))
    agrees(net, tmp_path)
    counted = recount(onnx.load(tmp_path / "model.onnx"))
    table, alive = net.units.table, (net.switches > 0).any(0).numpy()
    assert sum(counted.macs.values()) == table.macs(alive) < table.macs(np.ones_like(alive))
    assert counted.params == table.params(alive) < table.params(np.ones_like(alive))


def test_protected_layers_and_the_heads_keep_their_width(tmp_path: Path) -> None:
    """Model-Optimizer#176, Torch-Pruning#451: the classifier was pruned by accident."""
    torch.manual_seed(0)
    net = DomainNet(trace(Residual(), 8, 8), (3, 4), keep=("conv2",)).eval()
    net.switches.zero_()
    net.switches[:, ::2] = 1
    slim = agrees(net, tmp_path)
    assert width(slim, "conv2") == 8 and width(slim, "conv1") == 3
    graph = onnx.load(tmp_path / "model.onnx").graph
    heads = next(numpy_helper.to_array(i) for i in graph.initializer if i.name == "head_weight")
    assert heads.shape == (2, 3, 4), "domains, features left, the classes of the larger domain"


def test_the_switches_are_saved_with_the_model(tiny: Path) -> None:
    """Torch-Pruning#428: save and load the masks."""
    once, again = load_checkpoint(tiny), load_checkpoint(tiny)
    assert 0 < once.net.switches.sum() < once.net.switches.numel()
    assert torch.equal(once.net.switches, again.net.switches)
