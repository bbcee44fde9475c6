"""Checks deploy/compose.yaml: a valid schema, existing files, consistent references, restricted containers."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serve.settings import Settings
from tests.serve.test_image import ENV

ROOT = Path(__file__).parents[1]
FILE = ROOT / "deploy" / "compose.yaml"
MONITORING = FILE.parent / "monitoring"
DASHBOARD = json.loads((ROOT / "serve" / "monitoring" / "dashboard.json").read_text())
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES = COMPOSE["services"]


def mounts(name):
    """Returns the mounts of a service: the path in the container -> the source, with defaults for variables."""
    sources = (re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":") for volume in SERVICES[name]["volumes"])
    return {target: source for source, target, *_ in sources}


def mounted(name, path):
    """Returns the file of this repository at an absolute path in the container of a service."""
    return (FILE.parent / mounts(name)[path]).resolve()


def validate(path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_file_is_valid_by_the_schema_of_compose(tmp_path):
    assert (ran := validate(FILE)).returncode == 0, ran.stdout
    wrong = {**COMPOSE, "services": {**SERVICES, "server": {**SERVICES["server"], "read_onli": True}}}
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(wrong))
    assert "read_onli" in validate(tmp_path / "compose.yaml").stdout


def test_every_mounted_file_exists_and_every_volume_is_declared():
    sources = {source for name in SERVICES for source in mounts(name).values()}
    files = {source for source in sources if source.startswith(".")}
    assert [source for source in files if not (FILE.parent / source).exists()] == []
    assert sources - files == COMPOSE["volumes"].keys()
    assert (FILE.parent / SERVICES["server"]["build"] / "Dockerfile").is_file()


def test_images_are_pinned_and_have_health_checks():
    for name in ("prometheus", "grafana"):
        assert re.search(r":v?\d+\.\d+\.\d+$", SERVICES[name]["image"])
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_containers_are_read_only_and_ports_are_on_loopback():
    for name, service in SERVICES.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            is_file = volume.startswith((".", "$"))
            assert volume.endswith(":ro") == is_file, f"{name}: {volume}"


def test_the_server_writes_to_volumes_has_time_to_drain_and_existing_settings():
    server = SERVICES["server"]
    assert {ENV["TUREEN_STATE_DIR"], ENV["TUREEN_CACHE_DIR"], ENV["TUREEN_BUNDLE"]} == mounts("server").keys()
    assert server["environment"].keys() <= {f"TUREEN_{name.upper()}" for name in Settings.model_fields}
    drain_s = Settings.model_fields["drain_timeout_s"].default
    assert float(server["stop_grace_period"].removesuffix("s")) >= drain_s + 10
    assert server["ports"] == [f"127.0.0.1:{ENV['TUREEN_PORT']}:{ENV['TUREEN_PORT']}"]


def test_prometheus_scrapes_the_server_and_grafana_queries_prometheus():
    configuration = yaml.safe_load(mounted("prometheus", "/etc/prometheus/prometheus.yml").read_text())
    (job,) = configuration["scrape_configs"]
    assert job["job_name"] == "tureen"  # the alerts query it
    assert job["static_configs"] == [{"targets": [f"server:{ENV['TUREEN_PORT']}"]}]
    assert [f"/etc/prometheus/{name}" for name in configuration["rule_files"]] == ["/etc/prometheus/alerts.yml"]
    assert mounted("prometheus", "/etc/prometheus/alerts.yml") == ROOT / "serve" / "monitoring" / "alerts.yml"
    (source,) = yaml.safe_load(mounted("grafana", "/etc/grafana/provisioning/datasources/tureen.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    variable = DASHBOARD["templating"]["list"][0]
    assert (variable["type"], variable["query"]) == ("datasource", source["type"])
    assert source["jsonData"]["timeInterval"] == configuration["global"]["scrape_interval"]


def test_grafana_shows_the_dashboard_of_the_package_without_an_account():
    environment = SERVICES["grafana"]["environment"]
    home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted("grafana", home) == ROOT / "serve" / "monitoring" / "dashboard.json"
    (provider,) = yaml.safe_load(mounted("grafana", "/etc/grafana/provisioning/dashboards/tureen.yaml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] == str(Path(home).parent)
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"  # no admin with a known password
    assert not re.search("password|secret", yaml.safe_dump(COMPOSE), re.IGNORECASE)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (package prometheus)")
def test_prometheus_accepts_its_configuration(tmp_path):
    for path in ("/etc/prometheus/prometheus.yml", "/etc/prometheus/alerts.yml"):
        shutil.copy(mounted("prometheus", path), tmp_path / Path(path).name)
    ran = subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_page_has_the_command_of_the_file():
    (command,) = re.findall(r"^#   (docker compose .* up .*)$", FILE.read_text(), re.MULTILINE)
    assert f"\n{command}\n" in (ROOT / "docs" / "monitoring.md").read_text()
