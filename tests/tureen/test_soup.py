import io
import json
import pickle
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tureen
from tests.conftest import encoded
from tureen.bundle.bundle import Bundle, load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.bundle.manifest import CalibrationRow
from tureen.engines.base import EngineOptions
from tureen.errors import InvalidPixelsError
from tureen.soup import CHUNK_IMAGES, Soup

PNG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)))


@pytest.fixture(scope="module")
def example() -> Iterator[Soup]:
    with tureen.load(EXAMPLES / "cifar10", engine="onnxruntime", precision="fp32") as soup:
        yield soup


@pytest.fixture(scope="module")
def example_bundle() -> Bundle:
    return load_bundle(EXAMPLES / "cifar10")


def test_each_digit_is_classified_at_its_beta(soup, held_out, digit_png):
    betas = [0.0, 0.3, 0.7, 1.0] * 5
    answers = soup.classify([digit_png(i) for i in range(20)], beta=betas)
    assert [answer.beta for answer in answers] == betas
    right = [answer.predictions[0].index == held_out.labels[i] for i, answer in enumerate(answers)]
    assert sum(right) >= 18
    for answer in answers:
        assert len(answer.predictions) == 5
        probabilities = [prediction.probability for prediction in answer.predictions]
        assert probabilities == sorted(probabilities, reverse=True)


def test_bytes_paths_images_and_arrays_are_the_same_image(soup, held_out, digit_png, tmp_path):
    path = tmp_path / "digit.png"
    path.write_bytes(digit_png(3))
    array = held_out.pixels[3]
    answers = soup.classify([digit_png(3), path, Image.fromarray(array), array])
    assert all(answer == answers[0] for answer in answers)


def test_beta_is_one_for_all_or_one_for_each_or_the_bundles_default(soup, digit_png):
    images = [digit_png(0), digit_png(1)]
    assert [a.beta for a in soup.classify(images)] == [0.0, 0.0]
    assert [a.beta for a in soup.classify(images, beta="robust")] == [1.0, 1.0]
    assert [a.beta for a in soup.classify(images, beta=[0.25, "clean"])] == [0.25, 0.0]
    with pytest.raises(ValueError, match="2 images and 3 β"):
        soup.classify(images, beta=[0, 0, 0])
    with pytest.raises(tureen.InvalidBetaError):
        soup.classify(images, beta=[0, 2])


def test_a_strength_becomes_the_beta_of_the_bundle_and_both_are_in_the_result(soup, digit_png):
    curve, images = soup.bundle.manifest.strength, [digit_png(0), digit_png(1)]
    answers = soup.classify(images, strength=0.5)
    assert [(a.strength, a.beta) for a in answers] == [(0.5, curve.beta_at(0.5))] * 2
    assert soup.classify(images, beta=curve.beta_at(0.5)) == answers
    assert [a.strength for a in soup.classify(images, strength=np.array([0.25, 1]))] == [0.25, 1]
    assert [(a.strength, a.beta) for a in soup.classify(images)] == [(0, 0)] * 2
    with pytest.raises(tureen.ArgumentError, match="beta and strength exclude each other"):
        soup.classify(images, 0.5, strength=0.5)
    for invalid in (2, "robust", [0, None], b"1", float("nan")):
        with pytest.raises(tureen.InvalidStrengthError, match="give a number from 0"):
            soup.classify(images, strength=invalid)


def test_no_images_give_no_results(example):
    assert example.classify([]) == []


@pytest.mark.parametrize("image", [PNG, "a.png", bytearray(PNG), io.BytesIO(PNG), np.zeros((9, 9, 3), np.uint8)])
def test_one_image_is_not_a_list_of_images(example, image):
    with pytest.raises(TypeError, match=r"\[image\]"):
        example.classify(image)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (PNG[:60], tureen.ImageError),
        ("missing.png", tureen.ImageError),
        (np.zeros((8, 8)), tureen.ImageError),
        (None, tureen.ArgumentTypeError),
    ],
)
def test_one_bad_image_among_many_is_named_by_its_place(example, bad, error):
    images = [PNG] * (CHUNK_IMAGES + 5)
    images[CHUNK_IMAGES + 2] = bad
    with pytest.raises(error, match=rf"^images\[{CHUNK_IMAGES + 2}\]: ") as caught:
        example.classify(images)
    if error is tureen.ImageError:
        assert caught.value.index == CHUNK_IMAGES + 2
    assert isinstance(caught.value, tureen.TureenError)


@pytest.mark.parametrize("images", [None, 7, object()])
def test_a_value_that_is_no_list_of_images_is_refused_with_the_accepted_types(example, images):
    with pytest.raises(TypeError, match=f"images is a {type(images).__name__}; give a list, each a path"):
        example.classify(images)


@pytest.mark.parametrize("mode", ["16 bits", "transparent", "turned"])
def test_a_file_and_its_pillow_image_have_the_same_result(example, encode, photograph, mode):
    deep = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21)
    clear = photograph.copy()
    clear.putalpha(photograph.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = {"16 bits": encode(deep), "transparent": encode(clear), "turned": encode(photograph, "JPEG", exif=exif)}[
        mode
    ]
    of_file, of_image = example.classify([file, Image.open(io.BytesIO(file))])
    assert of_file == of_image


class CountingEngine:
    """Answers every image alike, and keeps how many it got at a time."""

    name, precision, version = "onnxruntime", "fp32", "1"

    def __init__(self, classes: int) -> None:
        self.classes, self.batches, self.closed = classes, [], 0

    def run(self, pixels, tokens):
        assert pixels.flags.c_contiguous
        self.batches.append(len(pixels))
        return np.zeros((len(pixels), self.classes), np.float32)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def counting(example_bundle) -> Soup:
    return Soup(example_bundle, CountingEngine(len(example_bundle.manifest.labels)))


def test_many_images_are_run_a_few_at_a_time_and_held_no_longer(counting):
    alive: list[weakref.ref] = []

    def pictures():
        for _ in range(3 * CHUNK_IMAGES + 1):
            picture = Image.new("RGB", (9, 9))
            alive.append(weakref.ref(picture))
            assert sum(ref() is not None for ref in alive) <= CHUNK_IMAGES + 1
            yield picture

    assert len(counting.classify(pictures())) == 3 * CHUNK_IMAGES + 1
    assert counting.engine.batches == [CHUNK_IMAGES] * 3 + [1]


@given(count=st.integers(0, 40), given_betas=st.integers(0, 40), is_sized=st.booleans())
def test_one_beta_for_each_image_or_an_error(example_bundle, count, given_betas, is_sized):
    soup = Soup(example_bundle, CountingEngine(10))
    images = [PNG] * count
    betas = [n / 40 for n in range(given_betas)]
    if count == given_betas:
        assert [a.beta for a in soup.classify(images if is_sized else iter(images), betas)] == betas
    else:
        with pytest.raises(tureen.ArgumentError, match=f"images and {given_betas} β: give one β"):
            soup.classify(images if is_sized else iter(images), betas)
        assert not is_sized or not soup.engine.batches


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (np.float32(0.5), [0.5, 0.5]),
        (np.int64(1), [1, 1]),
        (np.array(0.5), [0.5, 0.5]),
        (np.array([0.5, 1], np.float16), [0.5, 1]),
        ([np.float32(0.5), np.array(1)], [0.5, 1]),
        (np.array(["clean", "0.5"]), [0, 0.5]),
        (iter([0, "robust"]), [0, 1]),
        ((0, 1), [0, 1]),
    ],
)
def test_betas_of_numpy_are_accepted(example, beta, expected):
    assert [answer.beta for answer in example.classify([PNG] * 2, beta)] == expected


@pytest.mark.parametrize(
    "beta",
    [np.nan, np.bool_(True), np.array([True, False]), np.array([[0.5], [0.5]]), [np.array([0.5])] * 2, b"0.5", object(),
     [None, None], {"beta": 0.5, "other": 1}],
)  # fmt: skip
def test_an_invalid_beta_is_refused_with_the_valid_values(example, beta):
    with pytest.raises(tureen.InvalidBetaError, match="give a number from 0"):
        example.classify([PNG] * 2, beta)


@pytest.mark.parametrize(
    ("pixels", "shown"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), r"float32 \(2, 32, 32, 3\)"),
        (np.zeros((2, 3, 32, 32), np.uint8), r"uint8 \(2, 3, 32, 32\)"),
        (np.zeros((32, 32, 3), np.uint8), r"uint8 \(32, 32, 3\)"),
        (np.zeros((2, 31, 32, 3), np.uint8), r"uint8 \(2, 31, 32, 3\)"),
        ([[1]], "a list"),
    ],
)
def test_logits_of_pixels_of_another_dtype_or_shape_are_refused(counting, pixels, shown):
    with pytest.raises(InvalidPixelsError, match=rf"pixels is {shown}: give uint8 \(B, 32, 32, 3\)"):
        counting.logits(pixels, [0, 1])
    assert not counting.engine.batches


@pytest.mark.parametrize("betas", [[0, 1.5], [-0.1, 0], [float("nan"), 0], ["clean", 0], [[0], [0, 1]]])
def test_logits_at_an_invalid_beta_are_refused(counting, betas):
    with pytest.raises(tureen.InvalidBetaError):
        counting.logits(np.zeros((2, 32, 32, 3), np.uint8), betas)


@pytest.mark.parametrize("betas", [[0], 0, [0, 1, 0], [[0], [1]]])
def test_logits_need_a_beta_for_each_image(counting, betas):
    with pytest.raises(tureen.ArgumentError, match=r"2 images and β of shape .*give one β for each image"):
        counting.logits(np.zeros((2, 32, 32, 3), np.uint8), betas)


def test_logits_of_no_image_or_of_strided_pixels_are_right(counting, example):
    assert counting.logits(np.zeros((0, 32, 32, 3), np.uint8), []).shape == (0, 10)
    assert not counting.engine.batches
    strided = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8).transpose(0, 2, 3, 1)
    counting.logits(strided, [0, 1])
    np.testing.assert_array_equal(example.logits(strided, [0, 1]), example.logits(strided.copy(), [0, 1]))


def test_a_soup_is_closed_once_and_then_refuses_use(counting):
    with counting:
        counting.close()
        counting.close()
    assert counting.engine.closed == 1
    for use in (
        lambda: counting.classify([PNG]),
        lambda: counting.logits(np.zeros((1, 32, 32, 3), np.uint8), [0]),
        counting.__enter__,
        lambda: pickle.dumps(counting),
    ):
        with pytest.raises(tureen.ClosedError, match="the soup is closed: open another"):
            use()
    assert repr(counting).endswith(", closed>")


def test_a_soup_is_shown_with_its_model_engine_classes_and_default_beta(example):
    manifest = example.bundle.manifest
    shown = f"<tureen.Soup cifar10 {manifest.version}, onnxruntime fp32, 10 classes, default β 0>"
    assert repr(example) == shown


def test_a_soup_is_pickled_by_its_path_and_its_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXAMPLES / "cifar10", "bundle")
    options = EngineOptions(threads=1)
    with tureen.load("bundle", engine="onnxruntime", precision="fp32", options=options) as soup:
        soup.limits = tureen.ImageLimits(max_image_bytes=len(PNG))
        pickled = pickle.dumps(soup)
        answer = soup.classify([PNG], 0.5)
    assert len(pickled) < 2000
    monkeypatch.chdir("/")
    with pickle.loads(pickled) as again:
        assert again.classify([PNG], 0.5) == answer
        assert again.limits == soup.limits
        assert pickle.loads(pickle.dumps(again)).classify([PNG], 0.5) == answer
    manifest = tmp_path / "bundle" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace(f'"version": "{soup.bundle.manifest.version}"', '"version": "another"'))
    with pytest.raises(tureen.BundleError, match="holds cifar10 another, and the pickled soup was cifar10 "):
        pickle.loads(pickled)


def test_a_manually_created_soup_is_not_pickled(counting):
    with pytest.raises(pickle.PicklingError, match=r"only a soup that tureen\.load opened"):
        pickle.dumps(counting)


def test_the_limits_of_an_image_are_an_argument(photograph):
    with (
        tureen.load(
            EXAMPLES / "cifar10", engine="onnxruntime", limits=tureen.ImageLimits(max_image_pixels=100)
        ) as soup,
        pytest.raises(tureen.ImageError, match=r"images\[0\]: the image has more than 100 pixels"),
    ):
        soup.classify([photograph])


def with_temperatures(bundle, **temperatures):
    """The bundle with these temperatures, T0 at β = 0 and T1 at β = 1."""
    rows = [
        CalibrationRow(beta=beta, temperature=temperature, n_fitted=50, n=50, error_before=0.1, error=0.02)
        for beta, temperature in ((0, temperatures["T0"]), (1, temperatures["T1"]))
    ]
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"calibration": rows}))


def test_images_at_several_betas_have_the_temperature_of_each(example, example_bundle):
    calibrated = Soup(with_temperatures(example_bundle, T0=2, T1=4), example.engine)
    raw = Soup(with_temperatures(example_bundle, T0=2, T1=4), example.engine, calibrated=False)
    betas = [0, 0.5, 1]
    pixels = example_bundle.golden.pixels[:3]
    logits = raw.logits(pixels, betas)
    for soup, temperatures in ((calibrated, (2, 3, 4)), (raw, (1, 1, 1))):
        np.testing.assert_array_equal(soup.logits(pixels, betas), logits)
        for result, row, temperature in zip(
            soup.classify(list(pixels), betas, top_k=10), logits, temperatures, strict=True
        ):
            exponentials = np.exp(row / temperature)
            expected = exponentials / exponentials.sum()
            assert result.calibrated is (soup is calibrated)
            for prediction in result.predictions:
                assert prediction.probability == pytest.approx(expected[prediction.index], abs=1e-5)


def test_a_pickled_soup_keeps_its_choice_of_calibration(tmp_path):
    shutil.copytree(EXAMPLES / "cifar10", tmp_path / "bundle")
    row = {"beta": 0, "temperature": 2, "n_fitted": 50, "n": 50, "error_before": 0.1, "error": 0.02}
    manifest = tmp_path / "bundle" / "manifest.json"
    document = {**json.loads(manifest.read_text()), "schema_version": 3, "calibration": [row]}
    manifest.write_text(json.dumps(document))
    for calibrated in (True, False):
        with tureen.load(tmp_path / "bundle", engine="onnxruntime", calibrated=calibrated) as soup:
            pickled = pickle.dumps(soup)
        with pickle.loads(pickled) as again:
            assert again.temperatures.is_calibrated is calibrated


def test_a_model_of_one_token_classifies_without_a_beta_and_refuses_any(single_token_bundle, photograph):
    with tureen.load(single_token_bundle, engine="onnxruntime") as soup:
        (answer,) = soup.classify([photograph])
        assert (answer.beta, answer.strength) == (None, None)
        with pytest.raises(tureen.SingleTokenError, match="leave strength out"):
            soup.classify([photograph], strength=0.5)
        for beta in (0, "robust", [0.5], ["clean"]):
            with pytest.raises(tureen.SingleTokenError, match="leave beta out"):
                soup.classify([photograph], beta=beta)
