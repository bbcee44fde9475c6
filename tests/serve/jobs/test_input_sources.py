"""Every kind of input: which images it lists, and what it refuses."""

import codecs
import glob
import os
import shutil
import subprocess

import pandas as pd
import pytest

from serve.errors import InputError
from serve.jobs.input_sources import open_source
from tests.serve.jobs.photo_files import pack, write_manifest
from tests.serve.jobs.tables import rows_of

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
