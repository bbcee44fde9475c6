import pytest
import torch

from training.data.augment import (
    augment_images,
    change_brightness,
    erase_rectangles,
    mix_images,
    rotate_images,
    shift_images,
)
from training.recipes import Augmentation


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shifts_move_each_image_by_a_separate_offset_and_pull_in_zeros():
    x = torch.zeros(64, 3, 8, 8)
    x[:, :, 4, 4] = 1
    moved = shift_images(x, 1, seeded())
    assert torch.equal(moved.sum((1, 2, 3)), x.sum((1, 2, 3)))
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
    assert torch.equal(shift_images(x, 0, seeded()), x)


@pytest.mark.parametrize("shape", [(24, 24), (24, 40)])
def test_rotations_move_a_point_along_an_arc_of_at_most_the_angle(shape):
    height, width = shape
    x = torch.zeros(200, 3, height, width)
    x[:, :, height // 2 - 1 : height // 2 + 1, width - 3 : width - 1] = 1
    rotated = rotate_images(x, 30, seeded())
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    mass = rotated[:, 0].sum((1, 2))
    down = (rotated[:, 0] * rows).sum((1, 2)) / mass - height / 2
    right = (rotated[:, 0] * columns).sum((1, 2)) / mass - width / 2
    torch.testing.assert_close((down**2 + right**2).sqrt(), torch.full((200,), width / 2 - 2), atol=0.1, rtol=0)
    angles = torch.atan2(down, right).rad2deg()
    assert -30.5 < angles.min() < -25 < 25 < angles.max() < 30.5
    grey = torch.full((4, 3, height, width), 0.4)
    torch.testing.assert_close(rotate_images(grey, 30, seeded()), grey)  # the border continues outside


def test_brightness_multiplies_all_pixels_of_an_image_by_one_factor():
    x = torch.rand(200, 3, 4, 4) * 0.6 + 0.05
    factors = change_brightness(x, 0.4, seeded()) / x
    one_each = factors.flatten(1).mean(1)
    torch.testing.assert_close(factors, one_each[:, None, None, None].expand_as(factors))
    assert 0.6 <= one_each.min() < 0.65 < 1.35 < one_each.max() <= 1.4
    assert change_brightness(torch.ones(20, 3, 4, 4), 0.4, seeded()).max() == 1


def test_nothing_changes_without_an_augmentation():
    x, y = torch.rand(8, 3, 8, 8), torch.arange(8)
    assert torch.equal(augment_images(x, Augmentation(), seeded()), x)
    images, targets = mix_images(x, y, Augmentation(), 8, seeded())
    assert torch.equal(images, x)
    assert torch.equal(targets, y)


def test_half_of_the_images_are_mirrored():
    x = torch.rand(200, 3, 4, 4)
    flipped = augment_images(x, Augmentation(flip=True), seeded())
    is_mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    is_same = (flipped == x).flatten(1).all(1)
    assert (is_mirrored | is_same).all()
    assert 70 < is_mirrored.sum() < 130


def test_erasing_puts_a_rectangle_of_noise_into_as_many_images_as_it_should():
    x = torch.full((400, 3, 32, 32), 0.5)
    changed = (erase_rectangles(x, 0.25, seeded()) != x).any(1)  # (B, H, W)
    assert 70 < changed.flatten(1).any(1).sum() < 130
    for image in changed[changed.flatten(1).any(1)]:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        assert image.sum() == len(rows) * len(columns)  # a full rectangle, of at most 33 % of the area
        assert image.sum() <= 0.4 * 32 * 32


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_gives_each_label_the_share_its_image_has(kind):
    """Each image has one level, that of its label, so the mean level of a mixed image equals that of its targets."""
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    x, y = levels[:, None, None, None].expand(4, 3, 16, 16), torch.arange(4)
    for seed in range(10):
        images, targets = mix_images(x, y, Augmentation(**{kind: 1.0}), 4, seeded(seed))
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        torch.testing.assert_close(images.mean((1, 2, 3)), targets @ levels)


def test_label_smoothing_shares_its_part_among_all_classes():
    _, targets = mix_images(
        torch.rand(2, 3, 4, 4), torch.tensor([0, 1]), Augmentation(label_smoothing=0.1), 4, seeded()
    )
    torch.testing.assert_close(targets[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))


def test_everything_random_comes_from_the_generator_and_nothing_else_is_disturbed():
    augmentation = Augmentation(shift_pixels=1, flip=True, randaugment_ops=2, erasing=0.5, mixup=0.8, cutmix=1.0)
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()

    def change(seed):
        generator = seeded(seed)
        return mix_images(augment_images(x, augmentation, generator), y, augmentation, 8, generator)

    first, again, other = change(0), change(0), change(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].min() >= 0
    assert first[0].max() <= 1
