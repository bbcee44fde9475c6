"""Archives as GNU tar, bsdtar, Info-ZIP, 7-Zip, macOS and Windows write them give the rows of the folder."""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from serve.errors import InputError, UnreadableError
from serve.jobs.archives import TarSource
from serve.jobs.input_sources import open_source
from tests.serve.jobs.photo_files import pack
from tests.serve.jobs.tables import rows_of
from tureen.errors import ImageError, ImageTooLargeError

MADE = Path(__file__).parent / "archives"  # by make.sh there
MOST = 1 << 20
SPARSE = bytes(40_000) + b"image 6" + bytes(65_536 - 40_007)
FILES = {
    "a/1.png": b"image 1",
    "a/2.png": b"image 2",
    "a/sparse.png": SPARSE,
    "b/3.png": b"image 3",
    "b/empty.png": b"",
    "sub dir/é 4.png": b"image 4",
}
DEEP = {f"deep/{'x' * 120}/{'y' * 120}/long.png": b"image 5"}
LINKS = {
    "alias/1.png": b"image 1",
    "alias/2.png": b"image 2",
    "alias/sparse.png": SPARSE,
    "b/soft.png": b"image 1",
    "b/softer.png": b"image 1",
    "b/twin.png": b"image 3",
}
DEAD = {"b/dead.png": "it is a link to something that is not in the archive, or to a folder behind another link"}


def rows_in(given):
    """What a job reads: the bytes of each image by its id, or the words of its error."""
    rows = {}
    with closing(open_source(str(given))) as source:
        for image in source.list_images():
            assert image.id not in rows
            assert image.path == image.id
            try:
                rows[image.id] = source.read(image, MOST)
            except ImageError as error:
                rows[image.id] = str(error)
    return rows


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar"])
@pytest.mark.parametrize("tool", ["gnu", "gnu-sparse", "pax-sparse", "bsdtar", "v7"])
def test_a_tar_of_every_tool_gives_the_rows_of_the_folder(tmp_path, tool, suffix):
    path = MADE / f"{tool}.tar.gz"
    if suffix == ".tar":
        path = tmp_path / "x.tar"
        path.write_bytes(gzip.decompress((MADE / f"{tool}.tar.gz").read_bytes()))
    assert rows_in(path) == FILES | LINKS | DEAD | ({} if tool == "v7" else DEEP)  # whose names are of 100 characters


@pytest.mark.parametrize("tool", ["info-zip", "info-zip-64", "info-zip-streamed", "bsdtar", "7-zip"])
def test_a_zip_of_every_tool_gives_the_rows_of_the_folder(tool):
    assert rows_in(MADE / f"{tool}.zip") == FILES | LINKS | DEEP | ({} if tool == "7-zip" else DEAD)


@pytest.mark.parametrize("tool", ["info-zip", "7-zip"])
def test_an_encrypted_zip_is_refused_by_name(tool):
    with pytest.raises(InputError, match="is encrypted: unpack it with its password"):
        open_source(str(MADE / f"{tool}-encrypted.zip"))


def test_an_encrypted_file_among_others_is_an_error_that_names_it(tmp_path):
    packed(tmp_path / "x.zip", [("1.png", {}), ("2.png", {})])
    content = bytearray((tmp_path / "x.zip").read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rindex(signature) + flags] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    assert rows_in(tmp_path / "x.zip") == {"1.png": b"of 1.png", "2.png": "it is encrypted in the archive"}


def test_an_unsupported_compression_method_is_named(tmp_path):
    packed(tmp_path / "x.zip", [("1.png", {})])
    content = bytearray((tmp_path / "x.zip").read_bytes())
    for signature, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.rindex(signature) + method] = 9  # Deflate64
    (tmp_path / "x.zip").write_bytes(content)
    assert rows_in(tmp_path / "x.zip") == {"1.png": "its compression method is not supported: use deflate"}


def packed(path, members, kind=zipfile.ZIP_STORED):
    """A zip of members by name, whose content says the name; with what else their headers are to hold."""
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, fields in members:
            member = zipfile.ZipInfo(name)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.writestr(member, b"" if name.endswith(("/", "\\")) else f"of {name}".encode())
    return path


def with_names(path, **bytes_of):
    """Puts bytes in place of ASCII names of the same length, without the flag for UTF-8."""
    content = path.read_bytes()
    for name, raw in bytes_of.items():
        assert len(name) == len(raw)
        content = content.replace(name.encode(), raw)
    path.write_bytes(content)


def test_names_of_macos_are_utf_8_also_without_the_flag(tmp_path):
    path = packed(tmp_path / "x.zip", [("NFC1/NFDD2.png", {"create_system": 3}), ("__MACOSX/NFC1/._NFDD2.png", {})])
    with_names(path, NFC1="üü".encode(), NFDD2="zu\u0308e".encode())
    assert list(rows_in(path)) == ["üü/zu\u0308e.png"]


@pytest.mark.parametrize(
    ("raw", "name"),
    [(b"\x82t\x82", "été"), (b"\x95\\\x95", "ò\\ò")],  # code page 437; Shift JIS, where a backslash is half of 表
)
def test_names_in_a_code_page_lose_no_image(tmp_path, raw, name):
    path = packed(tmp_path / "x.zip", [("NAM.png", {"create_system": 0})])
    with_names(path, NAM=raw)
    assert list(rows_in(path)) == [f"{name}.png"]


def test_a_name_is_that_of_the_extra_field_if_it_is_of_this_name(tmp_path):
    def field(raw, name):
        return struct.pack("<HHBI", 0x7075, 5 + len(name), 1, zlib.crc32(raw)) + name

    other = struct.pack("<HH", 0x5455, 1) + b"x"
    path = packed(
        tmp_path / "x.zip",
        [
            ("NAM.png", {"extra": other + field(b"\x95\\\x95.png", "表.png".encode())}),
            ("NUM.png", {"extra": field(b"", b"y")}),
        ],
    )
    with_names(path, NAM=b"\x95\\\x95", NUM=b"\x82t\x82")
    assert list(rows_in(path)) == ["表.png", "été.png"]


def test_backslashes_of_windows_are_slashes_and_its_folders_no_images(tmp_path):
    windows, unix = {"create_system": 0}, {"create_system": 3}
    path = packed(
        tmp_path / "x.zip",
        [
            ("photos\\", windows),
            ("photos\\a\\1.png", windows),
            ("photos\\Thumbs.db", windows),
            ("photos\\.hidden\\2.png", windows),
            ("photos/empty", windows | {"external_attr": 0x10}),
            ("a\\b.png", unix),
        ],
    )
    assert list(rows_in(path)) == ["photos/a/1.png", "a\\b.png"]


@pytest.mark.parametrize("after", [0, 40])
def test_a_zip_that_is_cut_is_never_read_as_one_that_is_stored_in_it(tmp_path, after):
    inner = packed(tmp_path / "inner.zip", [("secret.png", {})]).read_bytes()
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.writestr("1.png", b"image 1")
        outer.writestr("inner.zip", inner)
        outer.writestr("2.png", b"image 2")
    assert list(rows_in(tmp_path / "outer.zip")) == ["1.png", "inner.zip", "2.png"]
    whole = (tmp_path / "outer.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: whole.index(inner) + len(inner) + after])
    with pytest.raises(InputError, match="is truncated or damaged"):
        open_source(str(tmp_path / "cut.zip"))


def test_a_zip_behind_a_program_that_unpacks_it_is_read(tmp_path):
    path = packed(tmp_path / "x.zip", [("1.png", {})])
    path.write_bytes(b"MZ" + bytes(1000) + path.read_bytes())
    assert rows_in(path) == {"1.png": b"of 1.png"}


def linked(path, links, kind):
    """An archive of three files in folders and of symbolic links, name and target."""
    files = ("d/1.png", "d/e/2.png", "3.png")
    if kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, target in links:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.SYMTYPE, target
                archive.addfile(member)
            for name in files:
                member = tarfile.TarInfo(name)
                member.size = len(name)
                archive.addfile(member, io.BytesIO(name.encode()))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, target in links:
                member = zipfile.ZipInfo(name)
                member.create_system, member.external_attr = 3, 0o120777 << 16
                archive.writestr(member, target)
            for name in files:
                archive.writestr(name, name)
    rows = rows_in(path)
    return {name: content for name, content in rows.items() if name not in files}


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(
    ("links", "rows"),
    [
        ([("l.png", "3.png")], {"l.png": b"3.png"}),
        ([("d/l.png", ".././3.png")], {"d/l.png": b"3.png"}),
        ([("l.png", "d/m.png"), ("d/m.png", "../3.png")], {"l.png": b"3.png", "d/m.png": b"3.png"}),
        ([("l", "d")], {"l/1.png": b"d/1.png", "l/e/2.png": b"d/e/2.png"}),
        (
            [("l", "d/"), ("m.png", "l/e/2.png")],
            {"l/1.png": b"d/1.png", "l/e/2.png": b"d/e/2.png", "m.png": b"d/e/2.png"},
        ),
        (
            [("l", "d/e"), ("d/e/m.png", "../1.png")],
            {"l/2.png": b"d/e/2.png", "l/m.png": b"d/1.png", "d/e/m.png": b"d/1.png"},
        ),
        ([("d/e/up", "..")], {}),
        ([("d/e/top", "../..")], {}),
        ([("d/self", ".")], {}),
        ([(".l.png", "3.png")], {}),
        ([("l.png", "none.png")], {"l.png": None}),
        ([("l.png", "/3.png")], {"l.png": None}),
        ([("l.png", "../3.png")], {"l.png": None}),
        ([("d/l.png", "../../d/1.png")], {"d/l.png": None}),
        ([("l.png", "")], {"l.png": None}),
        ([("l.png", "l.png")], {"l.png": None}),
        ([("l.png", "m.png"), ("m.png", "l.png")], {"l.png": None, "m.png": None}),
        ([(f"{n}.l", f"{n + 1}.l") for n in range(50)], {f"{n}.l": None for n in range(50)}),
    ],
)
def test_a_link_gives_the_rows_that_it_would_give_in_a_folder(tmp_path, links, rows, kind):
    (dead,) = DEAD.values()
    assert linked(tmp_path / f"x.{kind}", links, kind) == {name: row or dead for name, row in rows.items()}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_links_that_lead_to_each_others_folders_end(tmp_path, kind):
    """Followed without an end they would be 2 to the power of 40 folders."""
    links = [(f"{n}/{side}", f"../{n + 1}") for n in range(40) for side in "ab"] + [("40", "d")]
    rows = linked(tmp_path / f"x.{kind}", links, kind)
    assert rows["40/1.png"] == b"d/1.png"
    assert len(rows) < 1000


def test_a_header_that_claims_gigabytes_is_refused_and_not_read_into_memory(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    with gzip.open(tmp_path / "x.tar.gz", "wb") as file:
        file.write(header.tobuf())
        file.write(bytes(4 << 20))
    with pytest.raises(InputError, match="a header of more than"):
        rows_in(tmp_path / "x.tar.gz")


def test_a_sparse_file_is_as_large_as_its_holes_make_it(tmp_path):
    content = gzip.decompress((MADE / "gnu-sparse.tar.gz").read_bytes())
    (tmp_path / "x.tar").write_bytes(content)
    with closing(open_source(str(tmp_path / "x.tar"))) as source:
        (image,) = [image for image in source.list_images() if image.id == "a/sparse.png"]
        with pytest.raises(ImageTooLargeError):
            source.read(image, len(SPARSE) - 1)
        assert source.read(image, len(SPARSE)) == SPARSE


def test_a_name_below_more_folders_than_a_tree_has_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a/" * 300 + "x.png"))
    with (
        closing(open_source(str(tmp_path / "x.tar"))) as source,
        pytest.raises(InputError, match="a name lies below more than 256 folders"),
    ):
        list(source.list_images())


def test_links_of_a_compressed_tar_are_read_from_front_to_back():
    with closing(open_source(str(MADE / "gnu.tar.gz"))) as source:
        assert isinstance(source, TarSource)
        links = [int(image.location.partition(":")[0]) for image in source.list_images() if image.id in LINKS]
    assert links == sorted(links)


@pytest.fixture
def photos_tar(photos, tmp_path):
    return pack(photos, tmp_path / "photos.tar")


def headers_of(archive):
    with tarfile.open(archive) as opened:
        return [member.offset for member in opened]


@pytest.mark.parametrize("how", ["a bit of a header", "cut in a header", "cut in an image", "another archive after it"])
def test_a_tar_that_is_damaged_is_refused_and_loses_no_image(run_batch, photos_tar, tmp_path, how):
    whole, header = photos_tar.read_bytes(), headers_of(photos_tar)[10]
    damaged = {
        "a bit of a header": whole[: header + 150] + bytes([whole[header + 150] ^ 1]) + whole[header + 151 :],
        "cut in a header": whole[: header + 100],
        "cut in an image": whole[: header + 600],
        "another archive after it": whole + whole,
    }[how]
    photos_tar.write_bytes(damaged)
    with pytest.raises(InputError, match=r"photos\.tar"):
        run_batch(photos_tar, tmp_path / "out")


def test_a_compressed_tar_of_several_parts_is_read_to_its_end(run_batch, photos_tar, tmp_path):
    whole, header = photos_tar.read_bytes(), headers_of(photos_tar)[10]
    (tmp_path / "parts.tar.gz").write_bytes(gzip.compress(whole[:header]) + gzip.compress(whole[header:]))
    assert run_batch(tmp_path / "parts.tar.gz", tmp_path / "out") == 0
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok"] * 23


def test_members_of_every_kind_have_the_bytes_that_zipfile_reads(tmp_path):
    contents = {}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
            for name, extra in (
                ("plain", b""),
                ("grün", b""),
                ("extra", b"\x99\x99\xc8\x00" + bytes(200)),
                ("empty", b""),
            ):
                member = zipfile.ZipInfo(f"{name} {kind}.jpg")
                member.compress_type, member.extra = kind, extra
                contents[member.filename] = b"" if name == "empty" else f"{name} {kind}".encode() * 500
                archive.writestr(member, contents[member.filename])
    with closing(open_source(str(tmp_path / "x.zip"))) as source:
        images = list(source.list_images())
        assert {image.path: source.read(image, 1 << 20) for image in images} == contents
        for image in images:
            if contents[image.path]:
                with pytest.raises(ImageTooLargeError):
                    source.read(image, len(contents[image.path]) - 1)


def test_a_member_with_a_wrong_checksum_is_an_error_and_the_others_are_read(tmp_path):
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", kind) as archive:
            for name in ("a", "b"):
                archive.writestr(f"{name}.jpg", name.encode() * 50)
            begin = archive.getinfo("a.jpg").header_offset + 30 + len("a.jpg")
        data = bytearray((tmp_path / "x.zip").read_bytes())
        data[begin + 1] ^= 1
        (tmp_path / "x.zip").write_bytes(data)
        with closing(open_source(str(tmp_path / "x.zip"))) as source:
            first, second = source.list_images()
            with pytest.raises(UnreadableError):
                source.read(first, 1 << 20)
            assert source.read(second, 1 << 20) == b"b" * 50
