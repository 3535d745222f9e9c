"""The table of a run file that says how the network learns."""

from __future__ import annotations

from dataclasses import dataclass

from prunion.runtime.errors import ConfigError
from prunion.trainer.config.checks import (
    check_bool,
    check_choice,
    check_int,
    check_number,
    check_text,
    shown,
)

__all__ = ["TrainConfig"]

SHARING = ("union", "intersection", "jaccard", "none")
FROZEN_LR, TUNED_LR = 1e-2, 1e-3


@dataclass(frozen=True)
class TrainConfig:
    """How the network learns: phases in epochs, batches in images, learning rates."""

    recipe: str = "prunion"
    trunk: str = "tuned"
    order: str = "joint"
    warmup: int = 2
    ramp: int = 4
    settle: int = 6
    batch_size: int = 32
    balance: float = 0.5
    lr: float | str = "auto"
    trunk_lr: float = 6e-4
    ranking: str = "importance"
    switch_travel: float = 2.0
    switch_every: int = 8
    weight_decay: float = 1e-4
    small_set_decay: float = 0.0
    label_smoothing: float = 0.0
    teacher: str = ""
    distillation: float = 0.5
    average: float = 0.0
    trunk_from: str = "start"
    sharing: str = "union"
    sharing_weight: float | str = "learned"
    domain_budget: bool | str = "auto"
    cut: str = "union"
    settle_with: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        check_choice("train", "recipe", self.recipe, ("prunion", "paper"))
        check_choice("train", "trunk", self.trunk, ("frozen", "tuned"))
        check_choice("train", "order", self.order, ("joint", "batch", "epoch"))
        for key in ("warmup", "ramp", "settle"):
            check_int("train", key, getattr(self, key), 0, 100_000)
        if not self.epochs:
            raise ConfigError("[train] warmup, ramp and settle are all 0: give at least one epoch")
        # BatchNorm's statistics of fewer than four images are noise.
        check_int("train", "batch_size", self.batch_size, 4, 65_536)
        check_number("train", "balance", self.balance, 0, 1)
        if self.lr != "auto":
            if isinstance(self.lr, str):
                raise ConfigError(
                    f'[train] lr is {shown(self.lr)}: give a number such as 1e-3, or "auto"'
                )
            check_number("train", "lr", self.lr, 0, 10, open_low=True)
        for key in ("trunk_lr", "switch_travel"):
            check_number("train", key, getattr(self, key), 0, 10, open_low=True)
        check_int("train", "switch_every", self.switch_every, 1, 1000)
        check_choice("train", "ranking", self.ranking, ("importance", "random"))
        check_number("train", "weight_decay", self.weight_decay, 0, 1)
        check_number("train", "small_set_decay", self.small_set_decay, 0, 10)
        check_number("train", "label_smoothing", self.label_smoothing, 0, 0.9)
        if self.teacher:
            check_text("train", "teacher", self.teacher)
        check_number("train", "distillation", self.distillation, 0, 1)
        check_number("train", "average", self.average, 0, 1000)
        check_choice("train", "trunk_from", self.trunk_from, ("start", "settle"))
        if self.trunk_from == "settle" and self.trunk == "frozen":
            raise ConfigError(
                '[train] trunk_from is "settle" and trunk is "frozen", which never learns: set '
                'trunk = "tuned", or leave trunk_from out'
            )
        check_choice("train", "sharing", self.sharing, SHARING)
        if self.domain_budget != "auto":
            check_bool("train", "domain_budget", self.domain_budget)
        check_choice("train", "cut", self.cut, ("union", "domains"))
        check_choice("train", "settle_with", self.settle_with, ("auto", "union", "own"))
        if self.settle_with == "union" and self.cut == "domains":
            raise ConfigError(
                '[train] settle_with is "union" and cut is "domains": what a domain was cut from '
                'would come back; set settle_with = "own"'
            )
        if isinstance(self.sharing_weight, str):
            check_choice("train", "sharing_weight", self.sharing_weight, ("learned",))
        else:
            check_number("train", "sharing_weight", self.sharing_weight, 0, 1e6)
        check_choice("train", "precision", self.precision, ("fp32", "bf16"))
        check_bool("train", "compile", self.compile)
        check_int("train", "workers", self.workers, 0, 256)

    @property
    def own_lr(self) -> float:
        """Learning rate of what each domain has for itself, its BatchNorms and its head.

        By default ten times higher where the trunk is frozen: nothing else can adapt.
        """
        if isinstance(self.lr, str):
            return FROZEN_LR if self.trunk == "frozen" else TUNED_LR
        return self.lr

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return self.warmup + self.ramp + self.settle
