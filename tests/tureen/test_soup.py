import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import tureen
from tureen.soup import top_predictions


def test_digits_are_classified_each_at_its_own_beta(soup, checkpoint, digit_png):
    held_out = checkpoint.held_out
    betas = [0.0, 0.3, 0.7, 1.0] * 5
    answers = soup.classify([digit_png(i) for i in range(20)], beta=betas)
    assert [answer.beta for answer in answers] == betas
    right = [answer.predictions[0].index == held_out.labels[i] for i, answer in enumerate(answers)]
    assert sum(right) >= 18
    for answer in answers:
        assert len(answer.predictions) == 5
        probabilities = [prediction.probability for prediction in answer.predictions]
        assert probabilities == sorted(probabilities, reverse=True)


def test_bytes_paths_images_and_arrays_are_the_same_image(soup, checkpoint, digit_png, tmp_path):
    path = tmp_path / "digit.png"
    path.write_bytes(digit_png(3))
    array = checkpoint.held_out.pixels[3]
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


def test_no_images_give_no_answers(soup):
    assert soup.classify([]) == []


def test_one_image_is_not_a_list_of_images(soup, digit_png):
    with pytest.raises(TypeError, match=r"\[image\]"):
        soup.classify(digit_png(0))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (0, 8, 3)])
def test_an_array_of_another_shape_is_refused(soup, shape):
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
        soup.classify([np.zeros(shape, np.uint8)])


def test_a_damaged_image_is_an_image_error(soup, digit_png):
    with pytest.raises(tureen.ImageError):
        soup.classify([digit_png(0)[:60]])


@given(hnp.arrays(np.float32, 7, elements=st.floats(-1e4, 1e4, width=32)), st.integers(1, 10))
def test_probabilities_add_up_whatever_the_logits(logits, top_k):
    predictions = top_predictions(logits, list("abcdefg"), top_k)
    assert len(predictions) == min(top_k, 7)
    assert predictions[0].index == logits.argmax()
    assert sum(p.probability for p in top_predictions(logits, list("abcdefg"), 7)) == pytest.approx(1)


def test_top_k_of_zero_is_refused():
    with pytest.raises(ValueError, match="give 1 or more"):
        top_predictions(np.zeros(3, np.float32), list("abc"), 0)


def test_a_model_of_one_token_answers_without_a_beta_and_refuses_any(single_token_bundle, photograph):
    with tureen.load(single_token_bundle, engine="onnxruntime") as soup:
        assert soup.classify([photograph])[0].beta is None
        for beta in (0, "robust", [0.5], ["clean"]):
            with pytest.raises(tureen.SingleTokenError, match="leave beta out"):
                soup.classify([photograph], beta=beta)
