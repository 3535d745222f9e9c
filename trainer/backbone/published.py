"""Networks of torchvision, timm and the Hugging Face hub by name, with their published weights.

Weights that lie in a cache are taken from there; otherwise a network that cannot be reached is told
at once.
"""

from __future__ import annotations

import os
import socket
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from prunion.runtime.base import read_json, reason_of
from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone.paper_resnets import PAPER_NETS
from prunion.trainer.config import BackboneConfig

__all__ = ["known_names", "published_net"]

HUB = "hf-hub:"  # what timm's names of repositories begin with
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def published_net(config: BackboneConfig, *, pretrained: bool) -> nn.Module:
    """The network that `config` names, of timm without its classifier.

    Raises ConfigError for an unknown name, or weights that can be found nowhere.
    """
    _check_name(config)
    try:
        if config.source == "timm" and config.name.startswith(HUB):
            return _create_of_hub(config.name.removeprefix(HUB), pretrained=pretrained)
        if config.source == "timm":
            return _create_timm(config.name, pretrained=pretrained)
        return _create_torchvision(config.name, pretrained=pretrained)
    except (ValueError, RuntimeError, KeyError) as exc:
        raise ConfigError(
            f"[backbone] name: {config.source} cannot make {config.name!r} ({reason_of(exc)})"
        ) from exc
    except OSError as exc:
        raise ConfigError(
            f'[backbone] weights = "default": the weights of {config.name} cannot be downloaded '
            f"({reason_of(exc)}); give a local file instead"
        ) from exc


def known_names() -> dict[str, list[str]]:
    """The networks that `[backbone]` can name, by source."""
    import timm
    from torchvision import models

    return {
        "prunion": list(PAPER_NETS),
        "torchvision": models.list_models(module=models),
        "timm": timm.list_models(),
    }


def _check_name(config: BackboneConfig) -> None:
    if config.source == "timm":
        if config.name.startswith(HUB):
            return
        import timm

        known, base = timm.list_models(), config.name.split(".")[0]  # NAME.TAG names its weights
    else:
        from torchvision.models import list_models

        known, base = list_models(), config.name
    if base not in known:
        near = get_close_matches(base.lower(), known, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "its own documentation lists them"
        raise ConfigError(
            f"[backbone] name: {config.source} has no network {config.name!r}: {hint}"
        )


def _create_timm(name: str, *, pretrained: bool) -> nn.Module:
    import timm

    place: dict[str, Any] = {}
    published = timm.get_pretrained_cfg(name) if pretrained else None
    if published is not None and (repository := published.hf_hub_id):
        # The hub's own client asks again for 47 seconds where there is no network, even for a file
        # that lies in its cache.
        if cached := _cached(repository, "model.safetensors"):
            place = {"pretrained_cfg_overlay": {"file": cached}}
        else:
            _check_reachable(_hub())
    # timm takes the classifier off itself; the names before it stay the same
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **place)


def _create_of_hub(repository: str, *, pretrained: bool) -> nn.Module:
    """A network that a repository's `config.json` describes, `OWNER/NAME` or `OWNER/NAME@REVISION`.

    Where all that is needed lies in the hub's cache, nobody is asked.
    """
    import timm

    description = _cached(repository, "config.json")
    weights = next(filter(None, (_cached(repository, name) for name in WEIGHTS)), "")
    if not description or (pretrained and not weights):
        _check_reachable(_hub())
        return timm.create_model(HUB + repository, pretrained=pretrained, num_classes=0)
    value = read_json(description, ConfigError)
    published = {**value.get("pretrained_cfg", {}), "file": weights or None}
    if "num_classes" in value:  # of the weights in the file, which timm takes off
        published["num_classes"] = value["num_classes"]
    return timm.create_model(
        value["architecture"],
        pretrained=pretrained,
        pretrained_cfg=published,
        num_classes=0,
        **value.get("model_args", {}),
    )


def _cached(repository: str, name: str) -> str:
    """The path of a repository's file in the hub's cache, "" where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = repository.partition("@")
    found = try_to_load_from_cache(repository, name, None, revision or None)
    return found if isinstance(found, str) else ""


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _check_reachable(address: str) -> None:
    """Raise OSError at once where the host does not answer; a proxy is left to judge for itself."""
    if not getproxies():
        parts = urlsplit(address)
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=5):
            pass


def _create_torchvision(name: str, *, pretrained: bool) -> nn.Module:
    from torchvision.models import get_model, get_model_weights

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}
    if pretrained and (url := getattr(get_model_weights(name), "DEFAULT").url):  # noqa: B009
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
        if not cached.is_file():
            _check_reachable(url)
    model = get_model(name, weights="DEFAULT" if pretrained else None, **options)
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
    backbone: nn.Module = model
    return backbone
