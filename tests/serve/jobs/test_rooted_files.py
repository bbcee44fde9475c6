"""Jobs in the server read below their input roots and write below their output roots, whoever prepares the paths."""

import ctypes
import io
import os
import socket
import tarfile
import threading
import zipfile
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import serve.jobs.runner
from serve.errors import InputError, JobError, OutputError, OutsideRootsError
from serve.jobs.decoding import decode_in_threads
from serve.jobs.input_sources import open_source
from serve.jobs.job_store import JobRecord, JobRequest
from serve.jobs.rooted_files import MAX_DEPTH, RootedFiles
from serve.jobs.runner import JobProgress, check_paths, run_job
from tests.serve.jobs.conftest import BUNDLE
from tests.serve.jobs.interrupted import CheapEngine
from tests.serve.jobs.tables import rows_of
from tureen.bundle.bundle import load_bundle
from tureen.errors import ImageError
from tureen.soup import Soup

MOST = 1 << 20
AT_FDCWD, RENAME_EXCHANGE = -100, 2
INSIDE, SECRET = (13, 17, 19), (200, 1, 2)


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def world(tmp_path):
    """Roots with a picture in them, and beside them what nobody may reach."""
    for name in ("in/photos", "out", "secret", "in-evil", "out-evil"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "in/photos/a.png").write_bytes(picture(INSIDE))
    (tmp_path / "secret/s.png").write_bytes(picture(SECRET))
    (tmp_path / "in-evil/s.png").write_bytes(picture(SECRET))
    return tmp_path


@pytest.fixture
def files(world):
    return RootedFiles([world / "in"], [world / "out"])


def read_by(given, files):
    """What a job would read of an input: the bytes of every image that can be."""
    contents = []
    with closing(open_source(given, files)) as source:
        for image in source.list_images():
            with suppress(ImageError):
                contents.append(source.read(image, MOST))
    return contents


def test_what_is_below_a_root_is_read_also_where_the_root_itself_is_a_link(world):
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
def test_members_of_an_archive_are_its_own_whatever_they_are_called(world, files, kind):
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


@pytest.fixture
def run(world, files, monkeypatch):
    """A job of a server, on an engine that costs nothing, decoding on a thread."""
    soup = Soup(load_bundle(BUNDLE), CheapEngine())

    @contextmanager
    def on_one_thread(given, files, source, decoding, count):
        with decode_in_threads(source, decoding, count) as readers:
            yield readers

    monkeypatch.setattr(serve.jobs.runner, "decode_in_processes", on_one_thread)
    what = partial(run_job, files=files, soup=soup, classify=soup.logits, batch_rows=4, streams=1, decode_processes=1)

    def started(output, given=None):
        request = JobRequest.model_construct(**JobRequest(input="/x", output="/x").model_dump())
        request = request.model_copy(update={"input": given or f"{world}/in/photos", "output": output})
        record = JobRecord("1" * 16, "running", "ada", request, 0.5, "", {})
        return what(record, progress=JobProgress(1000))

    return started


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
def test_no_path_leads_out_of_the_output_roots(world, run, output):
    (world / "out/deep").mkdir()
    (world / "out/file").write_text("x")
    links = (("link", world / "secret"), ("deep/link", world / "secret"), ("up", world), ("proc", "/proc/self/cwd"))
    for name, target in links:
        (world / "out" / name).symlink_to(target)
    before = everything_outside(world)
    with pytest.raises((JobError, OSError)):
        run(output.format(w=world))
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
def test_nothing_that_lies_in_an_output_leads_out(world, run, name, kind):
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
        run(f"{world}/out/new")
    assert everything_outside(world) == before
    assert (world / "secret/s.png").read_bytes() == picture(SECRET)


def exchange(one, other):
    """Each gets the other's name, at once: renameat2(2)."""
    names = (os.fsencode(path) for path in (one, other))
    assert ctypes.CDLL(None).renameat2(AT_FDCWD, next(names), AT_FDCWD, next(names), RENAME_EXCHANGE) == 0


@pytest.mark.timeout(120)
def test_folders_that_are_swapped_for_links_meanwhile_lead_nowhere(world, files, run):
    """Somebody exchanges a folder with a link to the secret ones, as fast as they can, while jobs read and write."""
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
                    run(f"{world}/out/place/{n}", f"{world}/in/steady")
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


def test_a_job_that_has_begun_goes_on_and_another_has_no_business_there(world, run):
    assert run(f"{world}/out/new").images == 1
    assert run(f"{world}/out/new").images == 1
    (world / "out/new/_job/id").write_text("2" * 16)
    with pytest.raises(OutputError, match="another job"):
        run(f"{world}/out/new")


def test_links_below_a_root_are_rows_that_say_so(world, files):
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


def ask(world, output, given="photos"):
    return JobRequest(input=f"{world}/in/{given}", output=f"{world}/{output}")


@pytest.mark.parametrize("output", ["out/link", "out/link/new", "out/file", "out/file/new", "out/" + "x" * 300])
def test_an_output_below_a_link_or_a_file_is_refused_when_it_is_submitted(world, files, output):
    (world / "out/file").touch()
    (world / "out/link").symlink_to(world / "secret")
    check_paths(files, ask(world, "out/new/deep"))
    with pytest.raises(OutputError):
        check_paths(files, ask(world, output))
    assert sorted(os.listdir(world / "out")) == ["file", "link"]
    assert os.listdir(world / "secret") == ["s.png"]


def test_an_output_in_the_input_or_too_deep_is_refused_when_it_is_submitted(world):
    files = RootedFiles([world / "in"], [world / "in"])
    with pytest.raises(OutputError, match="inside the input"):
        check_paths(files, ask(world, "in/photos/new"))
    check_paths(files, ask(world, "in/" + "d/" * MAX_DEPTH))
    with pytest.raises(OutputError, match="more than 64 folders deep"):
        check_paths(files, ask(world, "in/" + "d/" * (MAX_DEPTH + 1)))


def test_a_job_that_cannot_begin_leaves_nothing(world, run):
    (world / "in/empty").mkdir()
    (world / "out/mine").mkdir()
    (world / "out/mine/thesis.txt").touch()
    for output, given in (("new", "in/empty"), ("deep/new", "in/empty"), ("mine", "in/photos")):
        with pytest.raises(JobError):
            run(f"{world}/out/{output}", f"{world}/{given}")
        assert [path.name for path in (world / "out").rglob("*")] == ["mine", "thesis.txt"]
