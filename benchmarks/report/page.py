"""The page itself: HTML and style in one file, no script, nothing fetched."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from prunion.benchmarks.report.charts_answers import answer_charts, confused
from prunion.benchmarks.report.charts_channels import channel_charts
from prunion.benchmarks.report.charts_runs import (
    accuracy_chart,
    curve_charts,
)
from prunion.benchmarks.report.measured import measured_notes, measured_tables
from prunion.benchmarks.report.paint import CSS, Chart, distinct, inline_svg
from prunion.benchmarks.report.subject import Subject

__all__ = ["charts_of", "html_page"]

ANSWERS = "Answers: "  # how the headings of answers begin
PICTURE = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif;
overflow-wrap:anywhere}
main,header{max-width:1240px;margin:0 auto;padding:0 16px}
h1{font-size:1.6rem;margin:1.2em 0 .2em}
h2{font-size:1.3rem;margin:2em 0 .4em}
h3{font-size:1.05rem;margin:1.6em 0 .4em}h4{font-size:.95rem;margin:0 0 .3em}
p{margin:.3em 0}a{color:var(--accent)}.muted{color:var(--muted);font-size:.9rem}
nav ul{display:flex;flex-wrap:wrap;gap:.2em 1.2em;list-style:none;padding:0;margin:.4em 0}
.cards{columns:3 350px;column-gap:16px}
figure,.card{margin:0 0 16px;padding:12px;break-inside:avoid;
border:1px solid var(--grid);border-radius:10px}
figure svg{display:block;width:100%;height:auto;max-width:520px;margin:0 auto}
.tall{max-height:36rem;overflow:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.2em .8em .2em 0;text-align:right;border-bottom:1px solid var(--grid)}
th{color:var(--muted);font-weight:500}th,td:not(:first-child){white-space:nowrap}
th:first-child,td:first-child{text-align:left}td:first-child{max-width:18em;overflow-wrap:anywhere}
details{margin-top:.5em}summary{cursor:pointer;color:var(--muted);font-size:.85rem}
details table{margin-top:.4em}
.wrong{display:flex;flex-wrap:wrap;gap:12px}
.wrong div{width:104px;font-size:.78rem;line-height:1.3;overflow-wrap:anywhere}
.wrong img{display:block;max-width:96px;border-radius:6px;margin-bottom:4px}
@media print{.tall{max-height:none;overflow:visible}
nav{display:none}body{font-size:11pt}}
"""


def charts_of(subject: Subject) -> dict[str, list[Chart]]:
    """The pictures of one network, by the heading they stand under."""
    accuracy = accuracy_chart(subject)
    groups = {
        "Accuracy and channels": [
            *([] if accuracy is None else [accuracy]),
            *channel_charts(subject),
        ],
        "How it learned": curve_charts(subject),
    }
    for told, figures in subject.answers().items():  # the run's own come first
        groups[f"{ANSWERS}{told}"] = answer_charts(str(figures["domain"]), figures)
    named = iter(distinct([chart for charts in groups.values() for chart in charts]))
    return {heading: [next(named) for _ in charts] for heading, charts in groups.items()}


def html_page(
    subjects: Sequence[Subject], common: Sequence[Chart], own: Sequence[Mapping[str, list[Chart]]]
) -> str:
    """The whole page.

    Args:
        common: pictures of several networks together.
        own: of each network, its pictures by heading.
    """
    links = "".join(
        f'<li><a href="#n{i}">{escape(s.name)}</a></li>' for i, s in enumerate(subjects)
    )
    title = "prunion: " + ", ".join(s.name for s in subjects[:3]) + (", …" * (len(subjects) > 3))
    parts = [f"<h2>At a glance</h2>{_table(_overview(subjects))}"]
    if common:
        parts.append("<h2>Side by side</h2>" + _cards(common, "c"))
    for index, (subject, groups) in enumerate(zip(subjects, own, strict=True)):
        parts.append(_section(index, subject, groups))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{CSS}{STYLE}</style></head><body><header><h1>What became of the network</h1>"
        f'<nav aria-label="Networks"><ul>{links}</ul></nav></header>'
        f"<main>{''.join(parts)}</main></body></html>\n"
    )


def _section(index: int, subject: Subject, groups: Mapping[str, list[Chart]]) -> str:
    answers = subject.answers()
    parts = [f'<h2 id="n{index}">{escape(subject.name)}</h2>{_summary(subject)}']
    for number, (heading, charts) in enumerate(groups.items()):
        if not charts:
            continue
        figures = answers.get(heading.removeprefix(ANSWERS))
        extra = "" if figures is None else _answers(figures)
        cards = _cards(charts, f"n{index}g{number}", extra)
        parts.append(f"<h3>{escape(heading)}</h3>{cards}")
    parts += [_measured(report) for report in subject.measured]
    return f"<section>{''.join(parts)}</section>"


def _overview(subjects: Sequence[Subject]) -> list[tuple[str, ...]]:
    rivals = any(s.baseline for s in subjects)
    scored = any(s.scores for s in subjects)
    head = ["network", "domains", "mean accuracy", *(["every channel, as long"] * rivals)]
    kinds = list(dict.fromkeys(x for s in subjects for x in s.milliseconds()))
    # Times of other graphs or machines stand apart: they are no better and no worse.
    times = ["ms, 1 image"] if len(kinds) < 2 else [f"ms, 1 image ({x})" for x in kinds]
    head += ["parameters", "MACs", "size, MiB", *times, "budget"]
    head += ["S", "S_O", "S_P", "S_E"] * scored
    rows = [tuple(head)]
    for s in subjects:
        row = [
            s.name,
            str(len(s.accuracy or s.unfinished)),
            f"{s.mean_accuracy:.2%}" if s.accuracy else "-",
        ]
        if rivals:
            known = list(s.baseline.values())
            row.append(f"{np.mean(known):.2%}" if known else "-")
        row += [_parameters(s), _share(s.macs)]
        row.append("-" if s.file_bytes is None else f"{s.file_bytes / 2**20:.2f}")
        ms = s.milliseconds()
        row += [f"{ms[x]:.2f}" if x in ms else "-" for x in kinds or [""]]
        met = "met" if s.budget.get("met") else "NOT met"
        told = f"{s.budget.get('kind')} {s.budget.get('asked')}, {met}"
        row.append("not done" if s.unfinished else told if s.budget else "-")
        if scored:
            row += [_score(s.scores.get(key)) for key in ("S", "S_O", "S_P", "S_E")]
        rows.append(tuple(row))
    return rows


def _summary(subject: Subject) -> str:
    notes = []
    if subject.after_warmup and not subject.baseline:
        notes.append(
            f"“After warm-up” is every channel after {subject.epochs[0]} of {subject.epochs[1]} "
            "epochs. It has learned for less long, so it is no rival; train one with --baseline."
        )
    if subject.unfinished:
        notes.append(
            "This run is not done: accuracy and channels are shown once it is. `prunion train "
            "--resume` goes on with one that was stopped."
        )
    elif not subject.log and subject.bundle:
        notes.append(
            "Only the bundle is here: what each domain chose and how it learned is in its run's "
            "folder. Name that too."
        )
    elif not subject.users:
        notes.append("This run kept no record of what each domain chose: it is from before then.")
    notes += subject.notes
    told = "".join(f"<li>{escape(line)}</li>" for line in subject.verdict)
    verdict = f"<h3>Verdict</h3><ul>{told}</ul>" if told else ""
    return verdict + "".join(f'<p class="muted">{escape(note)}</p>' for note in notes)


def _answers(figures: Mapping[str, Any]) -> str:
    """Most frequent confusions as a table, and mistakes as pictures."""
    top = "" if len(figures["classes"]) <= 5 else f", top-5 {float(figures['top5']):.1%}"
    told = (
        f"<p>{int(figures['images']):,} images, accuracy {float(figures['accuracy']):.2%}{top}</p>"
    )
    rows = [("what it is", "taken for", "images")]
    rows += [(a, b, f"{n:,}") for a, b, n in confused(figures, 8)]
    parts = [told, _table(rows) if len(rows) > 1 else "<p>No mistakes.</p>"]
    wrong = []
    for one in figures.get("mistakes", ()):
        picture = str(one["picture"])
        if PICTURE.fullmatch(picture):
            truth, answer = escape(str(one["truth"])), escape(str(one["answer"]))
            wrong.append(
                f'<div><img src="{picture}" alt="{truth}, taken for {answer}">{truth} → '
                f"<b>{answer}</b> {float(one['confidence']):.0%}</div>"
            )
    card = f'<div class="card"><h4>Most frequent confusions</h4>{"".join(parts)}</div>'
    if wrong:
        pictures = f'<div class="wrong">{"".join(wrong)}</div>'
        card += f'<div class="card"><h4>Wrong, and most sure of it</h4>{pictures}</div>'
    return card


def _measured(report: Mapping[str, Any]) -> str:
    tables = measured_tables(report).items()
    shown = [f"<h3>{escape(heading)}</h3>{_table(rows)}" for heading, rows in tables]
    notes = (f'<p class="muted">{escape(note)}</p>' for note in measured_notes(report))
    return "".join([*shown, *notes])


def _cards(charts: Iterable[Chart], prefix: str, extra: str = "") -> str:
    cards = []
    for number, chart in enumerate(charts):
        svg = inline_svg(chart, f"{prefix}p{number}")
        numbers = f"<details><summary>Numbers</summary>{_table(chart.rows)}</details>"
        holder = f'<div class="tall" tabindex="0">{svg}</div>' if chart.tall else svg
        holder += numbers if chart.rows else ""
        cards.append(f"<figure><h4>{escape(chart.title)}</h4>{holder}</figure>")
    return f'<div class="cards">{"".join(cards)}{extra}</div>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:]
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _parameters(subject: Subject) -> str:
    if subject.stored is None:
        return _share(subject.params)
    if math.isnan(subject.stored):
        return f"{_share(subject.params)} without the domains' own weights"
    return f"{subject.stored:.1%}, own weights too, as the papers count"


def _share(pair: tuple[float, float]) -> str:
    before, after = pair
    return f"{after:,.0f} ({after / before:.1%})" if before else "-"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
