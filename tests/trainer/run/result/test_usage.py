"""Sparsity per layer and the matrix of shared channels."""

from __future__ import annotations

import numpy as np

from prunion.trainer.run.result.usage import (
    layer_sparsity,
    sharing_lines,
    sharing_matrix,
    sparsity_lines,
)
from tests.support.networks.small import Residual, domain_net


def test_sparsity_counts_the_filters_that_nobody_uses() -> None:
    table = domain_net(Residual()).units.table
    alive = np.ones(table.count, bool)
    assert set(layer_sparsity(table, alive).values()) == {0.0}
    alive[table.slots["conv2.weight", 0][:2]] = False  # two of eight
    alive[table.slots["conv1.weight", 0][:3]] = False  # three of six, conv3's as well
    sparsity = layer_sparsity(table, alive)
    assert sparsity == {"conv1": 0.5, "conv2": 0.25, "conv3": 0.5}
    head, layers = sparsity_lines(sparsity)
    assert head == "unused filters, 41.7% a layer:"
    assert layers == "  conv1 50%, conv2 25%, conv3 50%"


def test_the_matrix_tells_whose_channels_others_use() -> None:
    switches = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    matrix = sharing_matrix(switches)
    assert matrix.tolist() == [[1, 0.5, 0], [1, 1, 0], [0, 0, 0]]
    lines = sharing_lines(["flowers", "signs", "none"], matrix)
    assert lines[1].split() == ["1", "flowers", "100%", "50%", "0%"]
    assert len({len(line.removesuffix("  chose")) for line in lines}) == 1
