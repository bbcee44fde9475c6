"""docs/http-api.md is compared with the code: routes, codes, statuses, options and defaults. Its commands are run."""

import json
import re
import shutil
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from serve.http.problems import INTERNAL, OIP_PROBLEM_TYPES, OPERATOR_PROBLEM_TYPES, PROBLEM_TYPES
from serve.inference.admission import DEFAULT_QUEUE_S
from serve.settings import Settings
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

PAGE = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SERVE, *COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
UNITS = {"": 1, " million": 10**6, " MiB": 2**20, " GiB": 2**30}


def section(start, end):
    return PAGE[PAGE.index(start) : PAGE.index(end)]


def codes(text):
    return {(int(status), code) for status, code in re.findall(r"^\| (\d{3}) \| `(\w+)` \|", text, re.MULTILINE)}


def rows(kinds):
    return {(kind.status, kind.code) for kind in kinds}


def routes(text):
    return {(method, path) for method, path in re.findall(r"^\| `([A-Z]+) (/[^`?]*)` \|", text, re.MULTILINE)}


def number(text):
    amount, unit = re.fullmatch(r"([\d,.]+)( \w+)?", text).groups(default="")
    return float(amount.replace(",", "")) * UNITS[unit]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    directory = tmp_path_factory.mktemp("page")
    shutil.copytree(EXAMPLES / "cifar10", directory / "bundle")
    pixels = load_bundle(directory / "bundle").golden.pixels[0]
    Image.fromarray(pixels).save(directory / "photo.jpg", quality=95)
    return directory


def test_every_code_has_its_row_with_its_status_and_no_other_row_exists():
    assert codes(section("## Errors", "The operators' listener has these codes too")) == rows(
        [*PROBLEM_TYPES.values(), INTERNAL]
    )
    assert codes(section("The operators' listener has these codes too", "### Under `/v2`")) == rows(
        OPERATOR_PROBLEM_TYPES.values()
    )
    assert codes(section("### Under `/v2`", "## Limits")) == rows(OIP_PROBLEM_TYPES.values())


def test_every_code_in_the_tables_of_limits_exists_with_its_status():
    named = {(int(status), code) for status, code in re.findall(r"\b(\d{3}) `([a-z_]+)`", PAGE)}
    known = rows([*PROBLEM_TYPES.values(), *OPERATOR_PROBLEM_TYPES.values(), *OIP_PROBLEM_TYPES.values(), INTERNAL])
    assert named <= known | {(404, "not_found"), (405, "method_not_allowed")}
    assert len(named) >= 10


def test_every_limit_is_on_the_page_with_its_default():
    table = dict(re.findall(r"^\| `--([a-z0-9-]+)` \|[^|]+\| ([^|]+) \|", section("## Limits", "## Requests"), re.M))
    for name, default in table.items():
        field = Settings.model_fields[name.replace("-", "_")]
        expected = 1000 * DEFAULT_QUEUE_S if name == "max-queue-ms" else field.default  # its default may be longer
        assert number(default) == expected, name
    for name in Settings.model_fields:
        if name.startswith(("max_", "timeout", "drain")) or name.endswith(("_timeout_s", "_body_rate")):
            assert name.replace("_", "-") in table, name


def test_every_option_of_the_page_exists():
    named = set(re.findall(r"--([a-z0-9-]+)", "".join(re.findall(r"`--[^`\n]+`", PAGE))))
    options = {name.replace("_", "-"): field.annotation is bool for name, field in Settings.model_fields.items()}
    assert named <= {*options, *(f"no-{name}" for name, is_boolean in options.items() if is_boolean)}


def test_every_command_runs_and_every_route_is_on_the_page(workplace, run_command, served, admin_port):
    responses = []
    with served(SERVE, workplace) as url:
        for command in COMMANDS:
            result = run_command(command.replace("8000", url.rpartition(":")[2]), workplace)
            assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
            responses.append(json.loads(result.stdout))
        with urllib.request.urlopen(f"{url}/openapi.json") as response:
            public = json.load(response)["paths"]
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/openapi.json") as response:
            operators = json.load(response)["paths"]
    one, several, sweep, by_strength = responses
    assert (one["beta"], one["beta_source"], len(one["predictions"])) == (0.7, "request", 3)
    assert [result["beta"] for result in several["results"]] == [0, 1]
    curve = load_bundle(workplace / "bundle").manifest.strength
    assert sweep["betas"] == [0, 0.25, 0.5, 0.75, 1]
    assert sweep["strengths"] == [curve.strength_at(beta) for beta in sweep["betas"]]
    assert (by_strength["strength"], by_strength["beta"]) == (0.5, curve.beta_at(0.5))
    assert all(f"| `{name}` |" in section("## Classify an image", "## Classify several") for name in one)
    assert all(f"| `{name}` |" in section("## Classify an image", "## Parameters") for name in sweep)

    pages = (
        "/",
        "/ui",
        "/ui/model",
        "/ui/gallery",
        "/ui/static/{name}",
        "/docs",
        "/docs/static/{name}",
        "/openapi.json",
    )
    not_in_the_schema = {("GET", path) for path in pages}
    version = re.escape("/versions/{version}")
    found = {(method.upper(), re.sub(version, "", path)) for path, methods in public.items() for method in methods}
    assert routes(section("The public listener", "The operators' listener, on")) == found | not_in_the_schema
    found = {(method.upper(), path) for path, methods in operators.items() for method in methods}
    assert routes(section("The operators' listener, on", "`GET /`, `GET /ui`, `GET /ui/model`")) == found
