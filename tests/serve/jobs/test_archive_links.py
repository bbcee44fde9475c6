"""The links of an archive are resolved by name, from the links, files and folders alone."""

from pathlib import Path

import pytest

from serve.errors import InputError
from serve.jobs.archive_links import MAX_LINKS, MAX_LINKS_PER_PATH, MAX_STEPS, ArchiveLinks, path_parts

FILES = {"d/1.png": "30", "d/e/2.png": "20", "3.png": "10"}  # location by name


def located(links, *, hard=()):
    """The location of each image that the links add, by name and in their order; "" for a dead link."""
    resolved = ArchiveLinks(Path("x.tar"))
    for name, target in links.items():
        resolved.add(name, target, is_hard=name in hard)
    resolved.resolve()
    for name, location in FILES.items():
        resolved.add_target(name, location)
    return {image.id: image.location for image in resolved.images()}


@pytest.mark.parametrize(
    ("links", "images"),
    [
        ({"l.png": "3.png"}, {"l.png": "10"}),
        ({"d/l.png": "1.png"}, {"d/l.png": "30"}),
        ({"d/l.png": "../3.png"}, {"d/l.png": "10"}),
        ({"l.png": "m.png", "m.png": "d/1.png"}, {"l.png": "30", "m.png": "30"}),
        ({"l": "d"}, {"l/1.png": "30", "l/e/2.png": "20"}),
        ({"l.png": "d/none.png"}, {"l.png": ""}),
        ({"l.png": "../3.png"}, {"l.png": ""}),
        ({"l.png": "/3.png"}, {"l.png": ""}),
        ({"l.png": "m.png", "m.png": "l.png"}, {"l.png": "", "m.png": ""}),
        ({"d/up": ".."}, {}),
        ({"Thumbs.db": "3.png"}, {}),
    ],
)
def test_a_symbolic_link_is_relative_to_its_folder_and_stays_in_the_archive(links, images):
    assert located(links) == images


def test_a_hard_link_is_relative_to_the_root_of_the_archive():
    assert located({"d/l.png": "3.png"}, hard={"d/l.png"}) == {"d/l.png": "10"}
    assert located({"d/l.png": "/3.png"}, hard={"d/l.png"}) == {"d/l.png": "10"}
    assert located({"d/l.png": "3.png"}) == {"d/l.png": ""}


def test_images_are_in_the_order_of_their_targets():
    assert list(located({"a.png": "d/1.png", "b.png": "d/e/2.png", "c.png": "3.png"}).values()) == ["10", "20", "30"]


@pytest.mark.parametrize(("links", "location"), [(MAX_LINKS_PER_PATH, "10"), (MAX_LINKS_PER_PATH + 1, "")])
def test_a_path_follows_a_limited_number_of_links(links, location):
    chain = {f"{n}.l": f"{n + 1}.l" for n in range(links - 1)} | {f"{links - 1}.l": "3.png"}
    assert located(chain)["0.l"] == location


def test_an_archive_without_links_is_false():
    links = ArchiveLinks(Path("x.tar"))
    assert not links
    links.add("l.png", "3.png")
    assert links


def test_the_parts_of_a_path_leave_out_the_empty_ones_and_dots():
    assert path_parts("/a//./b/../c/") == ["a", "b", "..", "c"]


def test_an_archive_of_more_links_than_are_held_is_refused():
    links = ArchiveLinks(Path("x.tar"))
    for n in range(MAX_LINKS):
        links.add(f"{n}.png", "3.png")
    with pytest.raises(InputError, match=r"x\.tar has more than 100,000 links"):
        links.add("one-more.png", "3.png")


def test_a_link_through_more_folders_than_a_tree_has_is_dead():
    links = ArchiveLinks(Path("x.tar"))
    links.add("deep", "a/" * 60_000 + "x")
    links.resolve()
    assert [image.location for image in links.images()] == [""]


def test_an_archive_whose_links_lead_through_too_many_folders_is_refused():
    links = ArchiveLinks(Path("x.tar"))
    for n in range(MAX_STEPS // 250):
        links.add(f"{n}", "a/" * 250 + "x")
    with pytest.raises(InputError, match=r"x\.tar: its links lead through too many folders"):
        links.resolve()
