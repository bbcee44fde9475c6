"""Tokens that operators add to a running server: served by every worker, refused, parked, removed, rolled back."""

import json
import signal
import threading
from urllib.parse import urlencode

import pytest

import tureen
from serve.control.credential_store import Credentials
from serve.control.revision_store import RevisionStore
from tests.conftest import encoded
from tests.learned_tokens import make_token
from tests.patience import DEADLINE_S
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.bundle.token_file import write_token
from tureen.pictures.signs import drawn_picture

TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def soup():
    with tureen.load("cifar10", engine="onnxruntime") as soup:
        yield soup


@pytest.fixture(scope="module")
def tokens(soup):
    return {name: make_token(soup, name, seed) for seed, name in enumerate(("fog", "haze", "rain"))}


@pytest.fixture(scope="module")
def image():
    return encoded(drawn_picture("stop", 0).resize((32, 32)))


class Tokens:
    """A client of the routes of tokens."""

    def __init__(self, operator):
        self._operator = operator

    @property
    def revision(self):
        return self._operator.ask("GET", "/admin/beta")[2]["revision"]

    def put(self, content, name="fog", revision=None, credential=None, **query):
        path = f"/admin/tokens/{name}?{urlencode({'reason': 'a test', **query})}"
        revision = self.revision if revision is None else revision
        return self._operator.ask("PUT", path, content, revision=revision, token=credential)[::2]

    def add(self, token):
        status, state = self.put(token.to_bytes(), token.record.name)
        assert status == 200, state
        return state

    def delete(self, name="fog", revision=None):
        revision = self.revision if revision is None else revision
        return self._operator.ask("DELETE", f"/admin/tokens/{name}?reason=over", revision=revision)[::2]

    def list(self):
        return self._operator.ask("GET", "/admin/tokens")[2]["tokens"]


def classify(server, image, query="", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    status, _, body = server.ask("POST", f"/classify{query}", image, headers)
    return status, json.loads(body)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_added_token_is_served_by_every_worker_until_it_is_removed(start_operated, soup, tokens, image, workers):
    server, operator = start_operated("--workers", workers, processes=workers)
    routes = Tokens(operator)
    assert classify(server, image, "?token=fog")[1]["code"] == "unknown_token"
    assert routes.put(tokens["fog"].to_bytes(), dry_run="true")[0] == 200
    assert routes.list() == []
    state = routes.add(tokens["fog"])
    assert (state["tokens"], state["changed"]["action"]) == (1, "add token")
    assert [worker["revision"] for worker in state["workers"]] == [1] * workers
    with tureen.load("cifar10", engine="onnxruntime", tokens=[tokens["fog"]]) as own:
        (expected,) = own.classify([image], token="fog")
    for _ in range(4 * workers):  # the kernel chooses the worker of a connection
        status, answer = classify(server, image, "?token=fog")
        assert status == 200
        assert answer["predictions"][0]["probability"] == pytest.approx(
            expected.predictions[0].probability, abs=TOLERANCE
        )
    (listed,) = routes.list()
    assert (listed["name"], listed["parked"], listed["policies"]) == ("fog", None, [])
    assert listed["record"]["images"] == 50
    assert "vector" not in json.dumps(operator.ask("GET", "/admin/tokens/fog")[2])
    status, state = routes.delete()
    assert (status, state["tokens"]) == (200, 0)
    assert all(classify(server, image, "?token=fog")[0] == 422 for _ in range(4 * workers))
    _, _, state = operator.ask("POST", "/admin/beta/rollback", {"revision": 1, "reason": "again"}, revision=2)
    assert state["tokens"] == 1
    assert all(classify(server, image, "?token=fog")[0] == 200 for _ in range(4 * workers))
    rows = operator.ask("GET", "/admin/beta/history")[2]["revisions"]
    assert [row["changes"] for row in rows] == [["token fog added"], ["token fog removed"], ["token fog added"]]


def test_a_wrong_token_is_refused_with_the_reason_and_changes_nothing(start_operated, soup, tokens, tmp_path):
    _, operator = start_operated("--max-tokens", 1)
    routes = Tokens(operator)
    fog = tokens["fog"]
    golden = make_token(soup, "fog", 5)
    golden.golden_logits[0] += 1
    nan = make_token(soup, "fog", 5)
    nan.vector[0] = float("nan")
    with tureen.load("signs", engine="onnxruntime") as signs:
        other = make_token(signs, "fog", 0)
    for content, said in (
        (b"", "the body must be a token file"),
        (b"x" * 100, "not a token file"),
        (fog.to_bytes()[:-5], "not a token file"),
        (tokens["haze"].to_bytes(), "has the name haze, not fog"),
        (golden.to_bytes(), "does not reproduce the logits"),
        (nan.to_bytes(), "finite"),
        (other.to_bytes(), "learned for another backbone, of the model signs"),
    ):
        status, problem = routes.put(content)
        assert status == 422, problem
        assert said in problem["detail"]
    assert routes.put(b"x" * (16 * 2**20 + 1))[0] == 422
    assert routes.put(fog.to_bytes(), revision=7)[0] == 412
    assert routes.put(fog.to_bytes(), misspelt="1")[0] == 422
    assert routes.revision == 0
    assert not list((tmp_path / "state" / "tokens").glob("*"))
    routes.add(fog)
    assert routes.put(golden.to_bytes(), replace="true")[0] == 422
    status, problem = routes.put(make_token(soup, "fog", 6).to_bytes())
    assert (status, "exists already" in problem["detail"]) == (422, True)
    status, problem = routes.put(tokens["haze"].to_bytes(), "haze")
    assert (status, "the limit" in problem["detail"]) == (422, True)
    assert routes.delete("haze")[0] == 404
    assert operator.ask("GET", "/admin/tokens/haze")[0] == 404
    assert routes.revision == 1
    assert routes.put(make_token(soup, "fog", 6).to_bytes(), replace="true")[0] == 200


def test_a_credential_that_may_read_adds_no_token(start_operated, tokens, tmp_path):
    _, operator = start_operated()
    store = RevisionStore(f"sqlite:///{tmp_path / 'state' / 'control.db'}")
    secret = Credentials(store).make("reader", "read")
    store.close()
    assert Tokens(operator).put(tokens["fog"].to_bytes(), credential=secret)[0] == 403
    assert operator.ask("GET", "/admin/tokens", token=secret)[0] == 200


def test_a_tenant_gets_the_mix_of_its_key_and_no_other(start_operated, tokens, image):
    server, operator = start_operated()
    routes = Tokens(operator)
    routes.add(tokens["fog"])
    routes.add(tokens["haze"])
    operator.change(policies={"ada": {"mix": "fog:1", "beta_min": 0, "beta_max": 0.5}})
    _, _, made = operator.ask("PUT", "/admin/keys/ada", {"policy": "ada", "reason": "a test"}, revision=3)
    key = {"X-API-Key": made["key"]}
    status, answer = classify(server, image, **key)
    assert (status, answer["mix"], answer["beta_source"]) == (200, {"fog": 1.0}, "key")
    assert classify(server, image, "?beta=0.25", **key)[1]["mix"] == {"fog": 0.75, "robust": 0.25}
    assert classify(server, image, "?beta=0.6", **key)[1]["code"] == "beta_out_of_bounds"
    for query in ("?token=haze", "?mix=haze:1", "?token=absent", "?policy=ada"):
        status, problem = classify(server, image, query, **key)
        assert (status, problem["code"]) == (403, "choice_not_allowed")
        assert "haze" not in problem["detail"]
    for query, code in (
        ("?token=fog", "unknown_token"),
        ("?policy=ada", "unknown_policy"),
        ("?token=absent", "unknown_token"),
    ):
        status, problem = classify(server, image, query)
        assert (status, problem["code"]) == (422, code)
        assert "fog" not in problem["detail"].replace("'fog'", "")  # but as the client named it
    assert classify(server, image, "?token=haze")[0] == 200
    status, problem = routes.delete("fog")
    assert (status, "in use by the policy ada" in problem["detail"]) == (422, True)
    assert server.metric('tureen_token_classifications_total{token="other"}') > 0
    assert server.metric('tureen_operator_tokens{state="used"}') == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_tokens_stay_over_a_reload_and_a_restart_and_are_parked_over_another_backbone(
    start_operated, example_bundle, tokens, image, tmp_path, workers
):
    server, operator = start_operated("--workers", workers, bundle=example_bundle, processes=workers)
    routes = Tokens(operator)
    routes.add(tokens["fog"])
    operator.change(policies={"ada": {"mix": "fog:1"}})
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric('tureen_reloads_total{outcome="ok"}') == workers, "reloaded")
    assert classify(server, image, "?token=fog")[0] == 200

    for file in (EXAMPLES / "signs").iterdir():
        (example_bundle / file.name).write_bytes(file.read_bytes()) if file.is_file() else None
    assert load_bundle(example_bundle).manifest.name == "signs"
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric('tureen_operator_tokens{state="parked"}') == 1, "parked")
    server.wait_for(lambda: server.metric('tureen_reloads_total{outcome="ok"}') == 2 * workers, "reloaded")
    (listed,) = routes.list()
    assert "another backbone" in listed["parked"]
    for query in ("?token=fog", "?policy=ada"):
        status, problem = classify(server, image, query)
        assert (status, problem["code"]) == (503, "token_parked")
    assert server.end() == 0

    server, operator = start_operated("--workers", workers, processes=workers)
    assert Tokens(operator).list()[0]["parked"] is None
    assert classify(server, image, "?policy=ada")[0] == 200


def test_an_addition_under_load_loses_no_request(start_operated, tokens, image):
    server, operator = start_operated("--workers", 2, processes=2)
    stop, statuses = threading.Event(), []

    def load():
        while not stop.is_set():
            statuses.append(classify(server, image, "?beta=0.5")[0])

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    routes = Tokens(operator)
    for token in tokens.values():
        routes.add(token)
    for name in tokens:
        assert routes.delete(name)[0] == 200
    stop.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert set(statuses) == {200}


def test_a_parked_token_is_never_that_of_the_same_name_in_the_directory_of_tokens(
    start_operated, soup, tokens, image, tmp_path
):
    (tmp_path / "directory").mkdir()
    server, operator = start_operated("--token-dir", tmp_path / "directory")
    routes = Tokens(operator)
    routes.add(tokens["fog"])
    operator.change(policies={"ada": {"mix": "fog:1"}})
    write_token(tmp_path / "directory" / "fog.token", make_token(soup, "fog", 7))
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric('tureen_operator_tokens{state="parked"}') == 1, "parked")
    for query in ("?token=fog", "?policy=ada"):
        status, problem = classify(server, image, query)
        assert (status, problem["code"]) == (503, "token_parked")
    assert routes.put(make_token(soup, "fog", 8).to_bytes(), replace="true")[0] == 422


def test_a_lost_or_damaged_file_comes_back_from_the_store_at_the_next_start(start_operated, tokens, image, tmp_path):
    server, operator = start_operated()
    routes = Tokens(operator)
    for name in ("fog", "haze"):
        routes.add(tokens[name])
    fog, haze = (tmp_path / "state" / "tokens" / f"{token['sha256']}.token" for token in routes.list())
    fog.unlink()
    haze.write_bytes(haze.read_bytes()[:-1])
    assert server.end() == 0
    server, operator = start_operated()
    assert [token["parked"] for token in Tokens(operator).list()] == [None, None]
    assert classify(server, image, "?mix=fog:1,haze:1")[0] == 200


def test_an_operator_repairs_a_damaged_file_by_adding_it_again(start_operated, tokens, image, tmp_path):
    server, operator = start_operated()
    routes = Tokens(operator)
    routes.add(tokens["fog"])
    (file,) = (tmp_path / "state" / "tokens").iterdir()
    file.write_bytes(b"damaged")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric('tureen_operator_tokens{state="parked"}') == 1, "parked")
    state = routes.add(tokens["fog"])
    assert state["workers"][0]["parked_tokens"] == {}
    assert classify(server, image, "?token=fog")[0] == 200
