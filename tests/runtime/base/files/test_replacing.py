"""What takes another's place does so at once, is of the same command, and leaves nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prunion.runtime.base import check_output, new_folder, replace_file, strangers
from prunion.runtime.base.files import exchange
from prunion.runtime.errors import OutputError, PrunionError

posix = pytest.mark.skipif(os.name != "posix", reason="kills and locks are POSIX's")


def own(path: Path) -> str:
    return strangers(path, ("a",))


def write(path: Path, text: str) -> None:
    with new_folder(path, force=True, wrote=own) as made:
        (made / "a").write_text(text)


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways: this system's, and that of one that cannot exchange names."""
    if request.param == "two renames":
        monkeypatch.setattr(exchange, "_exchange_call", lambda: None)
    return str(request.param)


def test_a_folder_is_replaced_and_nothing_else_stays(tmp_path: Path, way: str) -> None:
    write(tmp_path / "x", "old")
    write(tmp_path / "x", "new")
    assert (tmp_path / "x" / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_link_is_replaced_not_what_it_leads_to(tmp_path: Path, way: str) -> None:
    write(tmp_path / "kept", "old")
    (tmp_path / "x").symlink_to(tmp_path / "kept")
    write(tmp_path / "x", "new")
    assert not (tmp_path / "x").is_symlink()
    assert (tmp_path / "x" / "a").read_text() == "new"
    assert (tmp_path / "kept" / "a").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "x"]


def test_what_a_command_did_not_write_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.mkdir()
    (path / "notes.txt").write_text("years of work")
    with pytest.raises(PrunionError, match=r"holds notes\.txt: --force replaces only"):
        write(path, "new")
    with pytest.raises(PrunionError, match=r"holds notes\.txt"), new_folder(path, force=True):
        pass
    assert (path / "notes.txt").read_text() == "years of work"
    (path / "notes.txt").rename(path / "a")
    write(path, "new")
    (path / ".DS_Store").write_text("")  # somebody looked
    write(path, "newer")
    (tmp_path / "file").write_text("x")
    with pytest.raises(PrunionError, match="file is a file"):
        write(tmp_path / "file", "new")


def test_what_came_while_a_command_worked_stays(tmp_path: Path) -> None:
    write(tmp_path / "x", "old")
    with (
        pytest.raises(PrunionError, match=r"holds late\.txt"),
        new_folder(tmp_path / "x", force=True, wrote=own) as made,
    ):
        (made / "a").write_text("new")
        (tmp_path / "x" / "late.txt").write_text("x")
    assert (tmp_path / "x" / "a").read_text() == "old"


def test_what_a_command_reads_is_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "runs" / "one"
    source.mkdir(parents=True)
    for place in (source, tmp_path / "runs", tmp_path):
        with pytest.raises(PrunionError, match=r"(is|holds) what this command reads"):
            check_output(place, force=True, wrote=lambda _: "", inputs=[source])
    check_output(tmp_path / "other", force=True, inputs=[source])


@posix
def test_a_reader_always_finds_the_old_or_the_new(tmp_path: Path) -> None:
    path, done = tmp_path / "x", threading.Event()
    write(path, "0")

    def replace() -> None:
        for number in range(150):
            write(path, str(number))
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    seen = 0
    while not done.is_set():
        assert path.is_dir()
        seen += 1
    thread.join()
    assert seen > 100


KILLED = """
import os, signal, sys
from pathlib import Path
from prunion.runtime.base import new_folder, replace_file
from prunion.runtime.base.files import exchange
path, moment = Path(sys.argv[1]), sys.argv[2]
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if moment == "between":
    exchange._exchange_call = lambda: None
    replace, count = Path.replace, []
    def second(self, target):
        count.append(1)
        die() if len(count) == 2 else replace(self, target)
    Path.replace = second
elif moment == "after":
    exchange.shutil.rmtree = die
if moment == "file":
    with replace_file(path) as temporary:
        temporary.write_text("half"); die()
with new_folder(path, force=True, wrote=lambda _: "") as made:
    (made / "a").write_text("new")
    if moment == "writing": die()
"""


@posix
@pytest.mark.parametrize(
    ("moment", "text"), [("writing", "old"), ("between", "old"), ("after", "new")]
)
def test_a_killed_command_leaves_the_old_or_the_new(tmp_path: Path, moment: str, text: str) -> None:
    path = tmp_path / "x"
    write(path, "old")
    command = [sys.executable, "-c", KILLED, str(path), moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    left = [p.name for p in tmp_path.iterdir() if p.name != "x"]
    assert left, "a hidden folder was left"
    exchange.restore(path)
    assert (path / "a").read_text() == text
    write(path, "newer")
    assert [p.name for p in tmp_path.iterdir()] == ["x"], "the next command clears it"


@posix
def test_a_file_that_was_half_written_is_cleared(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "x.json"), "file"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with replace_file(tmp_path / "other.json") as temporary:
        temporary.write_text("x")
    assert len(list(tmp_path.iterdir())) == 2, "it is of another output"
    with replace_file(tmp_path / "x.json") as temporary:
        temporary.write_text("x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.json", "x.json"]


@posix
def test_what_a_living_command_writes_is_not_cleared(tmp_path: Path) -> None:
    with new_folder(tmp_path / "x") as mine:
        (mine / "a").write_text("mine")
        other = "from prunion.runtime.base import new_folder\nwith new_folder('x') as f: pass"
        with pytest.raises(PrunionError, match="already exists"):
            subprocess.run([sys.executable, "-c", other], cwd=tmp_path, check=True)
            assert (mine / "a").read_text() == "mine"
            check_output(tmp_path / "x", force=False)
        (tmp_path / "x").rmdir()
    assert (tmp_path / "x" / "a").read_text() == "mine"


def test_two_writers_leave_one_whole(tmp_path: Path, way: str) -> None:
    path, broken = tmp_path / "x", []
    write(path, "start")

    def many(name: str) -> None:
        for _ in range(20):
            try:
                write(path, name)
            except PrunionError as exc:
                broken.append(exc)

    threads = [threading.Thread(target=many, args=(n,)) for n in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (path / "a").read_text() in ("one", "two")
    if way == "exchange":
        assert not broken
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(exchange.fcntl is None, reason="no folder can be locked here")
def test_a_leftover_is_removed_under_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had just made it could lock it in between, and lost what it wrote."""
    left, removed = tmp_path / f".x.{16 * '0'}.tmp", []
    left.mkdir()

    def remove(folder: Path) -> None:
        with pytest.raises(BlockingIOError):
            exchange.lock_folder(folder)
        removed.append(folder)

    monkeypatch.setattr(exchange, "_remove", remove)
    exchange.clear_leftovers(tmp_path / "x")
    assert removed == [left]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("(os error 28)")])
def test_a_full_disk_names_the_file_and_keeps_the_old(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "x").write_text("old")
    with (
        pytest.raises(OutputError, match=r"x cannot be written \(No space left.*free some space"),
        replace_file(tmp_path / "x"),
    ):
        raise error
    with (
        pytest.raises(OutputError, match=r"y cannot be written \(No space left"),
        new_folder(tmp_path / "y"),
    ):
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "x"):
        (tmp_path / "another file").read_text()  # is no fault of what is written


@posix
def test_a_limit_on_sizes_is_no_traceback(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from prunion.runtime.base import write_json\n"
        "from prunion.runtime.errors import PrunionError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_json(sys.argv[1], 'x' * 5000)\n"
        "except PrunionError as exc: print(exc)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.json")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "x.json cannot be written (File too large)" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_link_that_leads_nowhere_is_something(tmp_path: Path, force: bool, inside: bool) -> None:
    link = tmp_path / "link"
    try:
        link.symlink_to(tmp_path / "gone")
    except OSError:
        pytest.skip("this system lets nobody make links")
    path, told = link / "out" if inside else link, r"link is a link to .*gone, where nothing is"
    with pytest.raises(OutputError, match=told):
        check_output(path, force=force, wrote=own)
    with pytest.raises(OutputError, match=told), new_folder(path, force=force, wrote=own):
        raise AssertionError("nothing is to be written")
    if not inside:
        with pytest.raises(OutputError, match=told), replace_file(path):
            raise AssertionError("nothing is to be written")
    assert link.is_symlink()
    (tmp_path / "gone").mkdir()
    with replace_file(link / "a") as temporary:  # it leads somewhere now
        temporary.write_text("new")
    assert (tmp_path / "gone" / "a").read_text() == "new"
