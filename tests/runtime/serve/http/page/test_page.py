"""The page to try a server: what it is sent with."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from prunion.runtime.model import load
from tests.runtime.serve.running import Running, running

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
httpx = pytest.importorskip("httpx")

from tests.runtime.serve.http.page.tab import KEY  # noqa: E402

FOLDER = Path(__file__).parents[5] / "runtime" / "serve" / "http" / "page"


def test_the_page_is_sent_under_a_strict_policy(server: Running) -> None:
    for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "javascript")):
        answer = httpx.get(server.url + path)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_fetched_from_elsewhere() -> None:
    for name in ("page.html", "page.css", "page.js"):
        text = (FOLDER / name).read_text("utf-8")
        hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", text))
        assert hosts <= {"http://www.w3.org/2000/svg"}, f"{name} names {hosts}"
        assert len(text.splitlines()) <= 300, name
    html = (FOLDER / "page.html").read_text("utf-8")
    assert not re.findall(r"\s(?:style|on\w+)=", html), "the policy forbids what stands inline"
    targets = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(x.startswith("data:") or not x.startswith("/") for x in targets), "behind a prefix?"


def test_it_can_be_left_out(bundle_path: Path) -> None:
    with running(bundle_path, "--no-page") as server:
        assert httpx.get(server.url).status_code == 404
        assert httpx.get(server.url + "/page.js").status_code == 404
        assert httpx.get(server.url + "/v1/domains").status_code == 200


def test_the_activity_counts_and_shows_the_last_batches(bundle_path: Path, photo: Path) -> None:
    with running(bundle_path) as server:
        assert httpx.get(f"{server.url}/v1/activity").json()["recent"] == []
        head = {"content-type": "image/png"}
        for name in ("signs", "digits", "signs"):
            url = f"{server.url}/v1/domains/{name}:classify"
            assert httpx.post(url, content=photo.read_bytes(), headers=head).status_code == 200
        found = httpx.get(f"{server.url}/v1/activity").json()
    assert [x["domains"] for x in found["recent"]] == [{"signs": 1}, {"digits": 1}, {"signs": 1}]
    assert (found["requests"], found["images"], found["runs"]) == (3, 3, 3)
    assert (found["failed"], found["refused"], found["waiting"]) == (0, 0, 0)
    assert found["spent_us"]["total"] >= found["spent_us"]["network"] > 0


def test_behind_a_prefix_the_same_paths_need_no_key(bundle_path: Path) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    from prunion.runtime.serve import Gate, Service, http_app
    from prunion.runtime.serve.guard import ApiKeys

    keys = ApiKeys((("shop", hashlib.sha256(KEY.encode()).digest()),))
    app = http_app(Service(load(bundle_path, "cpu", threads=1)), Gate(9, 9), keys)
    client = testclient.TestClient(app, root_path="/vision")
    for path in ("/", "/page.js", "/v2/health/ready"):
        assert client.get("/vision" + path).status_code == 200, path
    assert client.get("/vision/v1/domains").status_code == 401
    head = {"authorization": f"Bearer {KEY}"}
    assert client.get("/vision/v1/domains", headers=head).status_code == 200
