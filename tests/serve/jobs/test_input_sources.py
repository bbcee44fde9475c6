"""Every kind of input: which images it lists, and what it refuses."""

import codecs
import glob
import json
import os
import shutil
import subprocess

import pandas as pd
import pytest

import tureen
from serve.errors import InputError
from serve.jobs.input_sources import ALL_FILES, open_source
from serve.jobs.job_output import LISTING_FILE, lock_output, start_or_resume
from serve.jobs.job_spec import JobOptions
from tests.serve.jobs.conftest import BUNDLE
from tests.serve.jobs.photo_files import pack, write_manifest
from tests.serve.jobs.tables import rows_of
from tureen.bundle.bundle import load_bundle
from tureen.bundle.strength_curve import UNMEASURED_STRENGTH, StrengthCurve
from tureen.errors import SingleTokenError
from tureen.preprocess import ImageLimits

FILES = ["x.tar", "x.tar.gz", "x.zip", "x.csv", "x.jsonl", "x.parquet"]


@pytest.mark.parametrize(
    "kind", ["glob", *FILES, "file://", "memory://", *(f"memory://{name}" for name in FILES), "urls.csv"]
)
def test_every_kind_of_input_gives_the_rows_of_the_folder(run_batch, photos, tmp_path, kind):
    assert run_batch(photos, tmp_path / "one") == 0
    if kind == "glob":
        given = f"{photos}/**/*.*"
    elif kind == "file://":
        given = f"file://{photos}"
    elif kind == "memory://":
        import fsspec

        memory = fsspec.filesystem("memory")
        memory.put(str(photos), "/bucket", recursive=True)
        given = "memory://bucket"
    elif kind.startswith("memory://"):
        import fsspec

        memory, name = fsspec.filesystem("memory"), kind.removeprefix("memory://")
        memory.put(str(photos), "/far/photos", recursive=True)
        memory.put(
            str((pack if name.endswith(("tar", "gz", "zip")) else write_manifest)(photos, tmp_path / name)),
            f"/far/{name}",
        )
        given = f"memory://far/{name}"
    elif kind == "urls.csv":
        table = pd.read_csv(write_manifest(photos, tmp_path / kind))
        table["path"] = [f"file://{tmp_path}/{path}" for path in table["path"]]
        table.to_csv(tmp_path / kind, index=False)
        given = tmp_path / kind
    else:
        given = (pack if "." in kind and kind.endswith(("tar", "gz", "zip")) else write_manifest)(
            photos, tmp_path / kind
        )
    assert run_batch(given, tmp_path / "other") == 0
    one, other = rows_of(tmp_path / "one"), rows_of(tmp_path / "other")
    assert len(other) == 23
    for row in (*one, *other):
        del row["id"], row["path"]
    assert other == one


def test_a_manifest_has_a_beta_for_each_image(run_batch, photos, tmp_path):
    names = sorted(str(file.relative_to(tmp_path)) for file in photos.rglob("*.*"))[:4]
    lines = [f"{name},{beta}" for name, beta in zip(names, ("0.25", "", "robust", "0"), strict=True)]
    (tmp_path / "list.csv").write_text("path,beta\n" + "\n".join(lines))
    assert run_batch(tmp_path / "list.csv", tmp_path / "out", "--beta", 0.5) == 0
    assert [row["beta"] for row in rows_of(tmp_path / "out")] == [0.25, 0.5, 1.0, 0.0]
    with pytest.raises(InputError, match="its own β"):
        run_batch(tmp_path / "list.csv", tmp_path / "grid", "--betas", "0,1")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_has_a_strength_for_each_image(run_batch, photos, tmp_path, kind, capsys):
    names = sorted(str(file.relative_to(tmp_path)) for file in photos.rglob("*.*"))[:3]
    table = pd.DataFrame({"path": names, "strength": [0.5, None, 0.9]})
    write = {
        "csv": lambda path: table.to_csv(path, index=False),
        "jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in rows)),
        "parquet": table.to_parquet,
    }
    rows = [{name: None if pd.isna(cell) else cell for name, cell in row.items()} for row in table.to_dict("records")]
    write[kind](tmp_path / f"list.{kind}")
    curve = load_bundle(BUNDLE).manifest.strength
    assert run_batch(tmp_path / f"list.{kind}", tmp_path / "out", "--strength", 0.2) == 0
    betas = [curve.beta_at(strength) for strength in (0.5, 0.2, 0.9)]
    assert [row["beta"] for row in rows_of(tmp_path / "out")] == betas
    assert f"β {betas[1]:g} to {betas[2]:g}, from the manifest" in capsys.readouterr().out
    with pytest.raises(InputError, match="its own β: leave --betas out, or the column"):
        run_batch(tmp_path / f"list.{kind}", tmp_path / "grid", "--betas", "0,1")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "path,strength\n{path},0.5\n{path},1.5\n", "row 2: the strength is '1.5'"),
        ("list.csv", "path,strength\n{path},robust\n", "row 1: the strength is 'robust'"),
        ("list.jsonl", '{{"path": "{path}", "strength": true}}', "row 1: the strength is True"),
        ("list.jsonl", '{{"path": "{path}", "strength": [1]}}', "row 1: the strength is"),
        ("list.csv", "path,beta,strength\n{path},,\n", "list.csv has the columns beta and strength: remove one"),
        (
            "list.jsonl",
            '{{"path": "{path}", "beta": 1}}\n{{"path": "{path}", "strength": 1}}',
            "list.jsonl has the columns beta and strength: remove one",
        ),
    ],
)
def test_an_invalid_strength_in_a_manifest_is_named(run_batch, photos, tmp_path, name, text, message):
    (tmp_path / name).write_text(text.format(path=sorted(photos.rglob("*.png"))[0]))
    with pytest.raises(InputError, match=message):
        run_batch(tmp_path / name, tmp_path / "out")


def test_a_resumed_job_keeps_the_strengths_of_its_first_run(photos, tmp_path):
    """Even if the curve of the bundle has changed, as after `tureen calibrate`."""
    (tmp_path / "list.csv").write_text(f"path,strength\n{sorted(photos.rglob('*.png'))[0]},0.5\n")
    curve = StrengthCurve(betas=[0, 0.6, 1], strengths=[0, 0.5, 1], n=9)
    with (
        tureen.load(BUNDLE, engine="onnxruntime") as soup,
        ALL_FILES.open_output(tmp_path / "out") as output,
        lock_output(output),
    ):
        manifest = soup.bundle.manifest.model_copy(update={"strength": curve})
        source = open_source(str(tmp_path / "list.csv"))
        first = start_or_resume(output, source, manifest, soup.engine, ImageLimits(), JobOptions(), None)
        listing = output.job_folder / LISTING_FILE
        assert json.loads(listing.read_text())[2] == 0.6
        changed = manifest.model_copy(update={"strength": UNMEASURED_STRENGTH})
        assert start_or_resume(output, source, changed, soup.engine, ImageLimits(), JobOptions(), first) == first
        single = manifest.model_copy(update={"has_two_tokens": False})
        with pytest.raises(SingleTokenError, match="leave strength out"):
            start_or_resume(output, source, single, soup.engine, ImageLimits(), JobOptions(), None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "path,id,beta\nimage.png,first,1\n"),
        ("list.jsonl", '{"path": "image.png", "id": "first", "beta": 1}\n'),
        ("list.jsonl", '\n{"path": "image.png", "id": "first", "beta": 1}\n'),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_manifest(run_batch, photos, tmp_path, name, text):
    (tmp_path / "image.png").write_bytes(sorted(photos.rglob("*.png"))[0].read_bytes())
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert run_batch(tmp_path / name, tmp_path / "out") == 0
    assert [(row["id"], row["status"]) for row in rows_of(tmp_path / "out")] == [("first", "ok")]


def test_one_token_has_no_beta_and_a_missing_input_is_named(run_batch, photos, tmp_path, monkeypatch):
    for given, message in ((tmp_path / "none", "does not exist"), (sorted(photos.rglob("*.png"))[0], "is one file")):
        with pytest.raises(InputError, match=message):
            run_batch(given, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no file"):
        run_batch(tmp_path / "empty", tmp_path / "out")
    for name, content in (
        ("a.csv", "file\nx"),
        ("a.jsonl", '{"path": 1}'),
        ("a.jsonl", "nope"),
        ("a.parquet", "x"),
        ("a.zip", "x"),
        ("a.tar", "x"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError):
            run_batch(tmp_path / name, tmp_path / "out")


def linked_folders(photos, tmp_path):
    """Photos with links to folders: one within, one to elsewhere, two upwards, one to itself."""
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(photos / "a" / "image 00.png", tmp_path / "elsewhere" / "x.png")
    (photos / "b" / "alias").symlink_to("../a")
    (photos / "c" / "outside").symlink_to(tmp_path / "elsewhere")
    (photos / "a" / "up").symlink_to(photos)
    (photos / "a" / "here").symlink_to(".")
    (photos / "self").symlink_to("self")
    return sorted(
        [str(file.relative_to(photos)) for file in photos.glob("?/image*")]
        + [f"b/alias/{file.name}" for file in photos.glob("a/image*")]
        + ["c/outside/x.png"]
    )


def test_links_to_folders_are_followed_once_and_never_upwards(run_batch, photos, tmp_path):
    expected = linked_folders(photos, tmp_path)
    assert run_batch(photos, tmp_path / "out") == 0
    rows = {row["path"]: row["status"] for row in rows_of(tmp_path / "out")}
    assert rows.pop("self") == "error"
    assert rows == dict.fromkeys(expected, "ok")
    assert run_batch(photos, tmp_path / "out", "--resume") == 0
    for n, pattern in enumerate((f"{photos}/**/*.*", f"{photos}/**", f"file://{photos}/**/*.*")):
        assert run_batch(pattern, tmp_path / str(n)) == 0
        found = [os.path.relpath(row["path"], photos) for row in rows_of(tmp_path / str(n))]
        assert sorted(name for name in found if name != "self") == expected


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*/*.png", {"a/1.png", "b/3.png"}),
        ("**/*.png", {"a/1.png", "b/3.png", "b/c/4.png", "0.png"}),
        ("**", {"a/1.png", "a/2.jpg", "b/3.png", "b/c/4.png", "0.png"}),
        ("b/**/*.png", {"b/3.png", "b/c/4.png"}),
        ("**/c/**/*.png", {"b/c/4.png"}),
        ("[ab]/?.*", {"a/1.png", "a/2.jpg", "b/3.png"}),
        ("*/2.jpg", {"a/2.jpg"}),
        ("*/c/*", {"b/c/4.png"}),
        ("./*/../a/[1]*", {"./a/../a/1.png", "./b/../a/1.png"}),
        (".h/*.png", {".h/5.png"}),
        (".*/*.png", {".h/5.png"}),
        ("*/none/*.png", set()),
        ("*", {"0.png"}),
        ("*.jpg", set()),
    ],
)
def test_a_glob_matches_as_pythons_does(tmp_path, monkeypatch, pattern, found):
    for name in ("a/1.png", "a/2.jpg", "b/3.png", "b/c/4.png", ".h/5.png", "0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "Thumbs.db").touch()
    monkeypatch.chdir(tmp_path)
    for start in ("", f"{tmp_path}/"):
        ours = {item.path for item in open_source(f"{start}{pattern}").list_images()}
        pythons = {name for name in glob.glob(f"{start}{pattern}", recursive=True) if os.path.isfile(name)}
        assert ours == pythons - {f"{start}Thumbs.db"} == {f"{start}{name}" for name in found}


def test_files_of_macos_and_windows_are_no_images(run_batch, photos, tmp_path):
    (photos / "__MACOSX").mkdir()
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "a/thumbs.db",
        "a/desktop.ini",
        "a/._image 00.png",
        "__MACOSX/x.png",
        "Icon\r",
    ):
        (photos / name).write_bytes(b"x")
    for n, given in enumerate((photos, pack(photos, tmp_path / "x.zip"), pack(photos, tmp_path / "x.tar"))):
        assert run_batch(given, tmp_path / str(n)) == 0
        assert [row["status"] for row in rows_of(tmp_path / str(n))] == ["ok"] * 23


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_may_begin_with_a_byte_order_mark(run_batch, photos, tmp_path, kind):
    path = write_manifest(photos, tmp_path / f"x.{kind}")
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert run_batch(path, tmp_path / "out") == 0
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok"] * 23
    path.write_text(path.read_text("utf-8-sig"), "utf-16")
    with pytest.raises(InputError, match="is not in UTF-8"):
        run_batch(path, tmp_path / "other")


def test_a_row_at_a_store_that_is_not_known_is_an_error_and_no_dead_job(run_batch, photos, tmp_path):
    name = sorted(str(file.relative_to(tmp_path)) for file in photos.rglob("*.*"))[0]
    (tmp_path / "x.csv").write_text(f"path\n{name}\nnonsense://x/y.jpg\n")
    assert run_batch(tmp_path / "x.csv", tmp_path / "out") == 0
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok", "error"]


def test_hidden_files_are_left_out_in_every_input(run_batch, photos, tmp_path):
    (photos / ".thumbs").mkdir()
    (photos / ".thumbs" / "x.jpg").write_bytes(b"x")
    for n, given in enumerate((photos, pack(photos, tmp_path / "x.tar"), f"file://{photos}")):
        assert run_batch(given, tmp_path / str(n)) == 0
        rows = rows_of(tmp_path / str(n))
        assert len(rows) == 23
        assert rows[0]["path"] == "a/image 00.png"


def test_a_folder_of_any_depth_that_has_a_name_is_listed(run_batch, tmp_path, photos):
    deep = below = tmp_path / "deep"
    try:
        for _ in range(1100):  # more than Python's calls may be nested
            below.mkdir()
            below /= "d"
        (deep / "x.png").write_bytes(sorted(photos.rglob("*.png"))[0].read_bytes())
        assert run_batch(deep, tmp_path / "out") == 0
        assert len(rows_of(tmp_path / "out")) == 1
    finally:
        subprocess.run(["rm", "-r", deep], check=True)  # as pytest itself could not, later
