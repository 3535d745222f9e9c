"""What the documents name exists: paths, modules, commands, links, rooms, the version."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from prunion.runtime.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[2]
STAGES = ("benchmarks", "exporter", "runtime", "trainer")
PAGES = sorted(
    str(p.relative_to(ROOT)) for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
)
NAMED_PATH = re.compile(
    rf"(?<![\w./-])(?:{'|'.join(STAGES)}|tests|docs|src|\.ci|\.github)/[\w./-]+"
)
BARE_FILE = re.compile(r"`(\w+\.py)`")
NAMED_MODULE = re.compile(r"\bprunion(?:\.[a-zA-Z_]\w*)+")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^(?:    )?(?:v/bin/)?prunion ([a-z][\w-]*)", re.MULTILINE)
RUN = re.compile(
    r"^(?:    )?(?:\S+=\S+ )*(?:v/bin/)?(?:prunion|python -m prunion\S+) .*$", re.MULTILINE
)
OPTION = re.compile(r"(?<=\s)--?[a-z][\w-]*")
MADE = {"benchmarks/learning/runs/device.json"}  # a command on the page writes it


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    assert found, pattern
    return found.group(1)


def entries(folder: Path) -> set[str]:
    """Rooms and files of a folder as a newcomer sees them."""
    rooms = {p.name for p in folder.iterdir() if (p / "__init__.py").is_file()}
    return rooms | {p.name for p in folder.glob("*.py") if p.name != "__init__.py"}


def source_of(module: str) -> tuple[Path, list[str]]:
    """The file of a dotted name, and the attributes that are left of the name."""
    place, parts = ROOT / "src" / "prunion", module.split(".")[1:]
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if parts and (place / f"{parts[0]}.py").is_file():
        return place / f"{parts[0]}.py", parts[1:]
    return place / "__init__.py", parts


@pytest.mark.parametrize("name", PAGES)
def test_every_path_exists(name: str) -> None:
    for path in NAMED_PATH.findall(page(name)):
        path = path.rstrip(".")
        places = (ROOT / path, (ROOT / name).parent / path)  # a link counts from its page
        assert path in MADE or any(x.exists() for x in places), f"{name}: where is {path}?"
    for file in BARE_FILE.findall(page(name)):
        places = [ROOT, *(ROOT / stage for stage in (*STAGES, "tests"))]
        assert any((p / file).exists() for p in places), f"{name}: where is {file}?"


@pytest.mark.parametrize("name", PAGES)
def test_every_module_exists(name: str) -> None:
    text = page(name)
    for module in NAMED_MODULE.findall(text):
        file, attributes = source_of(module)
        if not attributes:
            continue
        stub = file.with_suffix(".pyi")
        source = file.read_text("utf-8") + (stub.read_text("utf-8") if stub.is_file() else "")
        assert re.search(rf"\b{attributes[0]}\b", source), f"{name}: nothing is called {module}"
    for module in re.findall(r"python -m (prunion[\w.]*)", text):
        file, attributes = source_of(module)
        runs = file if file.name != "__init__.py" else file.with_name("__main__.py")
        assert not attributes, f"{name} runs {module}, which is not there"
        assert runs.is_file(), f"{name} runs {module}, which is not there"


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file(name: str) -> None:
    for target in LINK.findall(page(name)):
        if "://" not in target:
            file = ((ROOT / name).parent / target).resolve()
            assert file.exists(), f"{name} links to {target}, which is not there"
            # The site is built from docs alone: name other files without a link.
            assert not name.startswith("docs/") or file.is_relative_to(ROOT / "docs"), target


@pytest.mark.parametrize("name", PAGES)
def test_every_command_exists(name: str) -> None:
    assert set(COMMAND.findall(page(name))) <= COMMANDS.keys()


@pytest.mark.parametrize("name", PAGES)
def test_every_option_of_a_command_exists(name: str) -> None:
    """A page's command that its program refuses cannot repeat the page's figures."""
    for line in RUN.findall(page(name).replace("\\\n", " ")):
        words = line.split(" # ")[0].split("|")[0].split()
        words = words[next(i for i, w in enumerate(words) if w.endswith(("prunion", "-m"))) :]
        options = set(OPTION.findall(" ".join(words[2:]))) - {"--help"}
        if words[0].endswith("prunion"):
            if words[1] not in COMMANDS:
                continue
            command = cli.get_command(click.Context(cli), words[1])
            assert command is not None
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        else:
            file, _ = source_of(words[1])
            files = file.parent.glob("*.py") if file.name == "__init__.py" else [file]
            source = "".join(map(_text, files))
            known = set(re.findall(r"""["'/](--?[a-z][\w-]*)""", source))
            known |= {"--seconds"} if "seconds_option(" in source else set()
        assert options <= known, f"{name}: {options - known} of {' '.join(words)}"


def _text(file: Path) -> str:
    return file.read_text("utf-8")


def test_the_site_shows_every_page() -> None:
    site = page("mkdocs.yml")
    for name in PAGES:
        if name.startswith("docs/"):
            assert f" {name.removeprefix('docs/')}" in site, f"{name} is missing in mkdocs.yml"


@pytest.mark.parametrize("stage", STAGES)
def test_the_architecture_page_shows_every_room(stage: str) -> None:
    text, shown = page("docs/architecture.md"), entries(ROOT / stage)
    for entry in shown:
        path = f"{stage}/{entry}" if entry.endswith(".py") else f"{stage}/{entry}/"
        assert f"`{path}`" in text, f"docs/architecture.md does not say what {path} is for"
    assert first(rf"^\| `{stage}/` \|.*\| (\d+) entries: ", text) == str(len(shown)), stage


def test_the_fullest_room_is_named() -> None:
    rooms = {
        f"{stage}/{room}/": len(entries(ROOT / stage / room))
        for stage in STAGES
        for room in entries(ROOT / stage)
        if not room.endswith(".py")
    }
    fullest = first(r"^\| the fullest room \| \| `(.*)`, \d+ files", page("docs/architecture.md"))
    assert first(r"^\| the fullest room \|.*, (\d+) files", page("docs/architecture.md")) == str(
        max(rooms.values())
    )
    assert rooms[fullest] == max(rooms.values())


def test_the_version_is_the_same_everywhere() -> None:
    version = first(r'^version = "(.*)"$', page("pyproject.toml"))
    assert first(r"^version: (\S+)$", page("CITATION.cff")) == version
    assert first(r"^## (\S+)", page("CHANGELOG.md")) == version


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_docstring_tells_of_is_an_argument(stage: str) -> None:
    """One name a line, or the pages of the API cannot be built."""
    for path in sorted((ROOT / stage).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            told = re.search(r"^Args:\n((?:    .*\n?|\n)+)", ast.get_docstring(node) or "", re.M)
            given = node.args
            places = (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
            known = {place.arg for place in places if place is not None}
            for name in re.findall(r"^    (\S[^:]*):", told[1] if told else "", re.M):
                assert name.lstrip("*") in known, f"{path}: {node.name} has no {name}"
