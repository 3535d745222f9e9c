"""The table of a run file that says how the network learns.

Its recipe "paper" and eq. 4 are those of dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida
2023, "Budget-Aware Pruning: Handling Multiple Domains with Less Parameters", arXiv:2309.11464.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from prunion.runtime.errors import ConfigError
from prunion.trainer.config.augment import AugmentConfig, as_augment
from prunion.trainer.config.checks import (
    Auto,
    CutFor,
    HeadOptimiser,
    HeadStart,
    Learned,
    Placement,
    Precision,
    RampShape,
    RankingKey,
    RecipeName,
    SettleWith,
    Sharing,
    StepOrder,
    Trunk,
    TrunkFrom,
    TrunkOptimiser,
    check_bool,
    check_choice,
    check_choices,
    check_epochs,
    check_int,
    check_number,
    check_rate,
    check_text,
)
from prunion.trainer.config.known_keys import ignored, misplaced
from prunion.trainer.config.method import (
    AffineForm,
    AffineNumbers,
    Granularity,
    MaskGradient,
    Method,
    MethodTraits,
    Norms,
    Number,
    Sites,
    Stages,
    TaskOrder,
    check_settings,
    contradiction,
    method_traits,
)

__all__ = ["TrainConfig"]

FROZEN_LR, TUNED_LR = 1e-2, 1e-3
NO_AUGMENT = AugmentConfig()
SWITCH_LR, SGD_LR = 1e-4, 1e-3  # the paper's, of switches and of classifiers


@dataclass(frozen=True)
class TrainConfig:
    """How the network learns: phases in epochs, batches in images, learning rates.

    `docs/run-file.md` tells what each key does.

    Attributes:
        method: what a domain has of its own; it may decide about the trunk and sharing (`traits`).
        norms: whether BatchNorm is each domain's own, or the backbone's for all (`freezes_norms`).
        affine: form of the method "affine"; the keys below it are other methods' (`METHOD_KEYS`).
        own_epochs: epochs after settling in which each domain learns which of the kept channels it
            can do without, where the budget has an `own` limit; 0: it is thinned at the cut.
        ramp_shape: how what is allowed falls to the limit: by equal steps or equal shares.
        drops: epochs after which every learning rate is divided by ten, in place of a cosine.
        switch_lr: of the paper's recipe's switches, and of masks.
        head_start: heads start fitted to the backbone, or at random (`fits_heads`).
        trunk_optimiser: of a tuned trunk's weights; biases and depthwise layers have AdamW.
        head_optimiser, head_lr: of the heads; `lr` is then BatchNorm's alone.
        order: which domains share a step: all, or one at a time by batch, by epoch, or by a pass
            over its images.
        accumulate: parts of a step that are computed one after the other, for less memory.
        placement: what each of several processes has: a slice of every batch, or whole domains.
        sync_norms: whether BatchNorm's statistics are those of all slices, or each process's own.
        sharing, sharing_weight: the loss that makes domains agree on channels, and its λ.
        domain_budget: whether each domain alone has a budget loss too (`Pressure.holds_domains`).
        ranking: what orders channels before the ramp; "auto" is the budget's (`RunConfig`).
        cut: what is brought within the budget in the end: the union, or each domain alone.
        settle_with: the channels that a domain settles with (`opens`).
        augment: how training changes images, of domains that do not say so themselves.
    """

    recipe: RecipeName = "prunion"
    trunk: Trunk = "tuned"
    order: StepOrder = "joint"
    accumulate: int = 1
    placement: Placement = "images"
    sync_norms: bool = True
    warmup: int = 2
    ramp: int = 4
    settle: int = 6
    ramp_shape: RampShape = "auto"
    own_epochs: int = 0
    batch_size: int = 32
    balance: float = 0.5
    lr: float | Auto = "auto"
    trunk_lr: float = 6e-4
    trunk_optimiser: TrunkOptimiser = "muon"
    ranking: RankingKey = "auto"
    switch_travel: float = 2.0
    switch_every: int = 8
    weight_decay: float = 1e-4
    small_set_decay: float = 0.0
    label_smoothing: float = 0.0
    teacher: str = ""
    distillation: float = 0.5
    average: float = 0.0
    trunk_from: TrunkFrom = "start"
    sharing: Sharing = "union"
    sharing_weight: float | Learned = "learned"
    domain_budget: bool | Auto = "auto"
    cut: CutFor = "union"
    settle_with: SettleWith = "auto"
    precision: Precision = "fp32"
    compile: bool = False
    workers: int = 0
    drops: tuple[int, ...] | Auto = "auto"
    switch_lr: float = SWITCH_LR
    head_start: HeadStart = "auto"
    head_optimiser: HeadOptimiser = "adamw"
    head_lr: float | Auto = "auto"
    method: Method = "bap"
    norms: Norms = "auto"
    affine: AffineForm = "full"
    affine_numbers: AffineNumbers = "layer"
    affine_gradient: MaskGradient = "identity"
    affine_k0: Number = "auto"
    affine_k1: Number = "auto"
    affine_k2: Number = "auto"
    affine_k3: Number = "auto"
    granularity: Granularity = "channel"
    adapters: Stages = "all"
    sites: Sites = "both"
    adapter_dropout: float = 0.0
    adapter_decay: float | Auto = "auto"
    adapter_lr: float | Auto = "auto"
    svd_share: float = 0.5
    rank: int = 4
    adapter_rank: int = 0
    taps_lambda: float = 0.25
    packnet_prune: float = 0.75
    packnet_source: float = 0.5
    packnet_order: TaskOrder = "given"
    augment: AugmentConfig = NO_AUGMENT

    def __post_init__(self) -> None:
        self._check_values()
        # Only then what keys say together: a rule looks at values of the right type alone.
        self._apply_method()
        self._check_rules()

    def _check_values(self) -> None:
        """Every key for itself."""
        check_choices(vars(self))
        check_settings(vars(self))
        check_int("train", "accumulate", self.accumulate, 1, 1024)
        for key in ("warmup", "ramp", "settle", "own_epochs"):
            check_int("train", key, getattr(self, key), 0, 100_000)
        # BatchNorm's statistics of fewer than four images are noise.
        check_int("train", "batch_size", self.batch_size, 4, 65_536)
        check_number("train", "balance", self.balance, 0, 1)
        for key in ("lr", "head_lr"):
            check_rate(key, getattr(self, key), 10)
        for key in ("trunk_lr", "switch_travel", "switch_lr"):
            check_number("train", key, getattr(self, key), 0, 10, open_low=True)
        check_int("train", "switch_every", self.switch_every, 1, 1000)
        check_number("train", "weight_decay", self.weight_decay, 0, 1)
        check_number("train", "small_set_decay", self.small_set_decay, 0, 10)
        check_number("train", "label_smoothing", self.label_smoothing, 0, 0.9)
        check_text("train", "teacher", self.teacher, empty=self.teacher == "")
        check_number("train", "distillation", self.distillation, 0, 1)
        check_number("train", "average", self.average, 0, 1000)
        if self.domain_budget != "auto":
            check_bool("train", "domain_budget", self.domain_budget)
        if isinstance(self.sharing_weight, str):
            check_choice("train", "sharing_weight", self.sharing_weight, get_args(Learned))
        else:
            check_number("train", "sharing_weight", self.sharing_weight, 0, 1e6)
        if self.drops != "auto":
            last = max(1, self.epochs - 1)
            object.__setattr__(self, "drops", check_epochs("train", "drops", self.drops, last))
        object.__setattr__(self, "augment", as_augment("train", self.augment))
        check_bool("train", "compile", self.compile)
        check_bool("train", "sync_norms", self.sync_norms)
        check_int("train", "workers", self.workers, 0, 256)

    def _apply_method(self) -> None:
        """Set what the method decides; what contradicts it is refused."""
        method, traits = self.method, self.traits
        if wrong := misplaced(vars(self)):
            raise ConfigError(f"[train] {wrong}")
        if wrong := contradiction(traits, vars(self)):
            raise ConfigError(f"[train] {wrong}: remove one of the two")
        if traits.by_turns and self.order == "joint":
            object.__setattr__(self, "order", "tasks")
        if traits.trunk:
            object.__setattr__(self, "trunk", traits.trunk)
        if method == "ba2":
            object.__setattr__(self, "sharing", "none")
            object.__setattr__(self, "cut", "domains")

    def _check_rules(self) -> None:
        """What keys may not say together, whatever the method."""
        if not self.epochs:
            raise ConfigError("[train] warmup, ramp and settle are all 0: give at least one epoch")
        paper = self.recipe == "paper"
        for key, default, used, also in (
            ("drops", "auto", paper or not self.traits.prunes, " and methods that cut no channels"),
            ("switch_lr", SWITCH_LR, paper or self.traits.masks, " and masks"),
        ):
            if getattr(self, key) != default and not used:
                raise ConfigError(
                    f'[train] {key} is for recipe = "paper"{also}, this is "{self.recipe}": '
                    "remove it"
                )
        if self.recipe == "greedy" and self.ranking == "random":
            raise ConfigError(
                '[train] ranking is "random" and recipe is "greedy", which ranks by what it '
                'measures along the ramp: set recipe = "once", or another ranking'
            )
        if self.trunk_from == "settle" and self.trunk == "frozen":
            raise ConfigError(
                '[train] trunk_from is "settle" and trunk is "frozen", which never learns: set '
                'trunk = "tuned", or leave trunk_from out'
            )
        if self.settle_with == "union" and self.cut == "domains":
            raise ConfigError(
                '[train] settle_with is "union" and cut is "domains": what a domain was cut from '
                'would come back; set settle_with = "own"'
            )

    @property
    def traits(self) -> MethodTraits:
        """What the method means for a run."""
        return method_traits(vars(self))

    def without_thinning(self) -> TrainConfig:
        """The same for a run whose domains are not thinned after settling."""
        return replace(self, own_epochs=0, **ignored({**vars(self), "own_epochs": 0}))

    @property
    def freezes_norms(self) -> bool:
        """Whether BatchNorm stays the backbone's, statistics included."""
        return self.norms == "frozen" or (self.norms == "auto" and not self.traits.own_norms)

    @property
    def fits_heads(self) -> bool:
        """Whether heads start fitted to the backbone: by default all but the paper's recipe's."""
        return self.head_start == "fitted" or (self.head_start == "auto" and self.recipe != "paper")

    @property
    def own_head_lr(self) -> float:
        """Learning rate of the heads: by default `own_lr`, and the paper's where SGD moves them."""
        if isinstance(self.head_lr, str):
            return SGD_LR if self.head_optimiser == "sgd" else self.own_lr
        return self.head_lr

    @property
    def own_adapter_lr(self) -> float:
        """Learning rate of what a method with own weights learns, by default `METHODS` has it."""
        return self.traits.adapter_lr if isinstance(self.adapter_lr, str) else self.adapter_lr

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
