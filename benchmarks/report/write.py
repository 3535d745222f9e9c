"""`prunion report`: from run folders and bundles to a page, and the same pictures as files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prunion.benchmarks.report.charts_runs import budget_chart, frontier_charts
from prunion.benchmarks.report.page import charts_of, html_page
from prunion.benchmarks.report.paint import Chart, distinct, is_picture, save_pictures
from prunion.benchmarks.report.subjects import read_subjects
from prunion.runtime.base import check_output, new_folder, replace_file, unlisted
from prunion.runtime.errors import InputError

__all__ = ["write_report"]

FIRST = "<!doctype html>"


def write_report(
    sources: Sequence[Path | str],
    output: Path | str,
    *,
    pictures: Path | str | None = None,
    force: bool = False,
) -> None:
    """Write one page about runs and bundles, which needs no network.

    Args:
        sources: run folders, bundles, and files of `prunion eval -o` and `prunion bench --json`.
        output: the page, a file.
        pictures: a folder for the same pictures as SVG and PNG files.
        force: replace a page and pictures that are there.

    Raises:
        InputError: a source is none of these, is damaged, or is of a bundle that is not given.
        PrunionError: `output` or `pictures` exists and may not be replaced.
        MissingDependencyError: matplotlib is not installed.
    """
    was = check_output(output, force=force, wrote=_foreign_to_page, inputs=sources)
    if pictures is not None:
        foreign = _foreign_to_pictures
        check_output(pictures, force=force, wrote=foreign, inputs=sources, whole=True)
    subjects = read_subjects(sources)
    if not subjects:
        raise InputError("no run and no bundle given: name at least one")
    budget = budget_chart(subjects)
    common = [*([] if budget is None else [budget]), *frontier_charts(subjects)]
    try:
        own = [charts_of(subject) for subject in subjects]
        page = html_page(subjects, common, own)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as exc:
        names = ", ".join(map(str, sources))
        raise InputError(f"a file of {names} is damaged ({exc!r:.80}): write it again") from None
    with replace_file(output, was) as temporary:
        temporary.write_text(page, "utf-8")
    if pictures is not None:
        all_charts = list(common)
        for prefix, groups in zip(_prefixes([s.name for s in subjects]), own, strict=True):
            all_charts += [_renamed(c, prefix) for charts in groups.values() for c in charts]
        with new_folder(pictures, force=force, wrote=_foreign_to_pictures) as folder:
            for chart in distinct(all_charts):
                save_pictures(chart, folder)


def _prefixes(names: Sequence[str]) -> list[str]:
    """What the files of each network's pictures begin with: names that no two have."""
    if len(names) < 2:
        return [""] * len(names)
    plain = [_plain(name).casefold() for name in names]
    if len(set(plain)) == len(plain):
        return [f"{_plain(name)}-" for name in names]
    return [f"{place}-{_plain(name)}-" for place, name in enumerate(names, 1)]


def _renamed(chart: Chart, prefix: str) -> Chart:
    return replace(chart, name=_plain(prefix + chart.name))


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _foreign_to_page(path: Path) -> str:
    """Why a file is no page of `prunion report`; "" if it is one."""
    if not path.is_file():
        return "is no page of `prunion report`"
    text = path.read_text("utf-8", errors="replace")[:2000]
    own = text.startswith(FIRST) and "<title>prunion: " in text
    return "" if own else "is no page of `prunion report`"


def _foreign_to_pictures(path: Path) -> str:
    """What in a folder is no picture of a report's, which come as SVG and PNG; "" if nothing."""
    if not path.is_dir():
        return "is a file"
    return unlisted(path, [x.name for x in path.iterdir() if x.is_file() and is_picture(x)])
