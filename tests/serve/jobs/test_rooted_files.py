"""Jobs in the server read and write below their roots alone, even if an attacker prepares the paths."""

import ctypes
import os
import socket
import tarfile
import threading
import zipfile
from contextlib import closing, suppress
from pathlib import Path

import pytest

from serve.errors import InputError, JobError, OutsideRootsError, UnreadableError
from serve.jobs.input_sources import open_source
from serve.jobs.rooted_files import Files, RootedFiles
from tests.serve.jobs.conftest import INSIDE, SECRET, picture
from tests.serve.jobs.tables import rows_of
from tureen.errors import ImageError

MOST = 1 << 20
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def read_by(given, files):
    """What a job would read of an input: the bytes of every image that can be."""
    contents = []
    with closing(open_source(given, files)) as source:
        for image in source.list_images():
            with suppress(ImageError):
                contents.append(source.read(image, MOST))
    return contents


def test_a_file_below_a_root_is_read_even_if_the_root_is_a_link(world):
    (world / "alias").symlink_to(world / "in")
    files = RootedFiles([world / "alias"], [])
    for given in (f"{world}/alias/photos", f"{world}/alias//photos/./", f"{world}/alias"):
        assert read_by(given, files) == [picture(INSIDE)]


PATHS = [
    "{w}/secret",
    "{w}/in-evil",
    "{w}",
    "/",
    "{w}/in/../secret",
    "{w}/in/photos/../../secret",
    "{w}/in/..",
    "..",
    "{w}/in/photos/..",
    "secret",
    "./in/photos",
    "",
    ".",
    "~",
    "~root",
    "$HOME",
    "file://{w}/secret",
    "file://{w}/in/photos",
    "s3://bucket/x",
    "memory://x",
    "local://{w}/secret",
    "{w}/in/*",
    "{w}/in/photos/*.png",
    "{w}/*/s.png",
    "/proc/self/root{w}/secret",
    "/proc/self/cwd",
    "/proc/self/environ",
    "/dev/zero",
    "/etc/passwd",
    "{w}/in\0/../secret",
    "{w}/in/%2e%2e/secret",
    "{w}/in/..%2fsecret",
    "{w}\\in\\..\\secret",
    "{w}/in/․․/secret",
    "{w}/IN/photos",
    "{w}/in/photos/a.png/../../../secret",
    "{w}/in/missing/../../secret",
    "{w}/in/" + "x" * 300,
    "{w}/in/" + "x/" * 2000,
    "{w}/in/link",
    "{w}/in/link/.",
    "{w}/in/chain",
    "{w}/in/loop",
    "{w}/in/up",
    "{w}/in/up/secret",
    "{w}/in/photos/file-link.csv",
    "{w}/in/list-link.tar",
    "{w}/in/hard.csv",
    "{w}/in/hard.zip",
    "{w}/in/fifo",
    "{w}/in/fifo.csv",
    "{w}/in/socket.csv",
    "{w}/in/device.tar",
    "{w}/in/proc",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("given", PATHS)
def test_no_path_leads_out_of_the_input_roots(world, files, given):
    lay_traps(world)
    with pytest.raises((InputError, OutsideRootsError)):
        read_by(given.format(w=world), files)


def lay_traps(world):
    inside, secret = world / "in", world / "secret"
    (secret / "list.csv").write_text(f"path\n{secret}/s.png\n")
    with tarfile.open(secret / "list.tar", "w") as archive:
        archive.add(secret / "s.png", "s.png")
    with zipfile.ZipFile(secret / "list.zip", "w") as archive:
        archive.write(secret / "s.png", "s.png")
    for name, target in (
        ("link", secret),
        ("chain", inside / "link"),
        ("loop", inside / "loop"),
        ("up", world),
        ("proc", "/proc/self/cwd"),
        ("photos/file-link.csv", secret / "list.csv"),
        ("list-link.tar", secret / "list.tar"),
        ("device.tar", "/dev/zero"),
    ):
        (inside / name).symlink_to(target)
    os.link(secret / "list.csv", inside / "hard.csv")
    os.link(secret / "list.zip", inside / "hard.zip")
    os.mkfifo(inside / "fifo")
    os.mkfifo(inside / "fifo.csv")
    bound = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(inside)  # the name of a socket must be short
    try:
        bound.bind("socket.csv")
    finally:
        os.chdir(here)
        bound.close()


ROWS = [
    "{w}/secret/s.png",
    "../secret/s.png",
    "../../secret/s.png",
    "photos/../../secret/s.png",
    "{w}/in/../secret/s.png",
    "{w}/in-evil/s.png",
    "link/s.png",
    "up/secret/s.png",
    "chain/s.png",
    "hard.png",
    "soft.png",
    "fifo",
    "photos",
    "/proc/self/root{w}/secret/s.png",
    "/proc/self/environ",
    "/dev/zero",
    "file://{w}/secret/s.png",
    "loop",
    "proc/x",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("row", ROWS)
def test_no_row_of_a_manifest_leads_out(world, files, row):
    lay_traps(world)
    os.link(world / "secret/s.png", world / "in/hard.png")
    (world / "in/soft.png").symlink_to(world / "secret/s.png")
    (world / "in/list.csv").write_text(f"path\nphotos/a.png\n{row.format(w=world)}\n")
    assert read_by(f"{world}/in/list.csv", files) == [picture(INSIDE)]


def test_nothing_in_a_folder_leads_out(world, files):
    lay_traps(world)
    (world / "in/photos/soft.png").symlink_to(world / "secret/s.png")
    os.link(world / "secret/s.png", world / "in/photos/hard.png")
    contents = read_by(f"{world}/in", files)
    assert picture(INSIDE) in contents
    assert picture(SECRET) not in contents


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_of_an_archive_never_reach_outside_it_by_name(world, files, kind):
    path = world / f"in/list.{kind}"
    if kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, member_type in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("fifo", tarfile.FIFOTYPE)):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = member_type, str(world / "secret/s.png")
                archive.addfile(member)
            archive.add(world / "in/photos/a.png", "../../secret/s.png")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            link = zipfile.ZipInfo("soft.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, str(world / "secret/s.png"))
            archive.write(world / "in/photos/a.png", "../../secret/s.png")
    contents = read_by(str(path), files)
    assert picture(INSIDE) in contents
    assert picture(SECRET) not in contents


def everything_outside(world):
    """Name, kind and content of all that is not below the output root."""
    found = {}
    for folder, _, names in os.walk(world):
        if Path(folder).is_relative_to(world / "out"):
            continue
        for name in names:
            path = Path(folder, name)
            found[path] = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[Path(folder)] = None
    return found


OUTPUTS = [
    "{w}/secret",
    "{w}/secret/new",
    "{w}/out-evil/new",
    "{w}/out",
    "{w}/out/../secret/new",
    "{w}/out/new/../../secret/new",
    "{w}/out/..",
    "new",
    "",
    "file://{w}/out/new",
    "{w}/out/link",
    "{w}/out/link/new",
    "{w}/out/deep/link/new",
    "{w}/out/up/secret/new",
    "{w}/out/file/new",
    "{w}/out/\0new",
    "/proc/self/cwd/new",
    "{w}/out/proc/new",
    "{w}/in/new",
    "{w}/out/" + "x" * 300,
]


@pytest.mark.parametrize("output", OUTPUTS)
def test_no_path_leads_out_of_the_output_roots(world, run_on_server, output):
    (world / "out/deep").mkdir()
    (world / "out/file").write_text("x")
    links = (("link", world / "secret"), ("deep/link", world / "secret"), ("up", world), ("proc", "/proc/self/cwd"))
    for name, target in links:
        (world / "out" / name).symlink_to(target)
    before = everything_outside(world)
    with pytest.raises((JobError, OSError)):
        run_on_server(output.format(w=world))
    assert everything_outside(world) == before


PLANTED = [
    "_job",
    "_job/id",
    "_job/lock",
    "_job/job.json",
    "_job/inputs.jsonl",
    "_job/inputs.jsonl.new",
    "_job/.id.part",
    "_job/.job.json.part",
    "part-00000.parquet",
    ".part-00000.parquet.part",
    "_SUCCESS",
    "._SUCCESS.part",
]


@pytest.mark.parametrize("kind", ["a link to a file", "a link to nothing", "a hard link"])
@pytest.mark.parametrize("name", PLANTED)
def test_no_entry_of_an_output_leads_outside(world, run_on_server, name, kind):
    trap = world / "out/new" / name
    trap.parent.mkdir(parents=True)
    target = world / "secret" / ("s.png" if kind != "a link to nothing" else "none")
    if kind == "a hard link" and name != "_job":
        os.link(target, trap)
    elif name == "_job":
        trap.symlink_to(world / "secret")
    else:
        trap.symlink_to(target)
    before = everything_outside(world)
    with suppress(JobError, OSError):
        run_on_server(f"{world}/out/new")
    assert everything_outside(world) == before
    assert (world / "secret/s.png").read_bytes() == picture(SECRET)


def exchange(one, other):
    """Swaps the names of two paths atomically: renameat2(2)."""
    names = (os.fsencode(path) for path in (one, other))
    assert ctypes.CDLL(None).renameat2(AT_FDCWD, next(names), AT_FDCWD, next(names), RENAME_EXCHANGE) == 0


@pytest.mark.timeout(120)
def test_folders_that_are_swapped_for_links_meanwhile_lead_nowhere(world, files, run_on_server):
    """A thread exchanges a folder with a link to the secret one, as fast as it can, while jobs read and write."""
    (world / "in/other").symlink_to(world / "secret")
    (world / "out/other").symlink_to(world / "secret")
    (world / "out/place").mkdir()
    (world / "in/steady").mkdir()
    for folder in ("photos", "steady"):
        (world / "in" / folder / "s.png").write_bytes(picture(INSIDE))
    is_over = threading.Event()

    def swap():
        while not is_over.is_set():
            for folder, link in (("in/photos", "in/other"), ("out/place", "out/other")):
                exchange(world / folder, world / link)

    before = sorted(os.listdir(world / "secret"))
    swapping = threading.Thread(target=swap)
    swapping.start()
    seen, done = set(), 0
    try:
        for n in range(400):
            with suppress(JobError, OSError):
                seen.update(read_by(f"{world}/in/photos", files))
            if n % 20 == 0:
                with suppress(JobError, OSError):
                    run_on_server(f"{world}/out/place/{n}", f"{world}/in/steady")
                    done += 1
    finally:
        is_over.set()
        swapping.join()
    assert seen == {picture(INSIDE)}
    assert sorted(os.listdir(world / "secret")) == before
    assert done > 0
    for output in (world / "out/place").iterdir():
        with suppress(FileNotFoundError):
            assert all(row["status"] == "ok" for row in rows_of(output))


def test_links_below_a_root_are_rows_with_an_error(world, files):
    (world / "in/photos/folder").symlink_to(world / "in")
    (world / "in/photos/file.png").symlink_to("a.png")
    with closing(open_source(f"{world}/in/photos", files)) as source:
        said = {}
        for image in source.list_images():
            try:
                said[image.id] = source.read(image, MOST)
            except ImageError as error:
                said[image.id] = str(error)
    link = "it is a link that is not followed, or one that leads to itself"
    assert said == {"a.png": picture(INSIDE), "file.png": link, "folder": link}


@pytest.mark.parametrize("is_rooted", [False, True])
def test_a_file_is_read_up_to_one_byte_above_the_limit(world, files, is_rooted):
    path, content = world / "in/file", bytes(range(256)) * 1000
    path.write_bytes(content)
    reader = files if is_rooted else Files()
    for max_bytes in (len(content) + 1, len(content)):
        assert reader.read(path, max_bytes) == content
    assert reader.read(path, len(content) - 1) == content
    assert reader.read(path, 100) == content[:101]
    with pytest.raises(UnreadableError, match="not a regular file"):
        reader.read(world / "in/photos", 100)
