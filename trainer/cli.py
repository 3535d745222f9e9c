"""The trainer's commands: `prunion init`, `list`, `check`, `train` and `score`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prunion.runtime.cli import FilePath, as_json, force

if TYPE_CHECKING:
    from prunion.trainer.run import ExportCheck, Shared

__all__ = [
    "changes_option",
    "check",
    "init",
    "list_names",
    "refuse_beside_options",
    "score",
    "train",
]

Command = TypeVar("Command", bound=Callable[..., Any])


def changes_option(metavar: str, help: str) -> Callable[[Command], Command]:
    """`--set`, several times; a usage error where one value would take another's place."""

    def distinct(ctx: click.Context, option: Any, changes: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_twice(changes, "twice")
        return changes

    help = f"{help}; can be repeated."
    return click.option(
        "--set", "changes", multiple=True, metavar=metavar, callback=distinct, help=help
    )


def refuse_beside_options(changed: Iterable[str], options: Mapping[str, str]) -> None:
    """Raise UsageError where `--set` and an option give the same key of `[train]`.

    Args:
        changed: the keys that `--set` gives.
        options: of keys, the parameter that gives them too.
    """
    for key in changed:
        if (name := options.get(key, "")) and _is_given(name):
            parameters = click.get_current_context().command.params
            flag = next(x.opts[-1] for x in parameters if x.name == name)
            raise click.UsageError(f"--set gives train.{key} and so does {flag}: give it once")


def _refuse_twice(changes: Sequence[str], how: str) -> None:
    from prunion.trainer.config import said_twice

    if changes and (key := said_twice(changes)):
        raise click.UsageError(f"--set gives {key} {how}: give it once")


run_argument = click.argument("config", metavar="RUN.toml", type=FilePath())
changed = changes_option("KEY=VALUE", "In place of the file's value, such as train.lr=3e-4")


@click.command()
@run_argument
@changed
@as_json
def check(
    config: str, changes: tuple[str, ...], as_json: bool, check: ExportCheck | None = None
) -> None:
    """Open and try all that RUN.toml names, as train would; train nothing."""
    from prunion.trainer.config import load_config
    from prunion.trainer.processes import is_first_process
    from prunion.trainer.run import check_run, check_table

    found = check_run(load_config(config, changes), check=check)
    if is_first_process():
        click.echo(json.dumps(found.to_json(), indent=1) if as_json else check_table(found))


@click.command()
@run_argument
@click.option("-o", "--output", type=FilePath(), help="Run folder  [default: runs/RUN].")
@force
@click.option("--resume", is_flag=True, help="Go on from the state that the run folder holds.")
@click.option("--baseline", is_flag=True, help="Also train it with every channel, to compare.")
@click.option("--seed", "seeds", metavar="A,B,…", help="A run for each, below the run folder.")
@click.option("--budget", "limits", metavar="A,B,…", help="A run for each limit likewise.")
@click.option(
    "--share",
    "shared",
    type=click.Choice(["ramp", "warm-up"]),
    default="ramp",
    show_default=True,
    help="What the budgets of a seed have in common.",
)
@click.option(
    "--track",
    multiple=True,
    type=click.Choice(["wandb", "mlflow"]),
    help="Tell this tool of the figures too; can be repeated.",
)
@changed
@as_json
def train(
    config: str,
    output: str | None,
    force: bool,
    resume: bool,
    baseline: bool,
    seeds: str | None,
    limits: str | None,
    shared: Shared,
    track: tuple[str, ...],
    changes: tuple[str, ...],
    as_json: bool,
    check: ExportCheck | None = None,
) -> None:
    """Train and prune a network as RUN.toml says."""
    if force and resume:
        raise click.UsageError("--force starts anew and --resume goes on: give one of them")
    from prunion.trainer.config import load_config
    from prunion.trainer.learning import exit_when_stopped
    from prunion.trainer.processes import is_first_process
    from prunion.trainer.run import (
        check_resumes,
        closing_table,
        is_begun,
        sweep_table,
        train_run,
        train_sweep,
        train_with_baseline,
    )
    from prunion.trainer.score import check_baseline

    folder, path = Path(output) if output else Path("runs") / Path(config).stem, Path(config)
    pairs = [[*seed, *limit] for seed in _each("seed", seeds) for limit in _each("budget", limits)]
    if len(_each("budget", limits)) < 2 and _is_given("shared"):
        raise click.UsageError("--share means nothing without several budgets: give --budget A,B")
    for option, listed in (("seed", seeds), ("budget", limits)):
        if listed is not None:
            _refuse_twice([*changes, *_each(option, listed)[0]], f"and so does --{option}")
    begun = resume and is_begun(folder)
    runs = [load_config(config, [*changes, *pair], begun=begun) for pair in pairs]
    if baseline and len(runs) > 1:
        raise click.UsageError("--baseline goes with one run: give --budget 1 as well instead")
    if baseline:
        check_baseline(runs[0])
    if resume and len(runs) == 1:
        check_resumes(folder)
    with exit_when_stopped():
        if len(runs) > 1:
            swept = train_sweep(
                runs,
                folder,
                force=force,
                resume=resume,
                run_file=path,
                check=check,
                track=track,
                shared=shared,
                given="--budget",
            )
            value, text = swept.to_json(), sweep_table(swept)
        else:
            go = train_with_baseline if baseline else train_run
            result = go(
                runs[0],
                folder,
                force=force,
                resume=resume,
                run_file=path,
                check=check,
                track=track,
            )
            value, text = result.to_json(), closing_table(result)
    if is_first_process():
        click.echo(json.dumps(value, indent=1) if as_json else text)


def _is_given(option: str) -> bool:
    """Whether the command line names an option, its default too."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def _each(option: str, listed: str | None) -> list[list[str]]:
    """The changes to the run file that a list of values asks for: one list for each run."""
    if listed is None:
        return [[]]
    values = [value.strip() for value in listed.split(",")]
    if not all(values) or len(set(values)) < len(values):
        raise click.UsageError(f"--{option} is {listed!r}: give different values with commas")
    key = "seed" if option == "seed" else "budget.limit"
    return [[f"{key}={value}"] for value in values]


@click.command()
@click.argument("data", type=FilePath())
@click.option("-o", "--output", default="run.toml", show_default=True, type=FilePath())
@force
def init(data: str, output: str, force: bool) -> None:
    """Write a commented run file for the images in DATA.

    A folder for each domain, in it one for each class, or train and test with these or as
    train.parquet or train.tar; or DATA is such a folder itself, of one domain.
    """
    from prunion.runtime.base import check_output, listed, replace_file
    from prunion.trainer.config import foreign_to_init, found_domains, load_config, run_file_text

    path = Path(output)
    was = check_output(path, force=force, wrote=foreign_to_init)
    domains = found_domains(Path(data))
    with replace_file(path, was) as temporary:
        temporary.write_text(run_file_text(Path(data), path, domains), "utf-8")
        load_config(temporary)  # what no command could read takes no other file's place
    counted = "1 domain" if len(domains) == 1 else f"{len(domains)} domains"
    click.echo(f"{path}: {counted}, {listed(list(domains))}")


@click.command("list")
@click.argument("what", type=click.Choice(["backbones"]))
@click.argument("pattern", default="*")
def list_names(what: str, pattern: str) -> None:
    """List the names that [backbone] takes, of every source; PATTERN such as 'resnet*'."""
    from fnmatch import fnmatch

    from prunion.trainer.backbone import known_names

    found = [(s, x) for s, names in known_names().items() for x in names if fnmatch(x, pattern)]
    for source, name in found:
        click.echo(f"{source} {name}")
    if not found:
        from prunion.runtime.errors import InputError

        raise InputError(f"no backbone matches {pattern!r}: give a pattern such as '*net*'")


@click.command()
@click.argument("benchmark", type=click.Choice(["decathlon", "imagenet-to-sketch"]))
@click.option("--accuracy", metavar="A,B,…", help="Percent for each domain, in the papers' order.")
@click.option("--from", "source", metavar="FILE", type=FilePath(), help="Read them from a file.")
@click.option("--flop", type=float, help="Operations, as a multiple of the backbone's.")
@click.option("--params", type=float, help="Parameters, as a multiple of the backbone's.")
@as_json
def score(
    benchmark: str,
    accuracy: str | None,
    source: str | None,
    flop: float | None,
    params: float | None,
    as_json: bool,
) -> None:
    """Score accuracies as the papers do: S, and S_O, S_P, S_E where the costs are given."""
    from prunion.trainer.score import (
        BENCHMARKS,
        parse_accuracies,
        read_accuracies,
        score,
        score_table,
    )

    columns = BENCHMARKS[benchmark]
    if accuracy is not None and source is None:
        values = parse_accuracies(accuracy, "--accuracy")
    elif source is not None and accuracy is None:
        values = read_accuracies(source, columns)
    else:
        raise click.UsageError("give the accuracies once: --accuracy 76.2,80.8,… or --from FILE")
    result = score(columns, values, flop, params)
    text = (
        json.dumps(result.to_json(), indent=1) if as_json else score_table(columns, values, result)
    )
    click.echo(text)
