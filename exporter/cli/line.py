"""Which options of `prunion export` mean something together: none is taken and then ignored."""

from __future__ import annotations

from collections.abc import Mapping

import click

from prunion.exporter.options import GOES_WITH, check_ir
from prunion.runtime.errors import ConfigError

__all__ = ["check_export_line"]

ALONG = {"triton_precision": "triton", "triton_domains": "triton", **GOES_WITH}
OF_A_BUNDLE = {"source", "triton", "triton_precision", "triton_domains", "force", "as_json"}
OF_TRAINED = {  # what a RUN.toml cannot have, and why
    "int8": "there are no images to calibrate it on",
    "domains": "there is one stand-in domain alone",
    "specialise": "there is one stand-in domain alone",
}


def check_export_line(ctx: click.Context, *, bundle: bool) -> None:
    """Raise click's UsageError for an option that means nothing beside the others.

    Args:
        bundle: whether the source is a bundle, which is exported already.
    """
    values: Mapping[str, object] = ctx.params
    given = {
        name
        for name in values
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    if bundle:
        _check_bundle_line(str(values["source"]), given)
    elif "output" not in given:
        raise click.UsageError("Missing option '-o' / '--output': the bundle to write.")
    for name in sorted(given & ALONG.keys()):
        if not values[ALONG[name]]:
            raise click.UsageError(
                f"{_option(name)} means nothing without {_option(ALONG[name])}: give both."
            )
    if values["ir"] is not None:
        try:
            check_ir(int(str(values["ir"])), int(str(values["opset"])))
        except ConfigError as error:
            raise click.UsageError(str(error)) from None
    if "domains" in given and "specialise" in given:
        raise click.UsageError(
            "--domains keeps several domains, --specialise one: give one of them."
        )
    if "heads" in given and "specialise" in given:
        raise click.UsageError("--heads means nothing with --specialise, of one domain alone.")
    if values["untrained"]:
        for name in sorted(given & OF_TRAINED.keys()):
            raise click.UsageError(
                f"{_option(name)} means nothing with --untrained: {OF_TRAINED[name]}."
            )


def _check_bundle_line(source: str, given: set[str]) -> None:
    if "triton" not in given:
        raise click.UsageError(f"{source} is a bundle already: give --triton REPO.")
    if wrong := sorted(given - OF_A_BUNDLE):
        names = ", ".join(map(_option, wrong))
        raise click.UsageError(f"{names}: give the checkpoint for that; this is a bundle already.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
