"""Where a real server listens: Unix sockets, IPv6, ports that several processes share; systemd."""

from __future__ import annotations

import http.client
import socket
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

from prunion.runtime.errors import ConfigError
from tests.runtime.serve.process.load import ask, clients, right
from tests.runtime.serve.running import COMMAND, running
from tests.support.waiting import LONG, until

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
grpc = pytest.importorskip("grpc", reason="needs prunion[serve]")
from prunion.runtime.serve.listening.addresses import (  # noqa: E402
    bind_port,
    hold_port,
    listen,
)


def test_systemd_is_told(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("this system has no sockets in the file system")
    with (
        tempfile.TemporaryDirectory() as folder,  # pytest's own paths are too long for one
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
    ):
        told.bind(f"{folder}/notify")
        told.settimeout(LONG)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        with running(bundle_path) as server:
            assert told.recv(100) == b"READY=1"
            assert server.end() == 0
            assert told.recv(100) == b"STOPPING=1"


class Local(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LONG)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(LONG)
        self.sock.connect(str(self.path))


def test_a_unix_socket(bundle_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from click.testing import CliRunner

    from prunion.runtime.cli import cli

    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("this system has no sockets in the file system")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "http")
        for end in ("killed", "stopped"):
            with running(bundle_path, "--uds", path) as server:
                connection = Local(path)
                assert ask(connection)[0] == 200
                connection.close()
                with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
                    check = channel.unary_unary("/grpc.health.v1.Health/Check")
                    assert check(b"", timeout=LONG) == b"\x08\x01"
                done = CliRunner().invoke(cli, ["serve", str(bundle_path), "--uds", str(path)])
                assert (
                    done.exit_code == 1 and "listens there" in done.output + capfd.readouterr().err
                )
                if end == "killed":  # what it leaves behind is no hindrance
                    server.process.kill()
                    server.process.wait()
                    assert path.is_socket()
                else:
                    assert server.end() == 0 and not path.exists()
        path.write_text("precious")
        done = CliRunner().invoke(cli, ["serve", str(bundle_path), "--uds", str(path)])
        assert (
            done.exit_code == 1 and "choose another --uds" in done.output + capfd.readouterr().err
        )
        assert path.read_text() == "precious"


def test_addresses_of_version_6(bundle_path: Path) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this system has no IPv6")
    with running(bundle_path, "--host", "::") as server:
        for host in ("::1", "127.0.0.1"):
            connection = http.client.HTTPConnection(host, server.http, timeout=LONG)
            assert ask(connection)[0] == 200
            connection.close()
            address = f"[{host}]" if ":" in host else host
            with grpc.insecure_channel(f"{address}:{server.grpc}") as channel:
                check = channel.unary_unary("/grpc.health.v1.Health/Check")
                assert check(b"", timeout=LONG) == b"\x08\x01"
        assert server.end() == 0
        clients = {x["client"] for x in server.lines if "client" in x}
        assert clients == {"::1", "::ffff:127.0.0.1"}


def test_several_processes_share_the_ports(bundle_path: Path, toy: ModuleType) -> None:
    with running(bundle_path, workers=2) as server:
        with clients(server, 4) as load:
            until(lambda: len(load.answers) > 20)
        assert not load.lost and all(right(found, toy) for _, found in load.answers)
        assert server.end() == 0
        assert [line["event"] for line in server.lines].count("stopped") == 2


def test_no_other_server_shares_the_ports(bundle_path: Path) -> None:
    again = ["serve", bundle_path, "--workers", 2]
    with running(bundle_path, workers=2) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=LONG)
        assert ask(connection)[0] == 200
        command = [*COMMAND, *map(str, [*again, "--port", server.http])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
        assert done.returncode == 1 and "choose another --port" in done.stderr
        assert server.end() == 0  # it closed an open connection, which lingers at the port
        connection.close()
    ports = ["--port", server.http, "--grpc-port", server.grpc]
    with running(bundle_path, *ports, workers=2) as following:
        assert (following.http, following.grpc) == (server.http, server.grpc)
        assert following.end() == 0


def test_a_port_is_held_before_anybody_listens() -> None:
    if not hasattr(socket, "SO_REUSEPORT"):
        pytest.skip("this system shares no ports")
    with hold_port("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(ConfigError, match="choose another --grpc-port"):
            hold_port("127.0.0.1", port, "grpc-port")
        with bind_port("127.0.0.1", port, shared=True) as worker:
            worker.listen()
            with socket.create_connection(("127.0.0.1", port)) as client:
                worker.accept()[0].close()
                client.recv(1)
    # What lingers of several workers, then of one, is no server.
    with bind_port("127.0.0.1", port) as alone:
        alone.listen()
        with socket.create_connection(("127.0.0.1", port)) as client:
            alone.accept()[0].close()
            client.recv(1)
    hold_port("127.0.0.1", port).close()


def test_two_may_have_a_port_and_one_listens() -> None:
    with bind_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind_port("127.0.0.1", port) as second:
            listen(first, 1)
            with pytest.raises(ConfigError, match=f"port {port} .*choose another --port"):
                listen(second, 1)


@pytest.mark.parametrize(
    ("options", "text", "loads"),
    [
        (["--host", "300.1.1.1"], "choose another --host", False),
        pytest.param(
            *(["--api-keys", "{bundle}/manifest.json"], "is no `NAME SHA256`", False),
            marks=pytest.mark.thorough,
        ),
        (["--uds", "{bundle}/manifest.json"], "choose another --uds", False),
        (["--packs", "{bundle}", "--keep", "x"], "x", True),
    ],
)
def test_a_refusal_ends_in_one_line_and_never_by_a_signal(
    bundle_path: Path, options: list[str], text: str, loads: bool
) -> None:
    """A session that a thread was making still aborted the process: 134, and a second message."""
    told = [x.replace("{bundle}", str(bundle_path)) for x in options]
    if not loads:  # what is wrong with the line is told before the bundle is looked for
        bundle_path = bundle_path / "nowhere"
    command = [*COMMAND, "serve", str(bundle_path), "--port", "0", "--log", "off", *told]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 1, done.stderr
    assert text in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--watch", "nowhere"], "no folder"),
        (["--workers", "2", "--control"], "--watch"),
        (["--allow", "."], "without --control"),
        (["--workers", "2", "--uds", "socket"], "one worker"),
        (["--certificate", "x.pem"], "give both"),
        (["--weight", "signs=0"], "NAME=WEIGHT"),
        (["--keep", "late"], "no folder of packs"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    bundle_path: Path, options: list[str], text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from click.testing import CliRunner

    from prunion.runtime.cli import cli

    assert COMMAND
    done = CliRunner().invoke(cli, ["serve", str(bundle_path), "--port", "0", *options])
    assert done.exit_code in (1, 2)
    assert text in done.output + capfd.readouterr().err
