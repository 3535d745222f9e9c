"""The run file that `prunion init` writes, with the keys that one changes first."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from prunion.runtime.base import shown
from prunion.runtime.errors import DataError, printable
from prunion.trainer.config.file import toml_key, toml_text

__all__ = ["foreign_to_init", "run_file_text"]

HEAD = "# Written by `prunion init`"
SUM = "\n# Tells `prunion init --force` whether anything above was edited: "
HOLDOUT = 0.2
TEXT = """\
{head} for {data}: `prunion train {file}` trains it. docs/run-file.md has every key.
seed = 0

[backbone]
source = "torchvision"           # torchvision | timm | python (a function of yours)
name = "resnet18"
weights = "default"              # the library's download, "none", or a local file
# cut = "layer3"                 # keep the network up to this module

[input]
size = 64                        # pixels that the network sees: larger is slower and sees more

[budget]
kind = "params"                  # params | macs | bytes | switches | latency
limit = 0.5                      # share of the backbone's, or an amount: "1.2M"

[train]
warmup = 2                       # epochs of each phase
ramp = 4
settle = 6
batch_size = 32                  # images per domain and step
"""


def run_file_text(data: Path, file: Path, domains: Mapping[str, Mapping[str, Path]]) -> str:
    """The run file's TOML, its paths relative to where it will lie.

    Raises DataError for a path that a run file cannot hold.
    """
    text = TEXT.format(head=HEAD, data=shown(str(data)), file=printable(file.name))
    for name, parts in domains.items():
        text += f"\n[{toml_key('domains', name)}]\n"
        for part, path in parts.items():
            beside = _beside(path, file)
            if printable(beside) != beside:
                raise DataError(
                    f"{shown(beside)} has control characters in its name, or is no UTF-8: rename it"
                )
            text += f"{part} = {toml_text(beside)}\n"
        if "test" not in parts:
            text += f"holdout = {HOLDOUT}                    # of the training images, to test on\n"
        text += "mirror = false                   # true where left and right mean the same\n"
    return f"{text}{SUM}{_sum(text)}\n"


def foreign_to_init(path: Path) -> str:
    """What in a file `prunion init` did not write, which `--force` must leave; "" if nothing."""
    text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
    if not text.startswith(HEAD):
        return "was not written by `prunion init`"
    written, _, digest = text.rpartition(SUM)
    return "" if digest.strip() == _sum(written) else "was edited since `prunion init` wrote it"


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _beside(path: Path, file: Path) -> str:
    whole = path.parent.resolve() / path.name  # a link's own name, as a run file has it
    try:
        return Path(os.path.relpath(whole, file.absolute().parent.resolve())).as_posix()
    except ValueError:  # on another drive
        return whole.as_posix()
