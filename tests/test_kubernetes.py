"""Checks deploy/kubernetes: valid schemas, consistent references, and a server that passes the probes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tests.patience import DEADLINE_S
from tureen.bundle.examples import EXAMPLES

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()
KSERVE, RUNTIME, KUSTOMIZATION = (FOLDER / f"{name}.yaml" for name in ("kserve", "kserve-runtime", "kustomization"))
VERSIONS = ("1.30", "1.37")  # the oldest and the newest checked


def read(path):
    return yaml.safe_load(path.read_text())


BY_KIND = {read(path)["kind"]: read(path) for path in FOLDER.glob("*.yaml")}
DEPLOYMENT, SERVICE = BY_KIND["Deployment"], BY_KIND["Service"]
POD = DEPLOYMENT["spec"]["template"]
PREDICTOR = BY_KIND["InferenceService"]["spec"]["predictor"]
SERVING_RUNTIME = BY_KIND["ServingRuntime"]["spec"]
CONTAINERS = {
    "deployment": (POD["spec"], POD["spec"]["containers"][0]),
    "kserve": (PREDICTOR, PREDICTOR["containers"][0]),
    "kserve-runtime": (SERVING_RUNTIME, SERVING_RUNTIME["containers"][0]),
}
# The fields of a ServingRuntime that are not those of its pod.
OF_THE_RUNTIME = {"supportedModelFormats", "protocolVersions", "multiModel", "annotations"}
DEFAULT_GRACE_S = 30  # terminationGracePeriodSeconds of a pod that has none


def environment(container):
    return {variable["name"]: variable.get("value") for variable in container["env"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"])
def test_each_manifest_is_valid_by_the_published_schema(kind, version):
    kubernetes_validate.validate(BY_KIND[kind], version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_kserve_derives_a_valid_pod(version):
    spec = {name: value for name, value in PREDICTOR.items() if name not in ("minReplicas", "maxReplicas")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_kserve_derives_a_valid_pod_from_the_runtime_and_the_service_of_the_page(version):
    (block,) = (
        block for block in re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL) if "kind:" in block
    )
    model = yaml.safe_load(block)["spec"]["predictor"]["model"]
    (model_format,) = SERVING_RUNTIME["supportedModelFormats"]
    assert model["modelFormat"]["name"] == model_format["name"]
    assert model["protocolVersion"] in SERVING_RUNTIME["protocolVersions"] == ["v2", "grpc-v2"]
    (container,) = SERVING_RUNTIME["containers"]
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    variables = environment(container)
    assert ports == {"http1": variables["TUREEN_PORT"], "h2c": variables["TUREEN_GRPC_PORT"]}
    assert variables["TUREEN_BUNDLE"] == "/mnt/models"
    spec = {name: value for name, value in SERVING_RUNTIME.items() if name not in OF_THE_RUNTIME}
    spec["containers"] = [{**container, "env": container["env"] + model["env"]}]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, version, strict=True)


def test_a_wrong_field_is_detected():
    wrong = {**SERVICE, "spec": {**SERVICE["spec"], "selektor": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_all_manifests_are_applied_and_refer_to_one_another():
    applied = set(read(KUSTOMIZATION)["resources"])
    assert applied == {path.name for path in FOLDER.glob("*.yaml")} - {KSERVE.name, RUNTIME.name, KUSTOMIZATION.name}
    labels = POD["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels == SERVICE["spec"]["selector"]
    assert BY_KIND["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    scaled = BY_KIND["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    names = {name for collected in Metrics().registry._collector_to_names.values() for name in collected}
    (metric,) = [metric["pods"]["metric"]["name"] for metric in scaled["metrics"]]
    assert metric in names
    assert metric in (ROOT / "docs" / "kubernetes.md").read_text()
    (port,) = SERVICE["spec"]["ports"]
    (listening,) = POD["spec"]["containers"][0]["ports"]
    assert port["targetPort"] == listening["name"]
    assert str(listening["containerPort"]) == POD["metadata"]["annotations"]["prometheus.io/port"]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kubectl_renders_the_manifests_that_it_applies():
    ran = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    rendered = {found["kind"]: found for found in yaml.safe_load_all(ran.stdout)}
    assert rendered == {kind: BY_KIND[kind] for kind in rendered}
    assert len(rendered) == len(read(KUSTOMIZATION)["resources"])


@pytest.mark.parametrize("where", CONTAINERS)
def test_a_pod_has_time_to_drain_and_only_existing_settings(where):
    pod, container = CONTAINERS[where]
    variables = environment(container)
    known = {f"TUREEN_{name.upper()}" for name in Settings.model_fields} | {"STORAGE_URI"}
    assert variables.keys() <= known
    drain_s = float(variables["TUREEN_DRAIN_DELAY_S"]) + float(variables["TUREEN_DRAIN_TIMEOUT_S"])
    assert pod.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S) >= drain_s + 10
    written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    for name in ("TUREEN_STATE_DIR", "TUREEN_CACHE_DIR"):  # the rest of the container is read-only
        assert any(Path(variables[name]).is_relative_to(path) for path in written)
    assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("where", CONTAINERS)
def test_the_server_starts_with_the_settings_of_the_pod_and_passes_the_probes(where, tmp_path):
    _, container = CONTAINERS[where]
    variables = {name: value for name, value in environment(container).items() if value and name.startswith("TUREEN_")}
    overrides = {  # paths and ports of this machine instead of those in the container
        "TUREEN_BUNDLE": str(EXAMPLES / "cifar10"),
        "TUREEN_STATE_DIR": str(tmp_path / "state"),
        "TUREEN_CACHE_DIR": str(tmp_path / "cache"),
        "TUREEN_PORT": "0",
        "TUREEN_ADMIN_PORT": "0",
        **({"TUREEN_GRPC_PORT": "0"} if "TUREEN_GRPC_PORT" in variables else {}),
        "TUREEN_DRAIN_DELAY_S": "0",
        # All interfaces, as in the container; the admin listener stays on loopback.
        "TUREEN_HOST": variables["TUREEN_HOST"],
    }
    log = tmp_path / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "tureen.cli", "serve"], env={**os.environ, **variables, **overrides}, stderr=stream
        )
    try:
        end = time.monotonic() + DEADLINE_S
        while not (found := re.search(r"listening on http://[^ ]*:(\d+)", log.read_text())):
            assert time.monotonic() < end
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        probes = [container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
        for path in (*probes, "/metrics"):
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}{path}") as response:
                        assert response.status == 200
                    break
                except (urllib.error.HTTPError, OSError) as error:
                    assert getattr(error, "code", 503) == 503
                    assert time.monotonic() < end
                    time.sleep(0.05)
    finally:
        server.terminate()
        assert server.wait(DEADLINE_S) == 0


def test_the_documented_command_creates_the_first_credential_outside_pod_directories(tmp_path):
    (line,) = re.findall(r"^kubectl exec deployment/tureen -- (.* make ada .*)$", GUIDE, re.MULTILINE)
    assert line in (FOLDER / "deployment.yaml").read_text()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pod = {
        "PATH": path,
        "TUREEN_BUNDLE": str(EXAMPLES / "cifar10"),
        "TUREEN_STORE": f"sqlite:///{tmp_path / 'store.db'}",
    }

    def run(command, state):
        environment = {**os.environ, **pod, "TUREEN_STATE_DIR": str(tmp_path / state)}
        return subprocess.check_output(shlex.split(command), env=environment, text=True)

    assert len(run(line, "one").split()) == 1  # the token
    assert run(line.replace("make ada --role operate", "list"), "another").startswith("ada  operate ")


def test_the_guide_makes_a_credential_before_the_first_change():
    assert GUIDE.index("make ada") < GUIDE.index("tureen beta get")
