"""INT8 is calibrated and tested on the images that the run had, or the user is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prunion.exporter.graph.variants.int8 import int8_graph, open_trained
from prunion.exporter.options import ExportOptions
from prunion.runtime.errors import DataError
from prunion.trainer.network import load_checkpoint


def test_images_of_other_classes_than_the_network_learned_are_refused(tiny: Path) -> None:
    """Their labels are other places: accuracy before and after was chance, and no drop showed."""
    loaded = load_checkpoint(tiny)
    (first, second), meta = loaded.meta["domains"], loaded.meta
    entry = {**first, "classes": ["green", "grey"]}  # "red" is "grey" no more
    changed = replace(loaded, meta={**meta, "domains": [entry, second]})
    told = r"\[domains.warm\] has other classes than the network learned \('grey' among"
    with pytest.raises(DataError, match=told):
        int8_graph(tiny / "no.onnx", changed, ExportOptions(int8=True))
    assert [domain.name for domain in open_trained(loaded, ["cold"])] == ["cold"]


def test_images_that_changed_since_the_run_are_told(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A held-out share of other images is another share: the network has seen some of it."""
    loaded = load_checkpoint(tiny)
    (first, second), meta = loaded.meta["domains"], loaded.meta
    assert [d.name for d in open_trained(loaded, ["warm", "cold"])] == ["warm", "cold"]
    assert not caplog.records
    kind = first["digests"]["test"].rpartition(":")[0]
    entry = {**first, "digests": {**first["digests"], "test": f"{kind}:{'0' * 64}"}}
    open_trained(replace(loaded, meta={**meta, "domains": [entry, second]}), ["warm", "cold"])
    (record,) = caplog.records
    assert "[domains.warm] has other test images than when the run read them" in record.message
