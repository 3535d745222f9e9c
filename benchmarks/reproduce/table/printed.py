"""The rows that the papers print of the Visual Decathlon and of ImageNet-to-Sketch, as data.

Figures are as printed, misprints too; `misprint` says which do not follow from their own row.
From:

- BAP: dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida 2023, "Budget-Aware Pruning: Handling
  Multiple Domains with Less Parameters", arXiv:2309.11464, Tables 2 and 3;
- affine: Mancini, Ricci, Caputo and Rota Bulò 2020, "Boosting binary masks for multi-domain
  learning through affine transformations", arXiv:2103.13894, Tables 1 to 4;
- adapters: Rebuffi, Bilen and Vedaldi 2018, "Efficient parametrization of multi-domain deep neural
  networks", arXiv:1803.10082, Table 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from prunion.trainer.score import DECATHLON, IMAGENET_TO_SKETCH, Benchmark

__all__ = ["PRINTED", "REFERENCES", "PrintedRow", "printed_beside"]


@dataclass(frozen=True)
class PrintedRow:
    """One row of a paper's table; None where it prints nothing.

    Attributes:
        benchmark, network: what it was measured on.
        source: paper and table.
        title: how the table heads it.
        row: the row of ours that does the same, "" if none does.
        flop, params: as multiples of the backbone's.
        accuracy: percent for each domain, in the benchmark's order.
        s, s_o, s_p, s_e: the scores.
        misprint: which figure cannot be right, and why.
    """

    benchmark: str
    network: str
    source: str
    title: str
    row: str
    flop: float | None
    params: float | None
    accuracy: tuple[float, ...]
    s: float
    s_o: float | None = None
    s_p: float | None = None
    s_e: float | None = None
    misprint: str = ""


# Title | our row | FLOP params | accuracies | S, then S_O S_P S_E where they are printed.
BAP_DECATHLON = """
Feature | feature | 1.000 1.00 | 59.7 23.3 63.1 80.3 45.4 68.2 73.7 58.8 43.5 26.8 | 544 544 544 1
Finetune | finetune | 1.000 10.0 | 59.9 60.3 82.1 92.8 55.5 97.5 81.4 87.7 96.6 51.2 | 2500 2500 250 2.11
TAPS λ=0.25 | taps-025 | 1.004 5.68 | 63.5 50.3 83.7 94.1 60.1 8.7 86.6 88.5 96.6 50.2 | 3113 3101 548 5.74
TAPS λ=0.50 | taps-050 | 1.003 5.10 | 63.5 50.8 83.5 94.9 59.8 97.2 87.1 88.1 96.6 50.5 | 2821 2813 553 5.26
TAPS λ=0.75 | taps-075 | 1.003 4.44 | 63.5 48.2 83.4 94.1 61.5 98.2 87.2 87.7 96.3 51.9 | 2919 2910 657 6.46
TAPS λ=1.00 | taps-100 | 1.002 3.78 | 63.5 49.9 83.3 93.8 59.1 98.3 86.3 87.7 96.2 50.5 | 2862 2856 757 7.30
BA² β=1.00 | ba2-slice-100 | 0.646 1.03 | 56.9 49.9 78.1 95.5 55.1 99.4 86.1 88.7 96.9 50.2 | 3199 4952 3106 51.97
BA² β=0.75 | ba2-slice-075 | 0.612 1.03 | 56.9 47.0 78.4 95.3 55.0 99.2 85.6 88.8 96.8 48.7 | 3063 5005 2974 50.30
BA² β=0.50 | ba2-slice-050 | 0.543 1.03 | 56.9 45.7 76.6 95.0 55.2 99.4 83.3 88.9 96.9 46.8 | 2999 5523 2912 54.35
BA² β=0.25 | ba2-slice-025 | 0.325 1.03 | 56.9 42.2 71.0 93.4 52.4 99.1 82.0 88.5 96.9 43.9 | 2538 7809 2464 65.02
BAP β=1.00 | bap-slice-100 | 0.581 1.03 | 56.9 48.7 77.9 95.5 55.1 99.2 85.1 88.5 96.7 47.6 | 3036 5226 2948 52.06
BAP β=0.75 | bap-slice-075 | 0.461 0.84 | 56.9 43.4 76.8 95.7 54.0 99.5 78.3 88.0 96.6 44.3 | 2821 6119 3358 69.43
BAP β=0.50 | bap-slice-050 | 0.403 0.73 | 56.9 43.1 76.2 95.4 52.1 99.0 76.7 88.2 96.4 44.1 | 2546 6318 3488 74.47
BAP β=0.25 | bap-slice-025 | 0.212 0.41 | 56.9 35.2 69.8 95.4 48.5 98.8 71.4 87.3 96.3 41.9 | 2138 10085 5215 177.72
"""  # noqa: E501
BAP_SKETCH = """
Feature | feature | 1.000 1.00 | 76.2 70.7 52.8 86.0 55.6 50.9 | 533 533 533 1
Finetune | finetune | 1.000 6.00 | 76.2 82.8 91.8 96.6 75.6 80.8 | 1500 1500 250 1.32
TAPS λ=0.25 | taps-025 | 1.046 4.32 | 76.2 82.2 89.3 95.9 80.1 79.2 | 1323 1265 306 1.36
TAPS λ=0.50 | taps-050 | 1.040 3.86 | 76.2 82.6 88.9 95.9 80.8 78.4 | 1315 1264 341 1.52
TAPS λ=0.75 | taps-075 | 1.032 3.31 | 76.2 82.6 88.3 95.3 79.8 79.1 | 1222 1184 369 1.54
TAPS λ=1.00 | taps-100 | 1.026 2.91 | 76.2 82.4 88.5 95.6 80.0 78.3 | 1240 1209 426 1.81
BA² β=1.00 | ba2-slice-100 | 0.700 1.03 | 76.2 81.2 92.1 95.7 72.3 79.3 | 1265 1807 1228 7.81
BA² β=0.75 | ba2-slice-075 | 0.600 1.03 | 76.2 79.4 90.6 94.4 70.9 79.4 | 1006 1677 977 5.77
BA² β=0.50 | ba2-slice-050 | 0.559 1.03 | 76.2 79.3 90.8 94.9 70.6 78.3 | 1012 1810 983 6.26
BA² β=0.25 | ba2-slice-025 | 0.375 1.03 | 76.2 78.0 88.2 93.2 68.0 77.9 | 755 2013 733 5.19
BAP β=1.00 | bap-slice-100 | 0.612 1.07 | 76.2 80.8 91.9 92.4 75.0 79.5 | 1157 1890 1081 7.19
BAP β=0.75 | bap-slice-075 | 0.428 0.84 | 76.2 76.1 91.3 79.4 72.1 76.2 | 889 2077 1058 7.73
BAP β=0.50 | bap-slice-050 | 0.590 0.59 | 76.2 73.8 90.7 83.8 69.6 75.1 | 758 1284 1284 5.80
BAP β=0.25 | bap-slice-025 | 0.152 0.34 | 76.2 72.5 89.2 76.5 68.3 74.4 | 641 4217 1885 27.98
"""
# In these S_P is the tables' "Score/Params"; a dash stands for what is not printed.
AFFINE_DECATHLON = """
RA | | - 2 | 59.7 56.7 81.2 93.9 50.9 97.1 66.2 89.6 96.1 47.5 | 2118 - 1059 -
RA-decay | | - 2 | 59.7 61.9 81.2 93.9 57.1 97.6 81.7 89.6 96.1 50.1 | 2621 - 1311 -
RA-N | | - 2 | 60.3 61.9 81.2 93.9 57.1 99.3 81.7 89.6 96.6 50.1 | 3159 - 1580 -
DAN | | - 2.17 | 57.7 64.1 80.1 91.3 56.5 98.5 86.1 89.7 96.8 49.4 | 2852 - 1314 -
PA | | - 2 | 60.3 64.2 81.9 94.7 58.8 99.4 84.7 89.2 96.5 50.9 | 3412 - 1706 -
MTAN | | - 1.74 | 63.9 61.8 81.6 91.6 56.4 98.8 81.0 89.8 96.9 50.6 | 2941 - 1690 -
SpotTune | | - 11 | 60.3 63.9 80.5 96.5 57.1 99.5 85.2 88.8 96.7 52.3 | 3612 - 328 -
CovNorm | | - 1.25 | 60.4 69.4 81.3 98.8 60.0 99.1 83.4 87.7 96.6 48.9 | 3713 - 2970 -
Piggyback | piggyback | - 1.28 | 57.7 65.3 79.9 97.0 57.5 97.3 79.1 87.6 97.2 47.5 | 2838 - 2217 -
Piggyback, run again | piggyback | - 1.28 | 60.8 52.3 80.0 95.1 59.6 98.7 82.9 85.1 96.7 46.9 | 2805 - 2191 -
affine, simple | affine-simple | - 1.29 | 60.8 51.3 81.9 94.7 59.0 99.1 88.0 89.3 96.5 48.7 | 3263 - 2529 -
affine, full | affine-full | - 1.29 | 60.8 52.8 82.0 96.2 58.7 99.2 88.2 89.2 96.8 48.6 | 3497 - 2711 -
PA-SVD | | - 1.5 | 60.3 66.0 81.9 94.2 57.8 99.2 85.7 89.3 96.6 52.5 | 3398 - 2265 -
RA-joint | | - 2 | 59.2 63.7 81.3 93.3 57.0 97.5 83.4 89.8 96.2 50.3 | 2643 - 1322 -
"""  # noqa: E501
AFFINE_RESNET = """
PackNet ↓ | packnet | - 1.10 | 75.7 80.4 86.1 93.0 69.4 76.2 | 732 - 665 -
PackNet ↑ | packnet-reversed | - 1.10 | 75.7 71.4 80.0 90.6 70.3 78.7 | 620 - 534 -
Piggyback | piggyback | - 1.16 | 76.2 80.4 88.1 93.5 73.4 79.4 | 934 - 805 -
Piggyback, BN | piggyback-bn | - 1.17 | 76.2 82.1 90.6 95.2 74.1 79.4 | 1184 - 1012 -
affine, simple | affine-simple | - 1.17 | 76.2 82.6 91.5 96.5 74.8 80.2 | 1430 - 1222 -
affine, full | affine-full | - 1.17 | 76.2 82.4 91.4 96.7 75.3 80.2 | 1458 - 1246 -
"""
AFFINE_DENSENET = """
classifier only | feature | - 1 | 74.4 73.5 56.8 83.4 54.9 53.1 | 324 - 324 -
individual | finetune | - 6 | 74.4 81.9 91.4 96.5 76.4 80.5 | 1500 - 250 -
PackNet ↓ | packnet | - 1.11 | 74.4 80.7 84.7 91.1 66.3 74.7 | 685 - 617 -
PackNet ↑ | packnet-reversed | - 1.11 | 74.4 69.6 77.9 91.5 69.2 78.9 | 607 - 547 -
Piggyback | piggyback | - 1.15 | 74.4 79.7 87.2 94.3 72.0 80.0 | 946 - 822 -
Piggyback, BN | piggyback-bn | - 1.21 | 74.4 81.4 90.1 95.5 73.9 79.1 | 1209 - 999 -
BA² | ba2-slice-100 | - 1.17 | 74.4 82.4 92.9 96.0 71.5 79.9 | 1434 - 1226 -
affine, simple | affine-simple | - 1.21 | 74.4 81.5 91.7 96.7 75.5 79.9 | 1506 - 1245 -
affine, full | affine-full | - 1.21 | 74.4 81.7 91.6 96.9 75.7 79.8 | 1534 - 1268 -
"""
AFFINE_VGG = """
classifier only | feature | - 1 | 71.6 63.5 45.3 80.6 50.5 41.5 | 342 - 342 -
individual | finetune | - 6 | 71.6 77.4 87.0 92.3 67.7 76.4 | 1500 - 250 -
PackNet ↓ | packnet | - 1.09 | 70.7 77.7 84.2 89.7 67.2 71.4 | 1152 - 1057 -
PackNet ↑ | packnet-reversed | - 1.09 | 70.7 70.3 78.3 89.8 68.5 75.1 | 979 - 898 -
Piggyback | piggyback | - 1.16 | 71.6 77.8 86.1 90.7 71.2 76.5 | 1441 - 1243 -
affine, simple | affine-simple | - 1.16 | 71.6 77.4 87.2 91.6 71.6 76.5 | 1530 - 1319 -
affine, full | affine-full | - 1.16 | 71.6 77.4 87.3 91.5 71.9 76.7 | 1538 - 1326 -
"""
ADAPTERS = """
Finetuning | finetune | - 10 | 60.32 60.34 82.12 92.82 55.53 99.42 81.41 89.12 96.55 51.20 | 3096
Series Res. adapt. | series | - 2 | 60.32 61.87 81.22 93.88 57.13 99.27 81.67 89.62 96.57 50.12 | 3159
Parallel Res. adapt. | parallel | - 2 | 60.32 64.21 81.91 94.73 58.83 99.38 84.68 89.21 96.54 50.94 | 3412
Parallel (early) | parallel-early | - 2 | 60.32 50.47 78.58 93.26 58.46 99.00 82.27 87.68 95.39 47.77 | 2610
Parallel (mid) | parallel-mid | - 2 | 60.32 57.88 79.25 94.24 56.65 98.85 83.43 88.47 95.96 48.98 | 2852
Parallel (late) | parallel-late | - 2 | 60.32 61.06 80.58 94.02 57.87 99.19 84.68 89.06 96.30 50.94 | 3159
Parallel (half) | parallel-second | - 1.5 | 60.32 61.15 81.24 94.36 58.40 98.85 84.76 88.69 96.19 49.99 | 3061
Parallel SVD | svd | - 1.5 | 60.32 66.04 81.86 94.23 57.82 99.24 85.74 89.25 96.62 52.50 | 3398
Rebuffi et al. 2017 | | - 2 | 59.23 63.73 81.31 93.30 57.02 97.47 83.43 89.82 96.17 50.28 | 2643
Rosenfeld & Tsotsos | | - 2 | 57.74 64.11 80.07 91.29 56.54 98.46 86.05 89.67 96.77 49.38 | 2851
"""  # noqa: E501
# Of which table which title, and what is wrong with its figures.
MISPRINTS = {
    ("BAP, Table 2", "TAPS λ=0.25"): "GTSR 8.7: S needs 98.7",
    ("BAP, Table 3", "Feature"): "S 533: its accuracies give 280",
    ("BAP, Table 3", "BAP β=0.50"): "FLOP 0.590 is its Params, and out of order",
    ("affine, Table 1", "PackNet ↑"): "S_P 534: 620 over 1.10 is 564",
}


def _rows(benchmark: Benchmark, network: str, source: str, text: str) -> Iterator[PrintedRow]:
    for line in text.strip().splitlines():
        title, row, costs, accuracy, scores = (part.strip() for part in line.split("|"))
        flop, params = (_number(word) for word in costs.split())
        s, s_o, s_p, s_e = [*(_number(word) for word in scores.split()), None, None, None][:4]
        assert s is not None
        percent = tuple(float(word) for word in accuracy.split())
        assert len(percent) == len(benchmark.domains), line
        misprint = MISPRINTS.get((source, title), "")
        yield PrintedRow(
            *(benchmark.name, network, source, title, row, flop, params, percent),
            *(s, s_o, s_p, s_e, misprint),
        )


def _number(word: str) -> float | None:
    return None if word == "-" else float(word)


PRINTED: tuple[PrintedRow, ...] = (
    *_rows(DECATHLON, "wrn28_4", "BAP, Table 2", BAP_DECATHLON),
    *_rows(DECATHLON, "wrn28_4", "affine, Table 4", AFFINE_DECATHLON),
    *_rows(DECATHLON, "resnet26", "adapters, Table 1", ADAPTERS),
    *_rows(IMAGENET_TO_SKETCH, "resnet50", "BAP, Table 3", BAP_SKETCH),
    *_rows(IMAGENET_TO_SKETCH, "resnet50", "affine, Table 1", AFFINE_RESNET),
    *_rows(IMAGENET_TO_SKETCH, "densenet121", "affine, Table 2", AFFINE_DENSENET),
    *_rows(IMAGENET_TO_SKETCH, "vgg16", "affine, Table 3", AFFINE_VGG),
)


def _individual(network: str) -> Benchmark:
    """ImageNet-to-Sketch against the networks finetuned for one domain each, as S counts."""
    (row,) = (x for x in PRINTED if x.network == network and x.row == "finetune")
    (feature,) = (x for x in PRINTED if x.network == network and x.row == "feature")
    domains = zip(IMAGENET_TO_SKETCH.domains, row.accuracy, strict=True)
    own = tuple(replace(domain, reference=percent) for domain, percent in domains)
    return replace(IMAGENET_TO_SKETCH, domains=own, baseline=feature.s)


# What S counts against, by the network; of others it is the benchmark's own.
REFERENCES = {name: _individual(name) for name in ("densenet121", "vgg16")}


def printed_beside(benchmark: str, network: str, row: str) -> list[PrintedRow]:
    """The printed rows that one of ours is set beside."""
    return [x for x in PRINTED if (x.benchmark, x.network, x.row) == (benchmark, network, row)]
