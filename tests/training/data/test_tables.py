"""The rows of a CSV file of labelled images, and the errors that name the line."""

import pytest

from training.data.sources import open_source
from training.data.tables import ImageRow, read_table
from training.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "deep/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def write(folder, text, encoding="utf-8"):
    (folder / "images.csv").write_bytes(text.encode(encoding))
    return folder / "images.csv"


def test_the_columns_are_read_in_any_order_and_others_are_ignored(folder):
    file = write(folder, f"label,note,path\r\nstop,x,a.png\r\n yield ,,{folder}/deep/b.png\r\n", "utf-8-sig")
    assert read_table(file) == [ImageRow("a.png", "stop"), ImageRow(f"{folder}/deep/b.png", "yield")]


def test_a_table_is_a_source_without_splits(folder):
    source = open_source(str(write(folder, "path,label\ndeep/b.png,yield\na.png,stop\na.png,yield\n")))
    assert source.names == ["stop", "yield"]
    assert source.train.labels.tolist() == [1, 0, 1]
    assert [source.train.read(index) for index in range(2)] == [b"deep/b.png", b"a.png"]
    assert source.test is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"images\.csv has no column path and label: its first line must be path,label"),
        ("a.png,stop\n", "no column path and label"),
        ("path,class\na.png,stop\n", "no column label"),
        ("path,label\n", r"images\.csv has no row of an image"),
        ("path,label\na.png,stop\nb.png,stop\n", r"line 3: there is no file b\.png"),
        ("path,label\na.png,\n", "line 2: the label is empty"),
        ("path,label\na.png\n", "line 2: the label is empty"),
        ("path,label\n,stop\n", "line 2: the path is empty"),
        ("path,label\ndeep,stop\n", "line 2: there is no file deep"),
        ('path,label\n"a.png,stop\n', "is not a CSV file in UTF-8"),
    ],
)
def test_another_table_is_refused_with_its_line(folder, text, message):
    with pytest.raises(DataError, match=message):
        read_table(write(folder, text))


def test_other_files_are_refused(folder):
    with pytest.raises(DataError, match="is not a CSV file in UTF-8"):
        read_table(write(folder, "path,label\nstraße.png,stop\n", "latin-1"))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_table(folder / "absent.csv")
