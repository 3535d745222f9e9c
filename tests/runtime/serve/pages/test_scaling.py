"""The page about scaling: its KServe manifest has known fields, and a server answers its probes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.cli import cli
from tests.runtime.serve.running import running

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
yaml = pytest.importorskip("yaml")
httpx = pytest.importorskip("httpx")

DOCS = Path(__file__).parents[4] / "docs"
PAGE = (DOCS / "scaling.md").read_text("utf-8")

# Of KServe's ComponentExtensionSpec and Kubernetes' PodSpec, Container and Probe: what may stand in
# an InferenceService's predictor.
PREDICTOR = (
    "minReplicas maxReplicas scaleTarget scaleMetric containerConcurrency timeout "
    "canaryTrafficPercent logger batcher labels annotations deploymentStrategy "
    "containers volumes serviceAccountName nodeSelector tolerations affinity "
    "terminationGracePeriodSeconds securityContext imagePullSecrets"
).split()
CONTAINER = (
    "name image imagePullPolicy command args workingDir ports env envFrom resources volumeMounts "
    "livenessProbe readinessProbe startupProbe lifecycle securityContext"
).split()
PROBE = (
    "httpGet grpc tcpSocket exec initialDelaySeconds periodSeconds timeoutSeconds "
    "successThreshold failureThreshold terminationGracePeriodSeconds"
).split()
SECURITY = (
    "allowPrivilegeEscalation readOnlyRootFilesystem runAsNonRoot runAsUser runAsGroup capabilities"
).split()
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def container(manifest: Mapping[str, Any]) -> dict[str, Any]:
    (found,) = manifest["spec"]["predictor"]["containers"]
    return dict(found)


def options_of(container: Mapping[str, Any]) -> dict[str, str]:
    """What `prunion serve` is told beside the bundle."""
    return dict(x.split("=", 1) for x in container["args"][1:])


def test_its_fields_are_those_of_an_inference_service(manifest: dict[str, Any]) -> None:
    assert (manifest["apiVersion"], manifest["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(manifest["spec"]) == {"predictor"}
    predictor, own = manifest["spec"]["predictor"], container(manifest)
    assert set(predictor) <= set(PREDICTOR)
    assert set(own) <= set(CONTAINER)
    assert set(own["securityContext"]) <= set(SECURITY)
    for name in PROBES:
        assert set(own[name]) <= set(PROBE)
    assert predictor["scaleMetric"] in ("cpu", "memory"), "the others need Knative"
    assert 1 <= predictor["minReplicas"] <= predictor["maxReplicas"]
    assert own["name"] == "kserve-container", "KServe finds the predictor's by this name"
    assert all(isinstance(x, str) for x in own["args"]), "Kubernetes takes texts alone"
    for kind in ("requests", "limits"):
        assert re.fullmatch(r"\d+", own["resources"][kind]["cpu"])
        assert re.fullmatch(r"\d+(?:Mi|Gi)", own["resources"][kind]["memory"])


def test_its_ports_are_those_of_the_container_file(manifest: dict[str, Any]) -> None:
    ports = {x["name"]: x["containerPort"] for x in container(manifest)["ports"]}
    assert ports == {"http1": 8000, "h2c": 8001}
    file = (DOCS / "deploy" / "Dockerfile").read_text("utf-8")
    assert "EXPOSE 8000 8001" in file
    options = options_of(container(manifest))
    assert "--port" not in options, "8000 is the default"
    assert options["--grpc-port"] == "8001"
    # Kubernetes' args take the place of CMD, not of ENTRYPOINT.
    assert 'ENTRYPOINT ["prunion", "serve"]' in file
    copied = re.findall(r"^COPY \S+ (/srv/\S+)$", file, re.MULTILINE)
    assert copied == [container(manifest)["args"][0]]
    assert all(container(manifest)[x]["httpGet"]["port"] == 8000 for x in PROBES)


def test_a_replica_that_goes_has_time_to_answer(manifest: dict[str, Any]) -> None:
    own = container(manifest)
    args = options_of(own)
    ready, drain = float(args["--ready-seconds"]), float(args["--drain-seconds"])
    probe = own["readinessProbe"]
    noticed = probe["periodSeconds"] * probe.get("failureThreshold", 3)
    assert ready > noticed
    assert manifest["spec"]["predictor"]["terminationGracePeriodSeconds"] > ready + drain


def test_a_server_with_its_arguments_answers_its_probes(
    manifest: dict[str, Any], bundle_path: Path
) -> None:
    own = container(manifest)
    options = options_of(own)
    command = cli.get_command(None, "serve")  # type: ignore[arg-type]
    assert command is not None
    known = {name for x in command.params for name in x.opts}
    assert options.keys() <= known
    here = {"--host": "127.0.0.1", "--grpc-port": "0", "--ready-seconds": "0"}
    words = [word for pair in {**options, **here}.items() for word in pair]
    with running(bundle_path, *words) as server:
        for name in PROBES:
            answer = httpx.get(server.url + own[name]["httpGet"]["path"])
            assert answer.status_code == 200, name
