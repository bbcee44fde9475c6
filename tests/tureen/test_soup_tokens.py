"""A soup with added tokens: mixes by name, in one batch with every β."""

import dataclasses
import pickle

import numpy as np
import pytest

import tureen
from tests.learned_tokens import make_token
from tureen.bundle.token_file import write_token
from tureen.errors import (
    ArgumentError,
    EngineError,
    InvalidBetaError,
    InvalidMixError,
    TokenFileError,
    UnknownTokenError,
)


@pytest.fixture(scope="module")
def plain():
    with tureen.load("signs", engine="onnxruntime", precision="fp32") as soup:
        yield soup


@pytest.fixture(scope="module")
def tokens(plain):
    return [make_token(plain, "fog", 1), make_token(plain, "night", 2)]


@pytest.fixture
def soup(tokens):
    with tureen.load("signs", engine="onnxruntime", precision="fp32", tokens=tokens) as soup:
        yield soup


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def logits_of(classifications):
    return [{one.label: one.probability for one in classification.predictions} for classification in classifications]


def test_a_token_and_a_mix_give_the_logits_of_their_vector(soup, tokens, pixels):
    fog, night = (token.vector for token in tokens)
    clean, robust = soup.bundle.clean_token, soup.bundle.robust_token
    vectors = [fog, 0.75 * fog + 0.25 * robust, 0.5 * fog + 0.5 * night, 0.5 * clean + 0.5 * robust]
    found = soup.classify(
        pixels[:4], mix=["fog:1", {"fog": 3, "robust": 1}, "night:1,fog:1", "clean:1,robust:1"], top_k=43
    )
    for classification, row in zip(found[:3], soup.logits(pixels[:3], vectors[:3]), strict=True):
        shown = {one.index: one.probability for one in classification.predictions}
        softmax = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        np.testing.assert_allclose([shown[i] for i in range(43)], softmax, atol=1e-5)
    assert [one.mix for one in found] == [{"fog": 1}, {"fog": 0.75, "robust": 0.25}, {"fog": 0.5, "night": 0.5}, None]
    assert [one.beta for one in found] == [0, 0.25, 0, 0.5]
    assert [one.strength is None for one in found] == [True, True, True, False]
    assert not any(one.calibrated for one in found[:3])
    assert found[3] == soup.classify(pixels[3:4], 0.5, top_k=43)[0]


def test_a_token_takes_the_place_of_the_clean_one(soup, pixels):
    assert soup.classify(pixels, token="fog") == soup.classify(pixels, mix="fog:1")
    assert soup.classify(pixels, 0.25, token="fog") == soup.classify(pixels, mix="fog:0.75,robust:0.25")
    assert soup.classify(pixels, "robust", token="fog") == soup.classify(pixels, 1.0)
    assert soup.classify(pixels, 0.25, token="clean") == soup.classify(pixels, 0.25)
    beta = soup.bundle.manifest.strength.beta_at(0.5)
    assert soup.classify(pixels, strength=0.5, token="fog") == soup.classify(pixels, beta, token="fog")
    each = soup.classify(pixels[:2], [0.0, 0.5], token=["fog", "night"])
    assert [one.mix for one in each] == [{"fog": 1}, {"night": 0.5, "robust": 0.5}]


def test_every_token_and_every_beta_share_a_batch(soup, tokens, pixels):
    choices = [0.0, tokens[0].vector, 1.0, tokens[1].vector, 0.5]
    together = soup.logits(pixels, choices)
    for row, choice in enumerate(choices):
        np.testing.assert_allclose(together[row], soup.logits(pixels[row : row + 1], [choice])[0], atol=1e-4)


def test_a_token_file_is_loaded_and_a_pickled_soup_keeps_its_tokens(tokens, pixels, tmp_path):
    write_token(tmp_path / "fog.token", tokens[0])
    files = [tmp_path / "fog.token", str(tmp_path / "fog.token")][:1]
    with tureen.load("signs", engine="onnxruntime", precision="fp32", tokens=files) as soup:
        expected = soup.classify(pixels, token="fog")
        with pickle.loads(pickle.dumps(soup)) as copy:
            assert copy.classify(pixels, token="fog") == expected


def test_tokens_that_do_not_fit_are_refused(soup, plain, tokens):
    with pytest.raises(TokenFileError, match="already has a token 'fog'"):
        soup.add_tokens(tokens[:1])
    with pytest.raises(TokenFileError, match="another backbone"):
        tureen.load("cifar10", tokens=tokens)
    wrong = dataclasses.replace(tokens[0], golden_logits=tokens[0].golden_logits + 1)
    with pytest.raises(EngineError, match=r"does not reproduce the logits of the token fog: .*learn the token again"):
        plain.add_tokens([wrong])
    assert "fog" not in plain.tokens


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"token": "frog"}, UnknownTokenError, "did you mean 'fog'"),
        ({"mix": "fog:1,mist:1"}, UnknownTokenError, "the tokens are clean, fog, night, robust"),
        ({"mix": "fog:-1"}, InvalidMixError, "weight of fog"),
        ({"mix": ["fog:1", "fog:nan"]}, InvalidMixError, "weight of fog"),
        ({"mix": "fog:1", "beta": 0.5}, ArgumentError, "beta and mix exclude each other"),
        ({"mix": "fog:1", "token": "fog"}, ArgumentError, "token and mix exclude each other"),
        ({"token": "fog", "beta": 2}, InvalidBetaError, "β is 2"),
        ({"token": ["fog", "night"], "beta": [0.5]}, ArgumentError, "2 tokens and 1 β"),
        ({"token": ["fog", "night"]}, ArgumentError, "1 images and 2 β"),
    ],
)
def test_another_choice_is_refused_with_its_reason(soup, pixels, arguments, error, message):
    with pytest.raises(error, match=message):
        soup.classify(pixels[:1], **arguments)


def test_a_vector_of_another_shape_is_refused(soup, pixels):
    for vector in (np.zeros(3, np.float32), np.zeros(256, np.float64)):
        with pytest.raises(ArgumentError, match=r"the token of image 1 is"):
            soup.logits(pixels[:2], [0.5, vector])


def test_the_examples_have_no_token_but_the_two(plain):
    assert set(plain.tokens) == {"clean", "robust"}
