"""What is told where two forms of a network differ."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from prunion.exporter.graph import onnx_graph, verify_export
from prunion.exporter.slim import slim_network
from prunion.runtime.errors import VerificationError
from tests.exporter.slim.test_network import switch_off
from tests.support.networks.small import Residual, domain_net

NAMES = ["a", "b", "c"]


def told(tmp_path: Path, images: torch.Tensor, cancels: bool) -> str:
    """What is said of forms that may not differ by a bit."""
    net = switch_off(domain_net(Residual(), (3, 5, 2)))
    if cancels:
        with torch.no_grad():
            middle = net.features(images, [(1, len(images))])[0].mean(0)
            net.heads[1].bias.copy_(-net.heads[1].weight @ middle)
    slim = slim_network(net)
    onnx.save(onnx_graph(slim, 8, 8), tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match="more than 0e\\+00; nothing was written") as error:
        verify_export(net, slim, tmp_path / "model.onnx", images, NAMES, tolerance=0.0)
    return str(error.value)


def test_heads_whose_terms_cancel_are_named_with_a_way_out(tmp_path: Path) -> None:
    alike = torch.randn(1, 3, 8, 8) + 1e-3 * torch.randn(9, 3, 8, 8)
    assert "The logits of b are small differences" in told(tmp_path, alike, cancels=True)
    assert told(tmp_path, alike, cancels=False).endswith("nothing was written")


def test_a_trained_network_whose_answers_are_not_finite_is_named(tmp_path: Path) -> None:
    """The graph's smallest constants were blamed, or its classes."""
    net, images = domain_net(Residual(), (3, 5, 2)), torch.randn(6, 3, 8, 8)
    slim = slim_network(net)
    with torch.no_grad():
        net.heads[1].bias.fill_(torch.nan)
    with pytest.raises(VerificationError, match=r"domain b: .* own answers .* not finite: train"):
        verify_export(net, slim, tmp_path / "asked first", images, NAMES)
