"""Thousands of wrong requests to a real server: each is answered or let go, and tells nothing.

The quick test takes a few hundred; `pytest -n 0 -m slow tests/runtime/serve/malformed` takes 10,000
of each. PRUNION_FUZZ_SEED and PRUNION_FUZZ_COUNT choose others. A failure names the seed and the
number, and `wrong_request(seed, number)` makes the same bytes again.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.serve.malformed.bodies import right_request
from tests.runtime.serve.malformed.messages import right_message, wrong_message
from tests.runtime.serve.malformed.requests import INFER, send, wrong_request
from tests.runtime.serve.running import Running, running

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
grpc = pytest.importorskip("grpc", reason="needs prunion[serve]")

LIMIT = 30.0  # seconds in which each must be answered, or its connection closed
SENDERS = 8
PATIENCE = ("--head-seconds", 0.5, "--body-seconds", 0.5, "--idle-seconds", 1)
TELLS = re.compile(
    rb"Traceback|File \"|site-packages|\.py\b|0x[0-9a-f]{6}|/tmp/|/home/|/usr/|object at|Errno"
)
SEED = int(os.environ.get("PRUNION_FUZZ_SEED", random.SystemRandom().randrange(1_000_000)))


def count_of(quick: int, marked: bool) -> int:
    return int(os.environ.get("PRUNION_FUZZ_COUNT", 10_000 if marked else quick))


@pytest.fixture(params=[pytest.param(False, id="quick"), pytest.param(True, id="slow", marks=pytest.mark.slow)])  # fmt: skip # noqa: E501
def many(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def server(bundle_path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    # Only the wrong requests leave a server waiting; a busy machine may be slow to send right ones.
    patience = () if "openapi" in request.node.name else PATIENCE
    with running(bundle_path, "--control", *patience) as found:
        yield found
        assert found.end() == 0
        faults = [x for x in found.text if '"traceback"' in x or '"level": "error"' in x]
        rest = [x for x in found.text if not x.startswith("{")]
        assert not faults and not rest, (SEED, faults[:3], rest[:20])


def get(server: Running, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=LIMIT)
    connection.request("GET" if body is None else "POST", path, body)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def answers_rightly(server: Running) -> None:
    get(server, "/v2/repository/models/signs/load", b"")
    status, data = get(server, INFER, json.dumps(right_request()).encode())
    assert status == 200, (SEED, data[:500])
    assert json.loads(data)["outputs"][0]["shape"][0] == 1


def resident(server: Running) -> float:
    """MiB."""
    text = get(server, "/metrics")[1].decode()
    (line,) = (x for x in text.splitlines() if x.startswith("process_resident_memory_bytes "))
    return float(line.split()[1]) / (1 << 20)


def test_wrong_requests_over_http(server: Running, many: bool) -> None:
    count = count_of(400, many)
    print(f"seed {SEED}, {count} requests")

    def one(number: int) -> Counter[int]:
        wrong = wrong_request(SEED, number)
        found = send(server.http, wrong, LIMIT)
        told = (SEED, number, wrong.kind, wrong.data[:300], found.data[:1000])
        assert found.closed and found.seconds < LIMIT, told
        assert all(x < 500 or x == 503 for x in found.statuses), told
        assert found.statuses or wrong.end != "wait" or not wrong.data.strip() or found.seconds > 0.4, told  # fmt: skip # noqa: E501
        assert not TELLS.search(found.data), told
        if found.statuses and found.statuses[-1] >= 400 and b"\r\n\r\n{" in found.data:
            last = found.data.rpartition(b"\r\n\r\n")[2]
            assert set(json.loads(last)) == {"error"}, told
        return Counter(found.statuses)

    statuses: Counter[int] = Counter()
    half = count // 2
    memory = []
    with ThreadPoolExecutor(SENDERS) as pool:
        for numbers in (range(half), range(half, count), range(half, count)):
            if len(memory) == 2 and memory[1] < 1.05 * memory[0] + 16:
                break
            # What is kept after a large picture is bounded, and may come late; a leak grows again.
            for found in pool.map(one, numbers):
                statuses += found
            memory.append(resident(server))
    print(statuses, memory)
    answers_rightly(server)
    assert statuses[400] > count / 4
    assert memory[-1] < 1.05 * memory[-2] + 16, (SEED, memory)


def test_wrong_messages_over_grpc(server: Running, many: bool) -> None:
    count = count_of(400, many)
    print(f"seed {SEED}, {count} messages")
    codes: Counter[str] = Counter()
    memory = 0.0
    begin = "/inference.GRPCInferenceService/"
    same: Any = {"request_serializer": bytes, "response_deserializer": bytes}
    with grpc.insecure_channel(
        f"127.0.0.1:{server.grpc}", [("grpc.max_receive_message_length", -1)]
    ) as channel:

        def one(number: int) -> str:
            method, data = wrong_message(SEED, number)
            told: Any = (SEED, number, method, data[:300])
            try:
                if method == "ModelStreamInfer":
                    call = channel.stream_stream(begin + method, **same)
                    answers = b"".join(call(iter([data, data]), timeout=LIMIT))
                else:
                    answers = channel.unary_unary(begin + method, **same)(data, timeout=LIMIT)
            except grpc.RpcError as exc:
                code = str(exc.code().name)
                # The last two are the deliberate 503: a message may ask for an answer in no time.
                fair = ("INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED", "UNAVAILABLE")
                assert code in fair, (told, exc.details())
                assert not TELLS.search(exc.details().encode()), (told, exc.details())
                return code
            assert not TELLS.search(answers), told
            return "OK"

        with ThreadPoolExecutor(SENDERS) as pool:
            for number, code in enumerate(pool.map(one, range(count))):
                codes[code] += 1
                if number == count // 2:
                    memory = resident(server)
        print(codes)
        large = bytes(70 << 20)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(begin + "ModelInfer", **same)(large, timeout=LIMIT)
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"
        right = right_message().SerializeToString()
        get(server, "/v2/repository/models/signs/load", b"")
        assert channel.unary_unary(begin + "ModelInfer", **same)(right, timeout=LIMIT)
    answers_rightly(server)
    assert codes["INVALID_ARGUMENT"] > count / 4
    assert resident(server) < 1.05 * memory + 16, (SEED, memory)


@pytest.mark.slow
def test_what_the_openapi_page_says_holds(server: Running, tmp_path: Path) -> None:
    """schemathesis asks what the description allows, and what it forbids."""
    if find_spec("schemathesis") is None:
        pytest.skip("needs schemathesis: pip install 'prunion[test]'")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
        *("--max-examples", "40", "--seed", str(SEED), "--workers", "2"),
        *("--phases", "examples,coverage,fuzzing"),
        # Some requests are refused for what the server holds, which no description tells.
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
        *("--request-timeout", "10", "--suppress-health-check", "all", "--continue-on-failure"),
    ]
    begun = time.monotonic()
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3000)
    print(run.stdout[-2000:], time.monotonic() - begun)
    assert run.returncode == 0, (SEED, run.stdout[-6000:], run.stderr[-2000:])
    answers_rightly(server)
