"""A real server under load: stopped, reloaded, its domains exchanged, in several processes."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prunion.runtime.bundle import write_pack
from tests.runtime.serve.running import COMMAND, Running, running
from tests.waiting import LONG, until

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
grpc = pytest.importorskip("grpc", reason="needs prunion[serve]")

IMAGE = np.random.default_rng(5).standard_normal((1, 3, 12, 10), dtype=np.float32)


def request(domain: str = "signs") -> tuple[bytes, dict[str, str]]:
    """A body with raw tensors, and its headers."""
    name = domain.encode()
    data = [IMAGE.tobytes(), len(name).to_bytes(4, "little") + name]
    inputs = [
        {"name": "image", "datatype": "FP32", "shape": [1, 3, 12, 10]},
        {"name": "domain", "datatype": "BYTES", "shape": [1]},
    ]
    for entry, raw in zip(inputs, data, strict=True):
        entry["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": inputs}).encode()
    return head + b"".join(data), {"Inference-Header-Content-Length": str(len(head))}


def ask(connection: http.client.HTTPConnection, domain: str = "signs") -> tuple[int, list[float]]:
    """Status and logits."""
    connection.request("POST", "/v2/models/toy/infer", *request(domain))
    answer = connection.getresponse()
    value = json.loads(answer.read())
    return answer.status, value["outputs"][0]["data"] if answer.status == 200 else [value["error"]]


def connect(server: Running) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.http, timeout=LONG)


@dataclass
class Load:
    """What clients got."""

    answers: list[tuple[int, list[float]]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    refused: int = 0


@contextmanager
def clients(server: Running, count: int, domain: str = "signs") -> Iterator[Load]:
    """Clients that ask again and again, until the block ends or nobody listens."""
    load, stop = Load(), threading.Event()

    def run() -> None:
        connection = connect(server)
        while not stop.is_set():
            try:
                if connection.sock is None:
                    connection.connect()
            except OSError:
                load.refused += 1
                return
            try:
                load.answers.append(ask(connection, domain))
            except (OSError, http.client.HTTPException) as exc:
                load.lost.append(repr(exc))
                return

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join(LONG)


def right(found: list[float], toy: ModuleType) -> bool:
    expected = toy.reference(toy.make_tables(), IMAGE, np.array([1]))[0]
    return bool(np.allclose(found, expected, rtol=1e-4, atol=1e-5))


def test_stopping_answers_all_that_was_accepted(bundle_path: Path, toy: ModuleType) -> None:
    def ready() -> int:
        probe = connect(server)
        probe.request("GET", "/v2/health/ready")
        return probe.getresponse().status

    with running(bundle_path, "--ready-seconds", 5) as server:
        with clients(server, 8) as load:
            until(lambda: len(load.answers) > 20)
            assert ready() == 200
            server.process.send_signal(signal.SIGTERM)
            until(lambda: ready() == 503)  # readiness drops first
            assert server.process.wait(LONG) == 0
        assert server.end() == 0
        assert not load.lost
        assert load.refused == 8
        assert all(status == 200 and right(found, toy) for status, found in load.answers)
        events = [line["event"] for line in server.lines]
        assert events[-1] == "stopped"


def test_a_bundle_is_replaced_under_load(tmp_path: Path, toy: ModuleType) -> None:
    old, new = toy.make_tables(), toy.make_tables(seed=1)
    bundle = toy.make_bundle(tmp_path / "served", old)
    other = toy.make_bundle(tmp_path / "next", new)
    first, second = (toy.reference(t, IMAGE, np.array([1]))[0] for t in (old, new))
    with running(bundle, "--control") as server, clients(server, 4) as load:
        until(lambda: len(load.answers) > 10)
        shutil.rmtree(bundle)
        shutil.copytree(other, bundle)
        connection = connect(server)
        connection.request("POST", "/v2/repository/models/toy/load", b"{}")
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        status, found = ask(connection)
        assert status == 200
        np.testing.assert_allclose(found, second, rtol=1e-4, atol=1e-5)
        # A bundle that cannot be taken changes nothing.
        (bundle / "model.onnx").write_bytes(b"damaged")
        server.tell(signal.SIGHUP)
        until(lambda: any("served as it was" in line["event"] for line in server.lines))
        count = len(load.answers)
        until(lambda: len(load.answers) > count + 10)
    assert not load.lost
    kinds = set()
    for status, found in load.answers:
        assert status == 200, found
        by_old, by_new = (bool(np.allclose(found, x, atol=1e-4)) for x in (first, second))
        assert by_old != by_new, "an answer is of one bundle"
        kinds.add(by_old)
    assert kinds == {True, False}


def test_a_request_is_answered_by_the_pack_it_was_accepted_for(
    bundle_path: Path, toy: ModuleType, tmp_path: Path
) -> None:
    """One name, two packs in turn, under load: what follows a load is answered by what it loaded,
    and nothing is answered by a mixture."""
    packs = tmp_path / "packs"
    own = toy._pack(toy.make_tables(), 1, "late", toy.CLASSES["signs"])

    def write(mark: float) -> None:
        write_pack(
            packs / "late.safetensors",
            replace(own, head_bias=np.full(5, mark, np.float32)),
        )

    packs.mkdir()
    write(1000)
    allowed = ("--control", "--allow", packs)
    with running(bundle_path, *allowed) as server:
        connection = connect(server)

        def load_pack(mark: float) -> None:
            write(mark)
            connection.request("POST", "/v2/repository/models/late/load", b"{}")
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()

        load_pack(1000)
        with clients(server, 4, "late") as load:
            for turn in range(20):
                mark = 1000.0 * (1 + turn % 2)
                load_pack(mark)
                status, found = ask(connection, "late")
                assert status == 200 and np.allclose(np.array(found), mark, atol=100)
            connection.request("POST", "/v2/repository/models/late/unload", b"{}")
            assert connection.getresponse().read() == b""
            assert ask(connection, "late")[0] == 404
        assert not load.lost
        marks = {round(min(found) / 1000) for status, found in load.answers if status == 200}
        assert marks <= {1, 2} and {s for s, _ in load.answers} <= {200, 404}
        spread = [max(f) - min(f) for s, f in load.answers if s == 200]
        assert max(spread) < 100, "all classes are of one pack"


def test_packs_on_demand_and_watched(bundle_path: Path, toy: ModuleType, tmp_path: Path) -> None:
    demand, watched = tmp_path / "demand", tmp_path / "watched"
    watched.mkdir()
    own = toy._pack(toy.make_tables(), 2, "x", ("zero", "one"))
    for n in range(40):
        marked = replace(own, name=f"d{n}", head_bias=np.full(2, 1000.0 * n, np.float32))
        write_pack(demand / f"d{n}.safetensors", marked)
    folders = ("--packs", demand, "--packs-memory", 1, "--keep", "d7", "--watch", watched)
    with running(bundle_path, *folders) as server:
        connection = connect(server)
        for n in (0, 39, 7, 3, 39):
            status, found = ask(connection, f"d{n}")
            assert status == 200 and round(found[0] / 1000) == n
        assert ask(connection, "d99")[0] == 404
        write_pack(watched / "seen.safetensors", replace(own, name="seen"))
        until(lambda: ask(connection, "seen")[0] == 200)
        (watched / "seen.safetensors").unlink()
        until(lambda: ask(connection, "seen")[0] == 404)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        assert "prunion_pack_reads_total 4" in text, "d7 was read at the start"
        connection.request("GET", "/v1/domains")
        assert len(json.loads(connection.getresponse().read())["domains"]) == 43


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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--watch", "nowhere"], "no folder"),
        (["--workers", "2", "--control"], "--watch"),
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
