"""`tureen tokens` against a running server: adds, lists, shows, replaces and removes tokens."""

import json

import pytest

import tureen
from serve.commands.tokens import format_token
from tests.learned_tokens import make_record, make_token
from tests.serve.admin.conftest import run_tureen, start_operated  # noqa: F401 - fixtures
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.bundle.token_file import write_token
from tureen.errors import BundleError


@pytest.fixture(scope="module")
def soup():
    with tureen.load("cifar10", engine="onnxruntime") as soup:
        yield soup


def test_the_commands_add_list_show_replace_and_remove_tokens(
    start_operated, run_tureen, soup, tmp_path  # noqa: F811
):  # fmt: skip
    _, operator = start_operated()
    listener = ("--url", operator.url, "--token", operator.token)
    for seed, name in enumerate(("fog", "haze")):
        write_token(tmp_path / f"{name}.token", make_token(soup, name, seed))
    files = (tmp_path / "fog.token", tmp_path / "haze.token")

    def run(command, *arguments, status=0):
        result = run_tureen("tokens", command, *map(str, arguments), *listener)
        assert result.returncode == status, result.stderr
        return result.stdout + result.stderr

    reason = ("--reason", "foggy season")
    assert run("list") == "no operator has added a token\n"
    assert "fog: the service can use the token; nothing was added" in run("add", *files, *reason, "--dry-run")
    added = run("add", *files, *reason)
    assert added == "".join(
        f"{name}: added at revision {n}, applied by 1 of 1 workers\n" for n, name in ((1, "fog"), (2, "haze"))
    )
    assert [line.split()[0] for line in run("list").splitlines()] == ["fog", "haze"]
    assert "fog: learned from 50 images, in 60 steps, for cifar10" in run("show", "fog")
    assert json.loads(run("show", "fog", "--json"))["record"]["name"] == "fog"
    write_token(files[0], make_token(soup, "fog", 9))
    assert "fog exists already" in run("add", files[0], *reason, status=1)
    assert "fog: added at revision 3" in run("add", files[0], *reason, "--replace")
    operator.change(policies={"ada": {"mix": "fog:1"}})
    assert "in use by the policy ada" in run("remove", "fog", *reason, status=1)
    assert "haze: removed at revision 5" in run("remove", "haze", *reason)
    assert "no operator has added a token 'haze'" in run("show", "haze", status=1)
    files[0].write_bytes(b"no token")
    assert "is not a token file" in run("add", files[0], *reason, status=1)


def test_a_token_is_printed_with_its_origin_and_accuracy():
    record = make_record(load_bundle(EXAMPLES / "cifar10"), "fog").model_dump(mode="json")
    token = {"name": "fog", "sha256": "ab", "parked": "its file is missing", "policies": ["ada"], "record": record}
    lines = format_token(token).splitlines()
    assert lines[:3] == ["fog: SHA-256 ab", "parked    its file is missing", "policies  ada"]
    assert lines[3] == "fog: learned from 50 images, in 60 steps, for cifar10"
    assert "80.0 (70.0–90.0)" in lines[5]
    assert format_token({**token, "record": None}).endswith("its file cannot be read")


def test_a_packed_bundle_contains_the_tokens_and_another_backbone_refuses_them(run_tureen, soup, tmp_path):  # noqa: F811
    write_token(tmp_path / "fog.token", make_token(soup, "fog", 0))
    packed = tmp_path / "packed"
    result = run_tureen("tokens", "pack", "cifar10", str(tmp_path / "fog.token"), "--out", str(packed))
    assert result.returncode == 0, result.stderr
    assert "with the tokens fog" in result.stdout
    with tureen.load(packed, engine="onnxruntime") as loaded:
        assert loaded.tokens.keys() == {"clean", "robust", "fog"}
    assert "fog: learned from 50 images" in run_tureen("inspect", str(packed)).stdout
    for bundle, said in (("signs", "another backbone"), (packed, "already has a token 'fog'")):
        out = tmp_path / "other"
        refused = run_tureen("tokens", "pack", str(bundle), str(tmp_path / "fog.token"), "--out", str(out))
        assert (refused.returncode, said in refused.stderr, out.exists()) == (1, True, False)
    content = bytearray((packed / "fog.token").read_bytes())
    content[-1] ^= 1
    (packed / "fog.token").write_bytes(content)
    with pytest.raises(BundleError, match=r"fog\.token"):
        tureen.load(packed)
