"""A file is replaced whole or not at all, and what lies beside it harms nothing."""

import os
import stat
import threading

import pytest

from tureen.atomic_file import atomic_file, write_atomically


def test_a_file_is_made_and_replaced_and_nothing_else_stays(tmp_path):
    file = tmp_path / "file"
    for content in (b"old", b"longer than old", b""):
        write_atomically(file, content)
        assert file.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("has_other_writers", [False, True])
def test_a_block_that_raises_leaves_the_old_content_and_nothing_else(tmp_path, error, has_other_writers):
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def write_half():
        with atomic_file(file, has_other_writers=has_other_writers) as temporary:
            temporary.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_readers_see_the_old_content_until_the_block_ends(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with atomic_file(file) as temporary:
        temporary.write(b"new")
        temporary.flush()
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("has_other_writers", [False, True])
def test_the_permissions_are_the_requested_ones_less_the_umask(tmp_path, has_other_writers):
    file = tmp_path / "file"
    umask = os.umask(0o027)
    try:
        for mode, expected in ((0o666, 0o640), (0o600, 0o600)):
            write_atomically(file, b"content", mode=mode, has_other_writers=has_other_writers)
            assert stat.S_IMODE(file.stat().st_mode) == expected
    finally:
        os.umask(umask)


def test_a_temporary_file_left_by_a_killed_process_is_removed(tmp_path):
    (tmp_path / ".file.part").write_bytes(b"of a process that was killed")
    write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["file", ".file.part"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_at_either_name_is_replaced_and_not_written_through(tmp_path, name, link):
    other, folder = tmp_path / "other", tmp_path / "folder"
    folder.mkdir()
    other.write_bytes(b"of somebody else")
    link(other, folder / name)
    write_atomically(folder / "file", b"new")
    assert other.read_bytes() == b"of somebody else"
    assert (folder / "file").read_bytes() == b"new"
    assert not (folder / "file").is_symlink()
    assert os.listdir(folder) == ["file"]


def test_a_directory_that_is_missing_is_an_error_and_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_several_writers_at_the_same_time_leave_the_whole_content_of_one(tmp_path):
    file, contents = tmp_path / "file", [bytes([n]) * 100_000 for n in range(4)]
    write_atomically(file, contents[0])

    def write(content):
        for _ in range(20):
            write_atomically(file, content, has_other_writers=True)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert file.read_bytes() in contents
    for thread in threads:
        thread.join()
    assert file.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]
