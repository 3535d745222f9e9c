"""A network that a function of the user's makes: `MODULE:FUNCTION` or `FILE.py:FUNCTION`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from prunion.runtime.base import reason_of
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import BackboneConfig

__all__ = ["make_python_net"]


def make_python_net(config: BackboneConfig) -> nn.Module:
    """Call the function that `config.name` names with `config.arguments`.

    A file counts from `config.folder`, the run file's; a module is looked for there first, then on
    Python's path. What is found may also be a module itself, `MODULE:NET`. The module may keep the
    network for others: who changes it takes a copy.

    Raises ConfigError if it cannot be imported or called, or makes no `nn.Module`.
    """
    place, _, path = config.name.rpartition(":")
    found: Any = _imported(place, config.folder)
    for name in path.split("."):
        if not hasattr(found, name):
            public = [x for x in dir(found) if not x.startswith("_")]
            near = get_close_matches(name, public, 3) or public[:6]
            raise ConfigError(
                f"[backbone] name: {place} has no {name!r}: correct the name, or define it there "
                f"(there is {', '.join(near) or 'nothing'})"
            )
        found = getattr(found, name)
    if not isinstance(found, nn.Module):
        found = _called(config, found)
    elif config.arguments:
        raise ConfigError(
            f"[backbone] arguments: {config.name} is a network already: remove them, or name a "
            "function that makes one"
        )
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f"[backbone] name: {config.name} makes a {type(found).__name__}: return a "
            "torch.nn.Module"
        )
    return found


def _called(config: BackboneConfig, function: Any) -> Any:
    if not callable(function):
        raise ConfigError(
            f"[backbone] name: {config.name} is a {type(function).__name__}: name a function that "
            "makes a torch.nn.Module"
        )
    try:
        return function(**config.arguments)
    except Exception as exc:
        raise ConfigError(
            f"[backbone] name: {config.name} fails with {_given(config)} ({_reason(exc)}): correct "
            "it, or the arguments"
        ) from exc


def _given(config: BackboneConfig) -> str:
    names = ", ".join(config.arguments)
    return f"the arguments {names}" if names else "no arguments"


def _imported(place: str, folder: str) -> ModuleType:
    base = Path(folder or ".").absolute()
    try:
        if place.endswith(".py"):
            return _from_file(base / Path(place).expanduser())
        parts = base.joinpath(*place.split("."))
        for file in (parts.with_suffix(".py"), parts / "__init__.py"):
            if file.is_file():
                return _from_file(file)
        return importlib.import_module(place)
    except ConfigError:
        raise
    except (Exception, SystemExit) as exc:
        hint = "correct the name, install it, or put it beside the run file"
        hint = hint if isinstance(exc, ModuleNotFoundError) else "correct it"
        raise ConfigError(
            f"[backbone] name: {place} cannot be imported ({_reason(exc)}): {hint}"
        ) from exc


def _from_file(path: Path) -> ModuleType:
    """Run a file as a module: by its own name in a package, else by one that meets no other."""
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"[backbone] name: {path} is not a file: correct the path")
    folder, names = path.parent, [] if path.name == "__init__.py" else [path.stem]
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    with _on_path(folder):
        if len(names) > 1 or path.name == "__init__.py":
            module = importlib.import_module(".".join(names))
            if Path(module.__file__ or "").resolve() == path:
                return module
            raise ConfigError(
                f"[backbone] name: {path} cannot be imported: another module is called "
                f"{'.'.join(names)}, {module.__file__}; rename one"
            )
        # Two run files may each have a `nets.py` of their own beside them.
        name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours, as a script does."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _reason(exc: BaseException) -> str:
    """The error, and the line of the user's code that raised it."""
    text = reason_of(exc, typed=True)
    if isinstance(exc, SyntaxError) and exc.filename:
        return f"{text}, {Path(exc.filename).name}:{exc.lineno}"
    own = [x for x in traceback.extract_tb(exc.__traceback__) if "importlib" not in x.filename]
    last = own[-1] if own else None
    if last is None or last.filename == __file__:
        return text
    return f"{text}, {Path(last.filename).name}:{last.lineno}"
