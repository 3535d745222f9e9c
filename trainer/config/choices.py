"""What a run file may say where it names one of a few things.

`typing.get_args` of each gives the words in the order in which an error message lists them.
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "Auto",
    "BackboneSource",
    "BudgetKind",
    "CutFor",
    "Device",
    "DomainSource",
    "Learned",
    "Phase",
    "Precision",
    "Ranking",
    "RecipeName",
    "SettleWith",
    "Sharing",
    "SharingLoss",
    "StepOrder",
    "Trunk",
    "TrunkFrom",
    "WeightMatch",
]

Auto = Literal["auto"]
Device = Literal["auto", "cpu", "cuda"]

BackboneSource = Literal["torchvision", "timm", "prunion"]
WeightMatch = Literal["name", "order"]  # how a file's tensors find the network's
DomainSource = Literal["files", "torchvision", "huggingface"]

BudgetKind = Literal["params", "macs", "bytes", "switches", "latency"]

RecipeName = Literal["prunion", "paper"]
Phase = Literal["warmup", "ramp", "settle"]
StepOrder = Literal["joint", "batch", "epoch"]  # which domains share a step
Trunk = Literal["frozen", "tuned"]
TrunkFrom = Literal["start", "settle"]
Ranking = Literal["importance", "random"]
Precision = Literal["fp32", "bf16"]

SharingLoss = Literal["union", "intersection", "jaccard"]
Sharing = Literal[SharingLoss, "none"]
Learned = Literal["learned"]  # a weight λ that dual ascent finds
CutFor = Literal["union", "domains"]  # what is brought within the budget in the end
SettleWith = Literal["auto", "union", "own"]
