"""Images inside a Parquet file: which rows they give, in which order they may be read, and what is refused."""

from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.errors import InputError, UnreadableError
from serve.jobs.input_sources import open_source
from serve.jobs.rooted_files import RootedFiles
from tests.serve.jobs.tables import rows_of
from tureen.errors import ImageTooLargeError

MOST = 1 << 20


def write(path, contents, names=None, *, is_struct=False, rows_per_group=7, **columns):
    """Writes the contents of images, and a column `path` if there are names. Returns the path."""
    image = [{"bytes": one, "path": None} for one in contents] if is_struct else contents
    table = {"image": image, **({} if names is None else {"path": names}), **columns}
    pq.write_table(pa.table(table), path, row_group_size=rows_per_group)
    return path


@pytest.mark.parametrize("is_struct", [False, True])
def test_images_in_a_parquet_file_give_the_rows_of_the_folder(run_batch, photos, tmp_path, is_struct):
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    names = [str(path.relative_to(photos)) for path in files]
    given = write(tmp_path / "x.parquet", [path.read_bytes() for path in files], names, is_struct=is_struct)
    assert run_batch(given, tmp_path / "one") == 0
    assert run_batch(photos, tmp_path / "two") == 0
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")


def test_a_row_without_a_path_has_its_number_and_may_have_an_id_and_a_beta(tmp_path):
    given = write(tmp_path / "x.parquet", [b"a", b"b"], id=["first", None], beta=[0.5, None])
    with closing(open_source(str(given))) as source:
        images = list(source.list_images())
    assert [(image.id, image.path, image.beta) for image in images] == [
        ("first", "row 1", 0.5),
        ("row 2", "row 2", None),
    ]
    with closing(open_source(str(write(tmp_path / "y.parquet", [b"a", b"b"])))) as source:
        assert [image.path for image in source.list_images()] == ["row 1", "row 2"]


@pytest.mark.parametrize("order", [range(50), range(49, -1, -1), [40, 3, 3, 20, 21, 7]])
def test_images_can_be_read_in_any_order(tmp_path, order):
    contents = [bytes([n]) * (n + 1) for n in range(50)]
    for is_struct in (False, True):
        given = write(tmp_path / "x.parquet", contents, is_struct=is_struct, rows_per_group=20)
        with closing(open_source(str(given))) as source:
            images = list(source.list_images())
            assert source.is_sequential
            assert [source.read(images[n], MOST) for n in order] == [contents[n] for n in order]


def test_a_large_or_absent_image_is_refused_and_the_others_are_read(tmp_path):
    given = write(tmp_path / "x.parquet", [b"a" * 100, None, b"b"])
    with closing(open_source(str(given), RootedFiles([tmp_path], []))) as source:
        images = list(source.list_images())
        with pytest.raises(ImageTooLargeError):
            source.read(images[0], 99)
        with pytest.raises(UnreadableError, match="holds no image"):
            source.read(images[1], MOST)
        assert source.read(images[2], MOST) == b"b"


def test_a_damaged_row_group_is_an_error_of_its_images(tmp_path):
    given = write(tmp_path / "x.parquet", [bytes([n]) * 999 for n in range(20)], rows_per_group=10)
    group = pq.ParquetFile(given).metadata.row_group(0).column(0)
    content = bytearray(given.read_bytes())
    begin = group.dictionary_page_offset or group.data_page_offset
    content[begin : begin + group.total_compressed_size] = bytes(group.total_compressed_size)
    given.write_bytes(content)
    with closing(open_source(str(given))) as source:
        images = list(source.list_images())
        for image in (images[0], images[9]):
            with pytest.raises(UnreadableError, match="cannot be read at this row"):
                source.read(image, MOST)
        assert source.read(images[15], MOST) == bytes([15]) * 999


@pytest.mark.parametrize("image", ["a.jpg", {"bytes": 1}, {"bytes": [b"a"]}])
def test_a_column_image_of_another_kind_is_no_image(tmp_path, image):
    pq.write_table(pa.table({"path": ["a.jpg"], "image": [image]}), tmp_path / "x.parquet")
    with closing(open_source(str(tmp_path / "x.parquet"))) as source:
        (image,) = source.list_images()
        assert (image.location, source.is_sequential) == ("a.jpg", False)


def test_two_columns_image_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([b"a"]), pa.array([b"b"])], names=["image", "image"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="has 2 columns image"):
        open_source(str(tmp_path / "x.parquet"))


def test_a_column_with_the_name_of_the_field_is_not_read(tmp_path):
    pq.write_table(pa.table({"image.bytes": [b"other"], "image": [{"bytes": b"a"}]}), tmp_path / "x.parquet")
    with closing(open_source(str(tmp_path / "x.parquet"))) as source:
        (image,) = source.list_images()
        assert source.read(image, MOST) == b"a"
