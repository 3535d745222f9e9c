"""What the Visual Decathlon and ImageNet-to-Sketch count a domain's accuracy against.

The Decathlon is from Rebuffi, Bilen and Vedaldi 2017, "Learning multiple visual domains with
residual adapters", arXiv:1705.08045; ImageNet-to-Sketch from Mallya, Davis and Lazebnik 2018,
"Piggyback", arXiv:1801.06519. The baselines of S_E (eq. 13) are as printed in dos Santos, Berriel,
Oliveira-Santos, Sebe and Almeida 2023, "Budget-Aware Pruning", arXiv:2309.11464.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BENCHMARKS", "DECATHLON", "IMAGENET_TO_SKETCH", "Benchmark", "BenchmarkDomain"]


@dataclass(frozen=True)
class BenchmarkDomain:
    """One column of a benchmark's table.

    Attributes:
        name: the data set's name in the benchmark's own files.
        short: how the papers' tables head its column.
        reference: accuracy in percent of a network finetuned on this domain alone; twice its
            error is the largest error that still earns points.
    """

    name: str
    short: str
    reference: float


@dataclass(frozen=True)
class Benchmark:
    """Domains in the order of the papers' tables, and the baseline of S_E.

    Attributes:
        baseline: S of the frozen feature extractor as the paper prints it; its cost is 1, so it
            is its S_O and S_P too (eq. 13).
    """

    name: str
    title: str
    domains: tuple[BenchmarkDomain, ...]
    baseline: float


# References: Rebuffi et al., the fully finetuned networks, test split.
DECATHLON = Benchmark(
    "decathlon",
    "Visual Decathlon",
    (
        BenchmarkDomain("imagenet12", "ImNet", 59.87),
        BenchmarkDomain("aircraft", "Airc", 60.34),
        BenchmarkDomain("cifar100", "C100", 82.12),
        BenchmarkDomain("daimlerpedcls", "DPed", 92.82),
        BenchmarkDomain("dtd", "DTD", 55.53),
        BenchmarkDomain("gtsrb", "GTSR", 97.53),
        BenchmarkDomain("vgg-flowers", "Flwr", 81.41),
        BenchmarkDomain("omniglot", "Oglt", 87.69),
        BenchmarkDomain("svhn", "SVHN", 96.55),
        BenchmarkDomain("ucf101", "UCF", 51.20),
    ),
    baseline=544.0,
)

# References: Mallya et al., ResNet-50. The formula gives the feature extractor's row 280;
# the paper prints 533 and divides by it.
IMAGENET_TO_SKETCH = Benchmark(
    "imagenet-to-sketch",
    "ImageNet-to-Sketch",
    (
        BenchmarkDomain("imagenet", "ImNet", 76.16),
        BenchmarkDomain("cubs", "CUBS", 82.83),
        BenchmarkDomain("cars", "Cars", 91.83),
        BenchmarkDomain("flowers", "Flwr", 96.56),
        BenchmarkDomain("wikiart", "WikiArt", 75.60),
        BenchmarkDomain("sketches", "Sketches", 80.78),
    ),
    baseline=533.0,
)

BENCHMARKS = {b.name: b for b in (DECATHLON, IMAGENET_TO_SKETCH)}
