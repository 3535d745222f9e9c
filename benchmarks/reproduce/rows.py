"""`prunion reproduce`: from a benchmark's archives to its papers' table, a row at a time.

A row is trained, exported and verified, answers the benchmark's unlabelled images, and becomes one
line of `rows.jsonl`; a row that has a line is not run again, one that was interrupted goes on from
its last step. Trunks that nobody publishes are pretrained first, on the benchmark's source domain.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunion.benchmarks.reproduce.archives import BenchmarkImages, domain_config, write_submission
from prunion.benchmarks.reproduce.before import check_images
from prunion.benchmarks.reproduce.catalogue import (
    ReproducedRow,
    backbone_of,
    drops,
    phases,
    rows_of,
    usual_rows,
)
from prunion.benchmarks.reproduce.origin import begin_row, check_line, noted_origin, origin_of
from prunion.benchmarks.reproduce.pretrain import on_first
from prunion.benchmarks.reproduce.settings import (
    DATA,
    Reproduction,
    add_line,
    check_changes,
    input_of,
    key_of_row,
    read_lines,
    write_text,
)
from prunion.benchmarks.reproduce.sources import (
    answers_of_run,
    answers_of_source,
    named_trunk,
    trunk_source,
)
from prunion.benchmarks.reproduce.table import figures_of, measured_accuracy, reproduced_table
from prunion.exporter.bundle import export_bundle
from prunion.exporter.graph import rehearse_export
from prunion.exporter.verify import verify_bundle
from prunion.runtime.errors import ConfigError, DataError, InputError, VerificationError
from prunion.trainer.config import BudgetConfig, RunConfig, TrainConfig
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import ExportCheck, train_run

__all__ = ["chosen_rows", "reproduce", "row_config"]

log = logging.getLogger(__name__)
LINES = "rows.jsonl"


def reproduce(asked: Reproduction) -> str:
    """Run every row that has no line yet; the table of all that have one, as Markdown.

    Raises:
        ConfigError: a change that a row does not know, or a wrong one.
        DataError: the archives are damaged or hold nothing of the benchmark.
        InputError: a row that has a line was made of something else than what is asked for.
        VerificationError: a bundle does not hold what it says.
        PrunionError: as `prunion.train`.
    """
    rows, lines = chosen_rows(asked), asked.output / LINES
    wanted = {key_of_row(asked, row, seed): (row, seed) for seed in asked.seeds for row in rows}
    done = {line["key"]: line for line in _lines_of(asked)}
    left = [pair for key, pair in wanted.items() if key not in done]
    for row, _ in left:  # before the first is trained
        try:
            _train_of(asked, row)
        except ConfigError as exc:
            raise ConfigError(f"row {row.name}: {exc}") from None
    domains: list[BenchmarkImages] = []
    on_first(lambda: domains.extend(_opened(asked, needed=bool(left))))  # one process unpacks
    if left:
        domains = domains or asked.open()
        if not [x for x in domains if x.name != asked.source]:
            raise DataError(f"{asked.data} holds {asked.source} alone: put other domains there")
        _check_runs(asked, left, domains)
        networks = dict.fromkeys(row.network for row, _ in left)
        on_first(lambda: check_images(asked, networks, domains))
    on_first(lambda: _check_done(asked, [x for x in wanted.items() if x[0] in done], done, domains))
    for number, (row, seed) in enumerate(left):
        # Whether a network can be exported is tried once.
        new = row.network not in {earlier.network for earlier, _ in left[:number]}
        _run_row(asked, row, seed, domains, rehearse_export if new else None)
    text = reproduced_table(asked.benchmark, read_lines(lines))
    on_first(lambda: write_text(asked.output / "table.md", text + "\n"))
    return text


def chosen_rows(asked: Reproduction) -> list[ReproducedRow]:
    """The rows that are asked for.

    Raises InputError for a name that none has, and for what would make others of them.
    """
    check_changes(
        asked.changes, "what makes a row what it is: choose a row that has it by --method"
    )
    if asked.final and asked.benchmark != "decathlon":
        raise InputError(
            f"--final: {asked.benchmark} has no validation images and takes no submission: leave "
            "it out, its rows are measured on test images"
        )
    every = usual_rows(asked.benchmark, asked.budgets)
    if asked.networks:
        tables = [rows_of(asked.benchmark, x, asked.budgets) for x in dict.fromkeys(asked.networks)]
        every = [row for table in tables for row in table.values()]
    known = {name for row in every for name in (row.name, row.method)}
    for name in asked.methods:
        if name not in known:
            raise InputError(f"--method {name}: choose from {', '.join(sorted(known))}")
    wanted = set(asked.methods)
    return [row for row in every if not wanted or wanted & {row.name, row.method}]


def row_config(
    asked: Reproduction,
    row: ReproducedRow,
    seed: int,
    domains: Sequence[BenchmarkImages],
    weights: str,
) -> RunConfig:
    """The run of a row, over every domain but the source."""
    own = [x for x in domains if x.name != asked.source]
    return RunConfig(
        backbone=backbone_of(row.network, weights),
        input=input_of(asked),
        budget=BudgetConfig(row.limit, round_to=1),  # as the papers count
        domains=tuple(domain_config(x, final=asked.final) for x in own),
        train=_train_of(asked, row),
        seed=seed,
        threads=asked.threads,
        device=asked.device,
    )


def _lines_of(asked: Reproduction) -> list[dict[str, Any]]:
    """The rows that were run. Raises InputError where they are another benchmark's."""
    found = read_lines(asked.output / LINES)
    for line in found:
        # An earlier version did not say it; the Decathlon alone takes submissions.
        usual = "decathlon" if "submission" in line else "imagenet-to-sketch"
        if (own := line.get("benchmark", usual)) != asked.benchmark:
            raise InputError(
                f"{asked.output / LINES} has the row {line['key']} of {own}, and {asked.benchmark} "
                "is asked for: choose another place with -o"
            )
    return found


def _opened(asked: Reproduction, *, needed: bool) -> list[BenchmarkImages]:
    """The domains; where they only are to be compared, none that would have to be unpacked."""
    if needed:
        return asked.open()
    if not (asked.output / DATA).is_dir():
        return []
    try:
        return asked.open()
    except DataError as exc:
        log.warning("%s", exc)
        return []


def _check_done(
    asked: Reproduction,
    wanted: Sequence[tuple[str, tuple[ReproducedRow, int]]],
    lines: Mapping[str, Mapping[str, Any]],
    domains: Sequence[BenchmarkImages],
) -> None:
    """Refuse lines that are known to be of something else. Raises InputError."""
    networks = dict.fromkeys(row.network for _, (row, _) in wanted)
    now = {network: origin_of(asked, network, domains) for network in networks}
    for key, (row, _) in wanted:
        check_line(lines[key], now[row.network], asked.output / LINES)
        if row.method == "packnet" and "order" not in lines[key]:
            raise InputError(
                f"row {key} is of an earlier version, which gave every domain as many steps and "
                f"counted {asked.source}: remove its line from {asked.output / LINES} and "
                f"{asked.output / 'runs' / key}, or leave it out with --method"
            )


def _check_runs(
    asked: Reproduction,
    left: Sequence[tuple[ReproducedRow, int]],
    domains: Sequence[BenchmarkImages],
) -> None:
    """Try every row's whole configuration. Raises ConfigError, naming the row."""
    for row, seed in left:
        try:
            row_config(asked, row, seed, domains, named_trunk(asked, row.network).weights)
        except ConfigError as exc:
            raise ConfigError(f"row {row.name}: {exc}") from None


def _train_of(asked: Reproduction, row: ReproducedRow) -> TrainConfig:
    epochs = asked.epochs or row.epochs
    keys = {**row.train, **phases(row, epochs), **drops(row, epochs), **asked.changes}
    return TrainConfig(**{"method": row.method, **keys})


def _run_row(
    asked: Reproduction,
    row: ReproducedRow,
    seed: int,
    domains: Sequence[BenchmarkImages],
    check: ExportCheck | None,
) -> None:
    trunk, key = trunk_source(asked, row.network, domains), key_of_row(asked, row, seed)
    origin = origin_of(asked, row.network, domains)
    config = row_config(asked, row, seed, domains, trunk.weights)
    folder = asked.output / "runs" / key
    log.info("row %s: %s", key, row.what)
    on_first(lambda: begin_row(folder, origin))
    result = train_run(config, folder, resume=True, check=check)

    def finish() -> None:
        bundle = asked.output / "bundles" / f"{key}.prunion"
        source = answers_of_source(asked, row.network, trunk.weights, domains)
        line: dict[str, Any] = {
            "key": key,
            "benchmark": asked.benchmark,
            "made_of": noted_origin(folder),
            "row": row.name,
            "network": row.network,
            "method": row.method,
            "order": config.train.order,
            "what": row.what,
            "seed": seed,
            "limit": row.limit,
            "accuracy": measured_accuracy(asked, row, domains, result.accuracy, trunk, source),
            **_exported(folder, bundle),
            "seconds": round(result.seconds, 1),
            "images": {name: found["images"] for name, found in result.data.items()},
        }
        if asked.benchmark == "decathlon":
            place = asked.output / "submissions" / f"{key}.json"
            answers = answers_of_run(load_checkpoint(folder), domains, asked.device)
            line["submission"] = place.name
            line["submitted"] = write_submission(place, source | answers, domains)
        add_line(asked.output / LINES, line)

    on_first(finish)


def _exported(run: Path, bundle: Path) -> dict[str, Any]:
    """The run as a bundle that holds what it says, and the figures of both.

    Raises VerificationError if it does not.
    """
    manifest = export_bundle(run, bundle, force=True)
    if problems := verify_bundle(bundle).problems:
        raise VerificationError(f"{bundle}: {'; '.join(problems)}")
    return {
        **vars(figures_of(load_checkpoint(run, merge=False))),
        "budget_met": manifest["budget"]["met"],
        "bytes": sum(x.stat().st_size for x in bundle.rglob("*") if x.is_file()),
        "error": manifest["verified"]["max_relative_error"],
        "versions": manifest["provenance"]["versions"],
    }
