"""Every corruption at every severity, with results computed by hand for some."""

import colorsys
import io
from functools import cache
from itertools import chain, pairwise

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from training.errors import RecipeError, TrainingError
from training.evaluation.corruptions import CORRUPTIONS, FAMILIES, PIXELS_AT_ONCE, SEVERITIES, corrupt
from training.evaluation.shifts import SHIFTS

NAMES = [*CORRUPTIONS, *SHIFTS]
BLURS_AND_WARPS = [
    *FAMILIES["blur"],
    "contrast",
    "elastic_transform",
    "pixelate",
    "rotation",
    "translation",
    "scale",
]


@cache
def pictures(side, count=2):
    """Return coloured blobs with a little grain: uint8 (count, side, side, 3), read-only."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j][..., None]
    image = 60 + generator.normal(0, 2, (count, side, side, 3))
    for sharpness in [30] * 8 + [1000] * 16:
        row, column, colour = generator.random((3, count, 1, 1, 3))
        image += 150 * (colour - 0.4) * np.exp(-sharpness * ((rows - row) ** 2 + (columns - column) ** 2))
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


def digits(count=60):
    grey = np.round(datasets.load_digits().images[:count] * (255 / 16)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3)


def flat(value, side, count=4):
    return np.full((count, side, side, 3), value, dtype=np.uint8)


def distances(pixels, name):
    return [np.abs(corrupt(pixels, name, severity).astype(float) - pixels).mean() for severity in SEVERITIES]


@pytest.mark.parametrize("side", [8, 32, 224])
@pytest.mark.parametrize("name", NAMES)
def test_each_severity_changes_a_picture_and_the_seed_repeats_it(name, side):
    pixels = pictures(side, count=1 if side == 224 else 4)
    for severity in SEVERITIES:
        corrupted = corrupt(pixels, name, severity, seed=3)
        assert corrupted.shape == pixels.shape
        assert corrupted.dtype == np.uint8
        changed = (corrupted != pixels).any(axis=(1, 2, 3))
        assert changed.all() or (name == "impulse_noise" and changed.any())  # 1 % of 192 values may be none
        if severity == 3:
            assert np.array_equal(corrupted, corrupt(pixels, name, severity, seed=3))


@pytest.mark.parametrize("name", NAMES)
def test_images_need_not_be_square(name):
    pixels = pictures(32)[:, :20]
    assert corrupt(pixels, name, 3).shape == (2, 20, 32, 3)
    assert corrupt(pixels.transpose(0, 2, 1, 3), name, 3).shape == (2, 32, 20, 3)


@pytest.mark.parametrize(
    "name",
    [*FAMILIES["noise"], "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform", "translation"],
)
def test_another_seed_and_another_image_draw_anew(name):
    one = pictures(32, count=1)
    first, second = corrupt(one.repeat(2, axis=0), name, 3)
    assert not np.array_equal(first, second)
    assert not np.array_equal(corrupt(one, name, 3, seed=0), corrupt(one, name, 3, seed=1))


# The published parameters of these two trade size against roughness, and do not grow in pixels.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("elastic_transform", "glass_blur")])
def test_the_distance_to_the_original_grows_with_severity(name):
    for pixels in (pictures(32, count=8), pictures(224, count=1), digits()):
        if name == "greyscale" and len(pixels) == 60:
            continue  # digits have no colour
        if name == "pixelate" and len(pixels) == 60:
            continue  # 8 pixels shrink to 7, 7, 6, 6 and 5, which do not fall on the strokes alike
        measured = distances(pixels, name)
        # Snow and frost also dim or thin out as they grow, by their published parameters: hence the tenth.
        assert all(later > 0.9 * earlier for earlier, later in pairwise(measured)), measured
        assert measured[4] > 1.1 * measured[0], measured


def test_glass_blur_gives_each_pixel_but_the_border_the_colour_of_one_of_four():
    """Severity 1 at 32 pixels has a blur below one level, and one round of neighbours above and to the left."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(8, 32, 32, 3), dtype=np.uint8)
    moved = corrupt(pixels, "glass_blur", 1)
    inside = moved[:, 2:, 2:]
    came_from = [
        (inside == pixels[:, 2 - up : 32 - up, 2 - left : 32 - left]).all(axis=3) for up in (0, 1) for left in (0, 1)
    ]
    assert np.logical_or.reduce(came_from).all()
    assert all(share.mean() == pytest.approx(0.25, abs=0.02) for share in came_from)
    assert np.array_equal(moved[:, :2], pixels[:, :2])
    assert np.array_equal(moved[:, :, :2], pixels[:, :, :2])


def test_glass_blur_moves_pixels_about_more_often_at_the_severities_of_two_rounds():
    measured = distances(pictures(32, count=16), "glass_blur")
    assert min(measured[3:]) > 1.2 * max(measured[:3])


def test_elastic_transform_grows_rougher():
    """On a ramp the values are the displacement, and their second difference is its roughness."""
    ramp = np.broadcast_to(7 * np.arange(32, dtype=np.uint8)[:, None, None], (16, 32, 32, 3))

    def roughness(severity):
        inside = corrupt(ramp, "elastic_transform", severity)[:, 8:-8, 8:-8].astype(float)
        return np.abs(np.diff(inside, n=2, axis=2)).mean()

    measured = [roughness(severity) for severity in SEVERITIES]
    assert measured[4] > 1.5 * measured[3] > 2 * measured[2]


@pytest.mark.parametrize("name", BLURS_AND_WARPS)
def test_a_flat_picture_has_nothing_to_blur_or_move(name):
    for side in (8, 32, 224):
        assert np.array_equal(corrupt(flat(90, side), name, 5), flat(90, side))


@pytest.mark.parametrize(("side", "sigma"), [(8, 0.06), (32, 0.06), (224, 0.12)])
def test_gaussian_noise_has_the_published_deviation(side, sigma):
    noise = corrupt(flat(128, side, 200 if side < 224 else 4), "gaussian_noise", 2).astype(float) - 128
    assert noise.std() == pytest.approx(255 * sigma, rel=0.02)
    assert abs(noise.mean()) < 0.5
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.05


def test_shot_noise_has_the_variance_of_counted_photons():
    """Mean and variance of p photons are both p: at 51/255 of full intensity and 100 photons, p = 20."""
    counted = corrupt(flat(51, 32, 50), "shot_noise", 3) * (100 / 255)
    assert counted.mean() == pytest.approx(20, rel=0.01)
    assert counted.var() == pytest.approx(20, rel=0.03)
    assert np.array_equal(corrupt(flat(0, 32), "shot_noise", 3), flat(0, 32))


@pytest.mark.parametrize(("side", "share"), [(32, 0.07), (224, 0.27)])
def test_impulse_noise_strikes_the_published_share_half_white_half_black(side, share):
    struck = corrupt(flat(128, side, 50 if side < 224 else 4), "impulse_noise", 5)
    assert set(np.unique(struck)) == {0, 128, 255}
    assert (struck == 0).mean() == pytest.approx(share / 2, rel=0.05)
    assert (struck == 255).mean() == pytest.approx(share / 2, rel=0.05)
    assert (struck != 128).any(axis=3).mean() == pytest.approx(
        1 - (1 - share) ** 3, rel=0.05
    )  # each channel for itself


def test_defocus_blur_spreads_a_point_over_a_disc():
    point = flat(0, 224, 1)
    point[0, 100, 100] = 255
    spread = corrupt(point, "defocus_blur", 1)[0, ..., 0]
    rows, columns = np.nonzero(spread)
    assert len(rows) == 29  # lattice points within 3
    assert np.hypot(rows - 100, columns - 100).max() == 3
    assert set(spread[rows, columns]) == {round(255 / 29)}


def test_lengths_grow_with_the_side_but_stay_at_those_of_32_below_it():
    def reach(side):
        point = flat(0, side, 1)
        point[0, side // 2, side // 2] = 255
        return np.count_nonzero(corrupt(point, "defocus_blur", 5)[0, ..., 0])

    assert reach(8) == reach(32) == 9  # lattice points within 1.5
    assert reach(64) == 29  # within 3
    assert 81 < reach(112) < reach(224) / 3  # within 5 and 10, the rim being soft


def test_the_nearer_of_the_two_published_sizes_gives_the_parameters():
    def kept(side):
        pixels = flat(0, side, 1)
        pixels[:, ::2] = 200
        return np.ptp(corrupt(pixels, "contrast", 2)) / 200

    assert kept(84) == pytest.approx(0.5, abs=0.01)
    assert kept(85) == pytest.approx(0.3, abs=0.01)


def test_motion_blur_draws_a_point_out_along_a_line_near_the_horizontal():
    points = flat(0, 224, 6)
    points[:, 112, 112] = 255
    for image in corrupt(points, "motion_blur", 1)[..., 0]:
        rows, columns = np.nonzero(image)
        # A Gaussian's half: 9 pixels are three sigma. Each rounds to a level, so the sum is near 255.
        assert abs(int(image.sum()) - 255) < 12
        assert columns.max() == 112  # to one side, and no further
        assert np.abs(rows - 112).max() <= 112 - columns.min()
        line = np.polynomial.polynomial.polyfit(columns - 112, rows - 112, 1)
        assert np.abs(rows - 112 - np.polynomial.polynomial.polyval(columns - 112, line)).max() < 1


def test_zoom_blur_leaves_the_centre_sharper_than_the_rim():
    rows, columns = np.mgrid[:224, :224]
    checks = np.repeat((((rows // 4 + columns // 4) % 2) * 255).astype(np.uint8)[None, ..., None], 3, axis=3)
    blurred = corrupt(checks, "zoom_blur", 5)[0, ..., 0].astype(float)
    assert blurred[108:116, 108:116].std() > 1.5 * blurred[:24, :24].std()


def test_snow_only_ever_brightens():
    pixels = pictures(32, count=8)
    for severity in SEVERITIES:
        assert (corrupt(pixels, "snow", severity) >= pixels).all()


def test_frost_at_its_slightest_only_adds_ice_bluish_and_over_about_half():
    added = corrupt(flat(60, 224, 4), "frost", 1).astype(int) - 60
    assert added.min() == 0
    assert added.max() == round(0.4 * 255)
    assert 0.35 < added[..., 2].mean() / added.max() < 0.65
    assert (added[..., 2] >= added[..., 1]).all()
    assert (added[..., 1] >= added[..., 0]).all()


def test_fog_whitens_but_nothing_outshines_the_brightest_value():
    pixels = pictures(32, count=8) // 2
    for severity in SEVERITIES:
        foggy = corrupt(pixels, "fog", severity)
        assert (foggy.max(axis=(1, 2, 3)) <= pixels.max(axis=(1, 2, 3))).all()
        assert np.ptp(foggy.astype(float), axis=3).mean() < np.ptp(pixels.astype(float), axis=3).mean()  # less colour


def test_brightness_adds_to_the_value_of_hsv():
    pixels = np.random.default_rng(0).integers(0, 256, size=(1, 8, 8, 3), dtype=np.uint8)
    pixels[0, 0, 0] = 0
    brighter = corrupt(pixels, "brightness", 4)
    for before, after in zip(pixels.reshape(-1, 3), brighter.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2))) * 255
        assert np.abs(after - expected).max() < 0.51  # rounding


def test_contrast_keeps_each_channels_mean_and_shrinks_deviations():
    pixels = pictures(32).astype(float)
    lower = corrupt(pixels.astype(np.uint8), "contrast", 4)
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    assert np.abs(lower - (mean + 0.3 * (pixels - mean))).max() < 0.51  # rounding


def test_pixelate_makes_blocks_of_the_mean():
    pixels = pictures(224, count=1)
    blocks = pixels.reshape(1, 112, 2, 112, 2, 3).mean(axis=(2, 4))
    expected = blocks.repeat(2, axis=1).repeat(2, axis=2)
    assert np.abs(corrupt(pixels, "pixelate", 2) - expected).max() <= 1  # Pillow rounds after each axis


@pytest.mark.parametrize(("side", "quality"), [(32, 40), (224, 7)])
def test_jpeg_compression_is_pillows_at_the_published_quality(side, quality):
    pixels = pictures(side)
    buffer = io.BytesIO()
    Image.fromarray(pixels[1]).save(buffer, "JPEG", quality=quality)
    assert np.array_equal(corrupt(pixels, "jpeg_compression", 5)[1], np.asarray(Image.open(buffer)))


def test_families_hold_each_of_the_fifteen_corruptions_once():
    assert list(chain(*FAMILIES.values())) == list(CORRUPTIONS)
    assert len(CORRUPTIONS) == 15
    assert not CORRUPTIONS.keys() & SHIFTS.keys()


def test_a_batch_too_large_for_one_piece_is_corrupted_to_its_end():
    pixels = np.random.default_rng(0).integers(0, 256, size=(PIXELS_AT_ONCE // 64**2 + 2, 64, 64, 3), dtype=np.uint8)
    whole = corrupt(pixels, "contrast", 1)
    assert np.array_equal(whole[-3:], corrupt(pixels[-3:], "contrast", 1))


@pytest.mark.parametrize("name", NAMES)
def test_no_images_are_no_images(name):
    assert corrupt(pictures(8)[:0], name, 1).shape == (0, 8, 8, 3)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"'fogg'.*gaussian_noise.*fog.*rotation") as caught:
        corrupt(pictures(8), "fogg", 1)
    assert isinstance(caught.value, TrainingError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5])
def test_a_severity_other_than_1_to_5_is_refused(severity):
    with pytest.raises(RecipeError, match=f"1 to 5, not {severity}"):
        corrupt(pictures(8), "fog", severity)
