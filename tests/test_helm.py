"""Checks deploy/helm/tureen with Helm: by default it renders deploy/kubernetes, and other values give valid objects."""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml

from serve.settings import Settings
from tests.test_kubernetes import BY_KIND, GUIDE, ROOT, VERSIONS
from tureen.version import __version__

CHART = ROOT / "deploy" / "helm" / "tureen"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

needs_helm = pytest.mark.skipif(not shutil.which("helm"), reason="helm is not installed")
OTHER_VALUES = {
    "image": {"repository": "registry.example/tureen", "tag": "1.0"},
    "imagePullSecrets": [{"name": "registry"}],
    "bundle": {"claim": "signs"},
    "store": {"secret": "postgres", "key": "url"},
    "settings": {"drain_delay_s": 5, "drain_timeout_s": 90, "max_body_memory": 1073741824, "engine": "onnxruntime"},
    "autoscaler": {"minReplicas": 3, "maxReplicas": 4, "queueSeconds": "0.2"},
    "resources": {"limits": {"nvidia.com/gpu": 1}},
    "nodeSelector": {"accelerator": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
}


@pytest.fixture
def helm(tmp_path):
    """Returns a function that runs Helm with some values; returns the finished process."""
    variables = {f"HELM_{name}_HOME": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA")}

    def run(*arguments, values=None):
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values or {}))
        command = ["helm", *arguments, str(CHART), "--values", str(tmp_path / "values.yaml")]
        return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)

    return run


@pytest.fixture
def render(helm):
    """Returns a function that renders the chart for a release and some values: kind -> object."""

    def rendered(release="tureen", values=None):
        ran = helm("template", release, values=values)
        assert ran.returncode == 0, ran.stderr
        return {found["kind"]: found for found in yaml.safe_load_all(ran.stdout) if found}

    return rendered


def container_of(objects):
    return objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]


@needs_helm
def test_the_chart_renders_the_manifests_by_default(render):
    rendered = render()
    manifests = {kind: copy.deepcopy(BY_KIND[kind]) for kind in rendered}
    assert BY_KIND.keys() - manifests.keys() == {"Kustomization", "InferenceService", "ServingRuntime"}
    for objects in (rendered, manifests):
        container_of(objects)["env"].sort(key=lambda variable: variable["name"])  # Helm sorts the settings
    assert rendered == manifests


@needs_helm
@pytest.mark.parametrize("version", VERSIONS)
def test_other_values_give_valid_objects(render, version):
    rendered = render("signs", OTHER_VALUES)
    for found in rendered.values():
        kubernetes_validate.validate(found, version, strict=True)
        assert found["metadata"]["name"] == "signs"
    pod, container = rendered["Deployment"]["spec"]["template"]["spec"], container_of(rendered)
    variables = {variable["name"]: variable for variable in container["env"]}
    assert container["image"] == "registry.example/tureen:1.0"
    assert variables["TUREEN_MAX_BODY_MEMORY"]["value"] == "1073741824"
    assert variables["TUREEN_ENGINE"]["value"] == "onnxruntime"
    assert variables["TUREEN_STORE"]["valueFrom"]["secretKeyRef"] == {"name": "postgres", "key": "url"}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "signs"
    assert pod["terminationGracePeriodSeconds"] == 5 + 90 + 20
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert [pod[name] for name in ("imagePullSecrets", "nodeSelector", "tolerations")] == [
        OTHER_VALUES[name] for name in ("imagePullSecrets", "nodeSelector", "tolerations")
    ]
    scaled = rendered["HorizontalPodAutoscaler"]["spec"]
    assert (scaled["minReplicas"], scaled["maxReplicas"]) == (3, 4)
    labels = rendered["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == rendered["Service"]["spec"]["selector"] == {"app.kubernetes.io/name": "signs"}


@needs_helm
def test_without_the_autoscaler_the_number_of_pods_is_fixed(render):
    rendered = render(values={"autoscaler": {"enabled": False, "minReplicas": 3}})
    assert "HorizontalPodAutoscaler" not in rendered
    assert rendered["Deployment"]["spec"]["replicas"] == 3


@needs_helm
def test_the_command_of_the_page_renders(tmp_path):
    (command,) = re.findall(r"^helm install (.*\\\n.*)$", GUIDE, re.MULTILINE)
    words = shlex.split(command.replace("\\\n", ""))
    environment = {**os.environ, "HELM_CACHE_HOME": str(tmp_path), "HELM_CONFIG_HOME": str(tmp_path)}
    ran = subprocess.run(["helm", "template", *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "registry.example/tureen:latest" in ran.stdout


@needs_helm
def test_helm_finds_no_fault_in_the_chart(helm):
    ran = helm("lint", "--strict")
    assert ran.returncode == 0, ran.stdout


@needs_helm
def test_helm_refuses_values_that_the_schema_does_not_allow(helm):
    ran = helm("template", "tureen", values={"imagge": {}})
    assert ran.returncode != 0
    assert "imagge" in ran.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        {"imagge": {}},
        {"image": {"repository": "tureen", "tag": 1.0}},
        {"settings": {**VALUES["settings"], "port": 9000}},  # the chart sets it
        {"settings": {**VALUES["settings"], "max-batch": 8}},
        {"settings": {**VALUES["settings"], "drain_delay_s": "10"}},
        {"settings": {"max_batch": 8}},
        {"autoscaler": {**VALUES["autoscaler"], "queueSeconds": "0.1 s"}},
    ],
)
def test_the_schema_accepts_the_defaults_and_refuses_wrong_values(wrong):
    jsonschema.validate(VALUES, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**VALUES, **wrong}, SCHEMA)


def test_the_chart_has_the_oldest_checked_version_of_kubernetes_and_that_of_the_server():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={VERSIONS[0]}.0-0"
    assert chart["appVersion"] == __version__


def test_the_schema_names_every_value_and_existing_settings():
    assert SCHEMA["properties"].keys() - {"global"} == VALUES.keys()
    chosen = SCHEMA["properties"]["settings"]["propertyNames"]["not"]["enum"]
    assert {*VALUES["settings"], *chosen} <= Settings.model_fields.keys()
