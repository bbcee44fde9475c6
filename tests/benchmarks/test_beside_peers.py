"""The comparison with other servers: settings, environments, requests, the check of responses, and the figures."""

import base64
import json
import math
import re
import subprocess
import sys
from email.parser import BytesParser
from pathlib import Path

import pytest

from benchmarks import beside_peers
from benchmarks.beside_peers import (
    MODELS,
    Rounds,
    Subject,
    check_answers,
    p50_ratio,
    print_table,
    rate_ratio,
    report_peer,
)
from benchmarks.load import ClosedLoopResult
from benchmarks.peers.catalog import BENTOML, LITSERVE, MLSERVER, PEERS, RAY_SERVE
from benchmarks.peers.environments import (
    CONSTRAINTS,
    TUREEN_PACKAGES,
    Environment,
    PeerInstallError,
    check_python,
    constraints_for,
    environment_name,
    package_name,
    run,
)
from benchmarks.peers.search import Trial, find_best_settings

ROOT = Path(__file__).parents[2]
IMAGE = b"\x89PNG\r\n\x1a\n an image"
TOP = {"label": "stop", "probability": 0.9}


def load(succeeded, failed=0, latency_s=0.01, seconds=1.0):
    return ClosedLoopResult(succeeded, failed, seconds, [latency_s] * succeeded)


def subject(name, settings="default", connections=64):
    return Subject(name, settings, connections, server=None, requests=[])


def body_of(request):
    """The path, the content type and the body of a complete request; asserts its Content-Length."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert int(headers["Content-Length"]) == len(body)
    return lines[0].split()[1], headers["Content-Type"], body


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_the_settings_of_a_peer_are_complete_and_its_program_exists(peer):
    assert peer.defaults.keys() == peer.start.keys() >= peer.choices.keys()
    assert {"workers", "threads", "max_batch_size"} <= peer.choices.keys()
    assert (ROOT / f"{peer.module.replace('.', '/')}.py").is_file()
    assert all(peer.start[name] in values for name, values in peer.choices.items())


@pytest.mark.parametrize(("peer", "field"), [(LITSERVE, "request"), (BENTOML, "images")])
def test_a_form_request_has_the_image_as_a_file(peer, field):
    _, content_type, body = body_of(peer.request(IMAGE))
    form = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    (part,) = form.get_payload()
    assert part.get_param("name", header="Content-Disposition") == field
    assert part.get_content_type() == "image/png"
    assert IMAGE in body


def test_ray_serve_gets_the_image_as_the_body():
    assert body_of(RAY_SERVE.request(IMAGE)) == ("/", "image/png", IMAGE)


def test_mlserver_gets_the_image_in_base64():
    (tensor,) = json.loads(body_of(MLSERVER.request(IMAGE))[2])["inputs"]
    assert base64.b64decode(tensor["data"][0]) == IMAGE
    assert tensor["shape"] == [1, 1]


def test_the_response_of_mlserver_is_in_its_tensor():
    assert MLSERVER.response({"outputs": [{"data": ['{"predictions": []}']}]}) == {"predictions": []}


def test_a_peer_gets_the_versions_of_tureen_except_its_own():
    environment = Environment("peer==2.0", (3, 9), versions=("pillow==1.0", "absent==3.0"))
    text = constraints_for(environment, "# comment\nPillow==13.0.0\npeer==1.0\nnumpy==2.4.6\n")
    assert text.splitlines() == ["numpy==2.4.6", "pillow==1.0", "absent==3.0"]
    assert environment.version == "2.0"


def test_a_changed_version_of_the_peer_or_of_the_decoder_gives_another_environment():
    first, second = Environment("peer==2.0", (3, 9)), Environment("peer==2.0", (3, 9), versions=("other==1.0",))
    name = environment_name("peer", first, "pillow==13.0.0\nruff==1.0\n")
    assert environment_name("peer", first, "pillow==13.0.0\nruff==2.0\n") == name
    assert environment_name("peer", first, "pillow==14.0.0\nruff==1.0\n") != name
    assert environment_name("peer", second, "pillow==13.0.0\nruff==1.0\n") != name


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_every_server_decodes_and_runs_with_the_same_versions(peer):
    constraints = CONSTRAINTS.read_text()
    pinned = {package_name(line) for line in constraints.splitlines() if line and not line.startswith("#")}
    assert set(TUREEN_PACKAGES) <= pinned
    assert set(TUREEN_PACKAGES).isdisjoint(map(package_name, peer.environment.versions))
    assert {package_name(other) for other in peer.environment.others} <= pinned | {
        package_name(version) for version in peer.environment.versions
    }
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+", version) for version in peer.environment.versions)


@pytest.mark.parametrize(("version", "message"), [((3, 9), "at least 3.10 and below 3.13"), ((3, 13), "this is 3.13")])
def test_a_peer_that_does_not_support_this_python_is_named(version, message):
    environment = Environment("peer==2.0", (3, 10), (3, 13))
    check_python("peer", environment, (3, 12))
    with pytest.raises(PeerInstallError, match=message) as error:
        check_python("peer", environment, version)
    assert "leave peer out of --peers" in str(error.value)


def test_an_installation_that_fails_shows_the_output_of_pip():
    command = [sys.executable, "-c", "import sys; print('no matching version'); sys.exit(3)"]
    with pytest.raises(PeerInstallError, match=r"(?s)peer cannot be installed: .* status 3.*no matching version"):
        run("peer", command)


def test_the_search_keeps_the_best_value_of_each_setting_and_measures_no_settings_twice():
    measured = []

    def measure(settings):
        measured.append(settings)
        rate = 100 + 10 * (settings["workers"] == 2) - abs(settings["batch"] - 16)
        return Trial(rate=math.nan if settings["batch"] == 32 else rate, p50_ms=settings["batch"] + settings["workers"])

    best = find_best_settings(
        {"workers": 1, "batch": 1}, {"workers": 1, "batch": 8}, {"workers": (1, 2), "batch": (8, 16, 32)}, measure
    )
    assert best.throughput == {"workers": 2, "batch": 16}
    assert best.latency == {"workers": 1, "batch": 1}  # the defaults, which the search compares at the end
    assert len(measured) == len({tuple(sorted(one.items())) for one in measured})


@pytest.mark.parametrize("top", [{"label": "yield", "probability": 0.9}, {"label": "stop", "probability": 0.8}])
def test_a_peer_with_another_answer_ends_the_comparison(top):
    check_answers(LITSERVE, [{"predictions": [{"label": "stop", "probability": 0.895}]}], [TOP])
    with pytest.raises(RuntimeError, match="image 0: LitServe answers"):
        check_answers(LITSERVE, [{"predictions": [top]}], [TOP])


def test_ratios_are_medians_of_the_ratios_in_each_round():
    ours = Rounds([load(100), load(200), load(400)], [1, 1, 1])
    theirs = Rounds([load(100, latency_s=0.02), load(100, latency_s=0.02), load(100, latency_s=0.02)], [1, 1, 1])
    assert rate_ratio(ours, theirs) == 2
    assert p50_ratio(ours, theirs) == pytest.approx(0.5)
    assert ours.cpu_ms == pytest.approx([1000 / 110, 1000 / 220, 1000 / 440])


def test_the_table_counts_failures_and_has_no_figure_without_a_success(capsys):
    refused = Rounds([load(0, failed=3), load(10, failed=4)], [1, 1])
    print_table(64, {subject("Tureen"): Rounds([load(10), load(10)], [1, 1]), subject("LitServe", "best"): refused})
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:2] == ["LitServe", "best"]
    assert row[5] == "7"
    assert row[-2:] == ["unavailable", "unavailable"]


def test_a_peer_is_beaten_by_a_higher_rate_and_a_lower_latency(capsys):
    results = {}
    for connections in (64, 1):
        results[subject("Tureen", connections=connections)] = Rounds([load(200, latency_s=0.01)], [1.0])
        results[subject("LitServe", "best", connections)] = Rounds([load(100, latency_s=0.02)], [1.0])
    report_peer(LITSERVE, "small", results)
    rate, p50 = capsys.readouterr().out.splitlines()
    assert "target > 1      measured 2        yes" in rate
    assert "target < 1      measured 0.5      yes" in p50


@pytest.mark.parametrize("arguments", [["--peers", "triton"], ["--models", "large"]])
def test_an_unknown_peer_or_model_is_refused(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["beside_peers", *arguments])
    with pytest.raises(SystemExit, match="2"):
        beside_peers.main()
    known = PEERS if arguments[0] == "--peers" else MODELS
    assert f"choose from {', '.join(known)}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_litserve_is_installed_and_compared(tmp_path):
    best = {"throughput": LITSERVE.defaults, "latency": LITSERVE.defaults}
    file = tmp_path / "best.json"
    file.write_text(json.dumps({f"litserve {LITSERVE.environment.version}, small": best}))
    command = [sys.executable, "-m", "benchmarks.beside_peers", "--peers", "litserve", "--models", "small"]
    result = subprocess.run(
        [*command, "--settings", str(file), "--seconds", "0.5", "--rounds", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert result.returncode == 0, result.stderr
    rows = [
        line.split() for line in result.stdout.splitlines() if re.match(r" +(?:Tureen|LitServe) +(?:def|best)", line)
    ]
    assert [row[:2] for row in rows] == 2 * [["Tureen", "default"], ["LitServe", "default"], ["LitServe", "best"]]
    assert "small, 1: Tureen / LitServe 0.2.19 at its best, p50" in result.stdout
