"""The operators' listener of real servers: changes, the responses to them, and refused requests."""

import base64
import contextlib
import io
import json
import os
import signal
import sqlite3
import time

import pytest
from PIL import Image

from serve.control.credential_store import Credentials
from serve.control.revision_store import RevisionStore
from tests.patience import DEADLINE_S
from tureen.bundle.bundle import MANIFEST, load_bundle
from tureen.bundle.examples import EXAMPLES

SOON_S = 20


@pytest.fixture(scope="module")
def image():
    pixels = load_bundle(EXAMPLES / "cifar10").golden.pixels[0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def classify(server, image, query="", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    status, _, body = server.ask("POST", f"/classify{query}", image, headers)
    return status, json.loads(body)


def test_an_operator_changes_the_default_and_every_response_has_it(start_operated, image):
    server, operator = start_operated()
    status, head, before = operator.ask("GET", "/admin/beta")
    assert (status, head["ETag"], before["default_beta_source"]) == (200, '"0"', "bundle")
    change = {"default_beta": 0.8, "reason": "attack on uploads"}
    _, _, would_be = operator.ask("PUT", "/admin/beta?dry_run=true", change, revision=0)
    assert (would_be["revision"], would_be["default_beta"], would_be["dry_run"]) == (0, 0.8, True)
    assert classify(server, image)[1]["revision"] == 0
    status, head, after = operator.ask("PUT", "/admin/beta", change, revision=0)
    assert (status, head["ETag"], after["default_beta"]) == (200, '"1"', 0.8)
    assert after["expected"]["robust"]["value"] > after["before"]["robust"]["value"]
    answer = classify(server, image)[1]
    assert (answer["beta"], answer["beta_source"], answer["revision"]) == (0.8, "operator", 1)
    assert operator.ask("PUT", "/admin/beta", change, revision=0)[::2][0] == 412
    assert operator.ask("PUT", "/admin/beta", change)[0] == 428
    _, _, back = operator.ask("POST", "/admin/beta/rollback", {"revision": 0, "reason": "over"}, revision=1)
    assert (back["revision"], back["default_beta_source"]) == (2, "bundle")
    rows = operator.ask("GET", "/admin/beta/history")[2]["revisions"]
    assert [(row["who"], row["action"], row["reason"]) for row in rows] == [
        ("local", "rollback to 0", "over"),
        ("local", "set", "attack on uploads"),
    ]
    assert operator.ask("GET", "/admin/beta/history/verify")[2] == {"verified": 2}
    assert server.metric("tureen_settings_revision") == 2


def test_a_temporary_change_reverts_and_a_planned_one_can_be_cancelled(start_operated, image):
    server, operator = start_operated()
    state = operator.change(default_beta=0.9, ttl_s=1)
    assert [plan["kind"] for plan in state["pending"]] == ["revert"]
    waited = operator.ask("GET", f"/admin/beta?after={state['revision']}&wait_s={SOON_S}")[2]
    assert (waited["revision"], waited["default_beta_source"]) == (2, "bundle")
    assert classify(server, image)[1]["beta"] == 0.0
    state = operator.change(default_beta=0.9, ramp_s=600)
    plan_id = state["pending"][0]["id"]
    path = f"/admin/beta/pending/{plan_id}?reason=enough"
    assert operator.ask("DELETE", path, revision=3)[2]["pending"] == []
    assert operator.ask("DELETE", path, revision=4)[0] == 422


def test_a_strength_becomes_the_beta_of_the_served_model_within_the_bounds(start_operated, example_bundle, image):
    manifest = json.loads((example_bundle / MANIFEST).read_text())
    curve = {"betas": [0, 0.6, 1], "strengths": [0, 0.5, 1], "n": 9}
    (example_bundle / MANIFEST).write_text(json.dumps({**manifest, "schema_version": 3, "strength": curve}))
    server, operator = start_operated(bundle=example_bundle)
    assert operator.ask("GET", "/admin/beta")[2]["default_strength"] == 0
    change = {"default_strength": 0.5, "reason": "attack on uploads"}
    _, _, would_be = operator.ask("PUT", "/admin/beta?dry_run=true", change, revision=0)
    assert (would_be["default_strength"], would_be["default_beta"], would_be["revision"]) == (0.5, 0.6, 0)
    operator.change(default_strength=0.5, beta_min=0.55)
    _, _, state = operator.ask("GET", "/admin/beta")
    assert (state["default_strength"], state["default_beta"], state["revision"]) == (0.5, 0.6, 1)
    answer = classify(server, image)[1]
    assert (answer["strength"], answer["beta"], answer["beta_source"]) == (0.5, 0.6, "operator")
    assert classify(server, image, "?strength=0.4")[1]["code"] == "beta_out_of_bounds"
    shown = classify(server, image, "?beta=0.55")[1]["strength"]
    assert (shown, classify(server, image, f"?strength={shown}")[1]["beta"]) == (0.4583, 0.55)
    assert json.loads(server.ask("POST", f"/sweep?strengths={shown},1", image, {})[2])["betas"] == [0.55, 1]
    ramp = operator.ask("PUT", "/admin/beta?dry_run=true", {**change, "default_strength": 1, "ramp_s": 60}, revision=1)
    assert [step["default_beta"] for step in ramp[2]["pending"]][:2] == [0.64, 0.68]
    assert classify(server, image, "?strength=0.75")[1]["beta"] == 0.8


def test_settings_survive_the_server(start_operated):
    server, operator = start_operated()
    operator.change(default_beta=0.6)
    assert server.end() == 0
    _, operator = start_operated()
    assert operator.ask("GET", "/admin/beta")[2]["default_beta"] == 0.6


def test_bounds_apply_to_the_beta_of_clients_and_a_key_stands_for_the_beta_of_the_operator(start_operated, image):
    server, operator = start_operated()
    operator.change(default_beta=0.8, beta_min=0.5, policies={"uploads": 0.9, "internal": 0.0})
    assert classify(server, image, "?beta=0.4")[1]["code"] == "beta_out_of_bounds"
    assert classify(server, image, "?policy=internal")[1]["code"] == "beta_out_of_bounds"
    assert classify(server, image, "?policy=none")[1]["code"] == "unknown_policy"
    assert classify(server, image, "?policy=uploads&beta=0.9")[0] == 422
    assert classify(server, image, "?policy=uploads")[1]["beta_source"] == "policy"
    assert json.loads(server.ask("POST", "/sweep?betas=0,1", image)[2])["code"] == "beta_out_of_bounds"
    assert server.ask("POST", "/sweep?betas=0.5,1", image)[0] == 200
    assert classify(server, image, x_api_key="whatever a gateway uses")[0] == 200
    key = operator.ask("PUT", "/admin/keys/crawler", {"policy": "internal", "reason": "trusted"}, revision=1)[2]["key"]
    answer = classify(server, image, x_api_key=key)[1]
    assert (answer["beta"], answer["beta_source"]) == (0.0, "key")
    assert classify(server, image, x_api_key="wrong")[0] == 401
    assert classify(server, image, "?beta=0.9", x_api_key="wrong")[0] == 401
    assert key not in json.dumps(operator.ask("GET", "/admin/beta/history")[2])
    operator.change(clients_may_choose=False)
    assert classify(server, image, "?beta=0.9")[1]["code"] == "choice_not_allowed"
    assert classify(server, image)[1]["beta"] == 0.8
    assert operator.ask("DELETE", "/admin/keys/crawler?reason=left", revision=3)[0] == 200


def test_a_request_without_a_beta_gets_at_least_the_floor(start_operated, image):
    server, operator = start_operated()
    assert classify(server, image)[1]["beta"] == 0
    assert operator.change(beta_min=0.5)["default_beta"] == 0.5
    answer = classify(server, image)[1]
    assert (answer["beta"], answer["beta_source"]) == (0.5, "operator")


def test_an_old_copy_of_the_store_does_not_restore_revoked_credentials(start_operated, tmp_path):
    server, operator = start_operated()
    file = next((tmp_path / "state").glob("*.db"))
    with contextlib.closing(RevisionStore(f"sqlite:///{file}")) as store:
        credentials = Credentials(store)
        ada = credentials.make("ada", "operate")
        operator.change(default_beta=0.4)
        with (
            contextlib.closing(sqlite3.connect(file)) as now,
            contextlib.closing(sqlite3.connect(tmp_path / "old")) as old,
        ):
            now.backup(old)
        operator.change(default_beta=0.9)
        credentials.revoke("ada")
    assert operator.ask("GET", "/admin/beta", token=ada)[0] == 401
    (tmp_path / "old").replace(file)
    for side in ("-wal", "-shm"):
        file.with_name(file.name + side).unlink(missing_ok=True)
    assert operator.ask("GET", "/admin/beta", token=ada)[0] == 401
    status, _, state = operator.ask("GET", "/admin/beta")
    assert (status, state["default_beta"]) == (200, 0.9)
    status, _, refusal = operator.ask("PUT", "/admin/beta", {"default_beta": 0.1, "reason": "r"}, revision=2)
    assert (status, refusal["code"]) == (503, "store_unreachable")
    assert operator.ask("GET", "/admin/beta/history")[0] == 503
    server.end()
    _, operator = start_operated()  # what is in force holds over a restart
    assert operator.ask("GET", "/admin/beta")[2]["default_beta"] == 0.9


def test_a_revoked_credential_stays_revoked_after_a_restart(start_operated, run_tureen, tmp_path):
    server, operator = start_operated()
    where = ("credentials", EXAMPLES / "cifar10", "--state-dir", tmp_path / "state")
    assert run_tureen(*where, "revoke", "local").returncode == 0
    assert operator.ask("GET", "/admin/beta")[0] == 401
    server.end()
    server, operator = start_operated()
    assert operator.ask("GET", "/admin/beta")[0] == 401
    assert "was revoked" in server.log_file.read_text()
    for name in ("", "a b", "x" * 64, "two\nlines"):
        assert run_tureen(*where, "make", name).returncode == 1
    assert operator.ask("GET", "/admin/beta", token=run_tureen(*where, "make", "ada").stdout.strip())[0] == 200


def test_a_policy_is_chosen_over_the_inference_protocol_too(start_operated, image):
    server, operator = start_operated()
    operator.change(policies={"uploads": 0.9})
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(image).decode()]}

    def infer(**parameters):
        body = {"inputs": [tensor], "parameters": parameters}
        status, _, answer = server.ask("POST", "/v2/models/cifar10/infer", json.dumps(body))
        return status, json.loads(answer)

    status, answer = infer(policy="uploads")
    assert (status, answer["parameters"]["beta"], answer["parameters"]["beta_source"]) == (200, 0.9, "policy")
    for wrong in ({"policy": "none"}, {"policy": "uploads", "beta": 0.9}, {"policy": 1}):
        assert infer(**wrong)[0] == 400


def test_a_canary_gets_its_share_and_its_clients_stay(start_operated, image):
    server, operator = start_operated()
    operator.change(default_beta=0.2, canary={"beta": 0.9, "share": 0.3})
    sides = [classify(server, image, x_request_key=f"user {n}")[1]["beta_source"] for n in range(100)]
    assert 15 <= sides.count("canary") <= 45
    assert [classify(server, image, x_request_key=f"user {n}")[1]["beta_source"] for n in range(20)] == sides[:20]
    operator.change(canary={"beta": 0.9, "share": 0.6})
    more = [classify(server, image, x_request_key=f"user {n}")[1]["beta_source"] for n in range(100)]
    assert all(now == "canary" for was, now in zip(sides, more, strict=True) if was == "canary")
    for source in ("canary", "operator"):
        assert any(
            line.startswith("tureen_classifications_total") and f'"{source}"' in line
            for line in server.ask("GET", "/metrics")[2].decode().splitlines()
        )


def test_every_worker_applies_a_change_and_a_replaced_one_starts_with_it(start_operated, image):
    server, operator = start_operated("--workers", 2, processes=2)
    operator.change(default_beta=0.7)
    deadline = time.monotonic() + SOON_S
    while [w["revision"] for w in operator.ask("GET", "/admin/beta")[2]["workers"]] != [1, 1]:
        assert time.monotonic() < deadline
    assert {classify(server, image)[1]["revision"] for _ in range(20)} == {1}
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    server.wait_for(lambda: server.metric("tureen_process_starts_total") == 3, "a third process")
    server.wait_until_ready(2)
    assert {classify(server, image)[1]["revision"] for _ in range(20)} == {1}


def test_a_public_admin_address_needs_a_created_credential(start_server, tmp_path):
    server = start_server("--state-dir", tmp_path / "state", "--admin-host", "0.0.0.0")
    assert server.process.wait(DEADLINE_S) == 1
    assert "credential" in server.log_file.read_text()


WRONG_BETAS = [
    "-0.0",
    "1" + "0" * 400,
    "NaN",
    "Infinity",
    "-Infinity",
    "1e309",
    '"0.5"',
    "true",
    "[]",
    "{}",
    "-0.1",
    "1.1",
    '"robust"',
]
WAYS_IN = [
    *(
        ("PUT", "/admin/beta", f'{{"default_beta": {beta}, "reason": "r"}}', {"If-Match": '"0"'})
        for beta in WRONG_BETAS
    ),
    ("PUT", "/admin/beta", '{"default_beta": 0.5, "default_beta": 0.9, "reason": "r"}', {"If-Match": '"0"'}),
    ("PUT", "/admin/beta", '{"default_beta": 0.5}', {"If-Match": '"0"'}),
    ("PUT", "/admin/beta", '{"default_beta": 0.5, "reason": "r", "who": "root"}', {"If-Match": '"0"'}),
    ("PUT", "/admin/beta", "[" * 5000, {"If-Match": '"0"'}),
    ("PUT", "/admin/beta", b"\xff\xfe", {"If-Match": '"0"'}),
    ("PUT", "/admin/beta", "", {"If-Match": '"0"'}),
    ("PUT", "/admin/beta", '{"reason": "' + "x" * 70_000 + '"}', {"If-Match": '"0"'}),
    *(
        ("PUT", "/admin/beta", '{"default_beta": 0.5, "reason": "r"}', {"If-Match": match})
        for match in ("*", "0", 'W/"0"', '"-1"', '"1"', '"0", "1"', '""', '"99999999999999999999"')
    ),
    ("PUT", "/admin/beta", '{"default_beta": 0.5, "reason": "r"}', {}),
    ("PUT", "/admin/beta", '{"default_beta": 0.5, "reason": "r"}', {"If-Match": '"0"', "Host": "evil.example"}),
    ("PUT", "/admin/beta", '{"default_beta": 0.5, "reason": "r"}', {"If-Match": '"0"', "Host": "localhost/docs?"}),
    ("POST", "/admin/beta", '{"default_beta": 0.5, "reason": "r"}', {"If-Match": '"0"'}),
    ("POST", "/admin/beta/rollback", '{"revision": 7, "reason": "r"}', {"If-Match": '"0"'}),
    ("POST", "/admin/beta/rollback", '{"revision": true, "reason": "r"}', {"If-Match": '"0"'}),
    ("POST", "/admin/beta/rollback", '{"revision": -1, "reason": "r"}', {"If-Match": '"0"'}),
    ("POST", "/admin/beta/rollback", '{"revision": 9223372036854775808, "reason": "r"}', {"If-Match": '"0"'}),
    ("POST", "/admin/beta/rollback?dryrun=true", '{"revision": 0, "reason": "r"}', {"If-Match": '"0"'}),
    ("PUT", "/admin/beta?dryrun=true", '{"default_beta": 0.5, "reason": "r"}', {"If-Match": '"0"'}),
    ("PUT", "/admin/beta?dry_run=true&dry_run=false", '{"default_beta": 0.5, "reason": "r"}', {"If-Match": '"0"'}),
    ("PUT", "/admin/keys/a?dry_run=true", '{"policy": "p", "reason": "r"}', {"If-Match": '"0"'}),
    ("GET", "/admin/beta/history?before=1000000000000000000000000000000", None, {}),
    ("DELETE", "/admin/beta", None, {"If-Match": '"0"'}),
    ("DELETE", "/admin/beta/pending/..%2f..?reason=r", None, {"If-Match": '"0"'}),
    ("PUT", "/admin/keys/..%2fbeta", '{"policy": "p", "reason": "r"}', {"If-Match": '"0"'}),
    ("PUT", "/admin/keys/a", '{"policy": "none", "reason": "r"}', {"If-Match": '"0"'}),
    ("GET", "/admin/beta/history?limit=-1", None, {}),
    ("GET", "/admin/beta/history?limit=1e9", None, {}),
    ("GET", "/admin/beta?after=-1", None, {}),
]
OTHERS = [
    (method, path, body, {"If-Match": '"0"', **headers})
    for headers in (
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic bG9jYWw6"},
        {"Authorization": "Bearer tureen_"},
        {"Authorization": "bearer \x00"},
        {"Cookie": "token=x", "Authorization": "x"},
        {"X-Forwarded-For": "127.0.0.1", "Authorization": "x"},
    )
    for method, path, body in (
        ("PUT", "/admin/beta", '{"default_beta": 0.5, "reason": "r"}'),
        ("GET", "/admin/beta", None),
        ("GET", "/metrics", None),
    )
]
PATHS = ["/admin/beta/", "//admin/beta", "/admin/./beta", "/admin/../admin/beta", "/ADMIN/BETA", "/admin%2fbeta"]


def test_more_than_forty_ways_in_are_refused_and_change_nothing(start_operated):
    server, operator = start_operated()
    reader = type(server)(None, operator.port, None)
    ways = [
        *((m, p, b, {"Authorization": f"Bearer {operator.token}", **h}) for m, p, b, h in WAYS_IN),
        *OTHERS,
        *(("PUT", path, '{"default_beta": 0.5, "reason": "r"}', {"If-Match": '"0"'}) for path in PATHS),
    ]
    assert len(ways) >= 60
    for method, path, body, headers in ways:
        status, _, content = reader.ask(method, path, body, headers)
        assert 400 <= status < 500, (method, path, body, headers, content)
        text = content.decode()
        assert operator.token not in text
        for secret in ("pydantic", "sqlalchemy", "Traceback", "/state", ".py", "site-packages"):
            assert secret not in text, (path, text)
    assert operator.ask("GET", "/admin/beta")[2]["revision"] == 0
    for path in ("/admin/beta", "/admin/beta/history", "/admin/me"):  # and none of it on the public listener
        assert server.ask("GET", path, headers={"Authorization": f"Bearer {operator.token}"})[0] == 404


def test_a_read_only_credential_changes_nothing(start_operated, run_tureen, tmp_path):
    _, operator = start_operated()
    made = run_tureen("credentials", EXAMPLES / "cifar10", "--state-dir", tmp_path / "state", "make", "dashboard")
    reader = made.stdout.strip()
    assert operator.ask("GET", "/admin/beta", token=reader)[0] == 200
    assert operator.ask("GET", "/admin/me", token=reader)[2] == {"name": "dashboard", "role": "read"}
    change = {"default_beta": 0.5, "reason": "r"}
    assert operator.ask("PUT", "/admin/beta", change, revision=0, token=reader)[0] == 403
    run_tureen("credentials", EXAMPLES / "cifar10", "--state-dir", tmp_path / "state", "revoke", "dashboard")
    assert operator.ask("GET", "/admin/beta", token=reader)[0] == 401


def test_tureen_beta_is_all_an_operator_needs(start_operated, run_tureen):
    _, operator = start_operated()
    curve = load_bundle(EXAMPLES / "cifar10").manifest.strength
    where = ("--url", operator.url, "--token", operator.token)
    assert "default β 0, strength 0 (bundle), clean accuracy" in run_tureen("beta", "get", *where).stdout
    unasked = run_tureen("beta", "set", "0.8", "--reason", "attack", *where)
    assert (unasked.returncode, "give --yes" in unasked.stderr) == (1, True)
    assert "now " in unasked.stdout
    assert "then " in unasked.stdout
    done = run_tureen("beta", "set", "0.8", "--reason", "attack", "--for", "1h", "--yes", *where)
    assert done.returncode == 0, done.stderr
    assert f"revision 1: default β 0.8, strength {curve.strength_at(0.8):g} (operator)" in done.stdout
    assert "revert to the server's default β" in done.stdout
    assert run_tureen("beta", "rollback", "0", "--reason", "over", "--yes", *where).returncode == 0
    history = run_tureen("beta", "history", "--verify", *where).stdout
    assert "local  set: the server's default β → 0.8, planned: " in history
    assert "2 revisions" in history
    assert json.loads(run_tureen("beta", "get", "--json", *where).stdout)["revision"] == 2
    strength = run_tureen("beta", "set", "--strength", "0.7", "--reason", "attack", *where)
    assert f"then      revision 2: default β {curve.beta_at(0.7):g}, strength 0.7 (operator)" in strength.stdout
    rules = ("--min", "0.2", "--policy", "uploads=0.9", "--canary", "0.9:0.1", "--clients-may-choose", "no")
    assert run_tureen("beta", "set", *rules, "--reason", "rules", "--yes", *where).returncode == 0
    shown = run_tureen("beta", "get", *where).stdout
    assert "clients   choose nothing\npolicy    uploads → 0.9\ncanary    10 % at β 0.9" in shown
    undone = ("--policy", "uploads=", "--canary", "none", "--clients-may-choose", "yes")
    assert run_tureen("beta", "set", *undone, "--reason", "rules", "--yes", *where).returncode == 0
    assert "clients   choose from 0.2 to 1\nworkers" in run_tureen("beta", "get", *where).stdout
    rules = (
        "local  set: least β 0 → 0.2, clients may not choose, policy uploads none → 0.9, canary none → 10 % at β 0.9"
    )
    assert rules in run_tureen("beta", "history", "--limit", "1", "--before", "4", *where).stdout
    for odd in (("--canary", "0.9"), ("--policy", "uploads"), ("--min", "2"), ("--min", "nan"), ("--at", "tomorrow")):
        assert run_tureen("beta", "set", *odd, "--reason", "rules", "--yes", *where).returncode == 2
    assert "the change is empty" in run_tureen("beta", "set", "--reason", "rules", "--yes", *where).stderr
    wrong = run_tureen("beta", "set", "1.8", "--reason", "r", "--yes", *where)
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (2, False)
    public = f"http://127.0.0.1:{operator.server.port}"
    assert (
        "give the port of the operators' listener" in run_tureen("beta", "get", "--url", public, "--token", "x").stderr
    )
    for url, token in ((operator.url, "SECRET\nabc"), ("http://user:SECRET@127.0.0.1:1", "x")):
        shown = run_tureen("beta", "get", "--url", url, "--token", token)
        assert (shown.returncode, "SECRET" in shown.stdout + shown.stderr) == (1, False)
    unreachable = run_tureen("beta", "get", "--url", "http://127.0.0.1:1", "--token", "x")
    assert (unreachable.returncode, "no operators' listener responds" in unreachable.stderr) == (1, True)
