"""The query parameters of /classify and /sweep, without a server."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from serve.api.query import CACHED_QUERY_BYTES, QueryCache, QueryParameters, classify_parameters, sweep_parameters
from serve.errors import InvalidParameterError
from serve.settings import Settings
from tureen.errors import InvalidBetaError, InvalidMixError, InvalidStrengthError, TureenError
from tureen.tokens import Mix, Strength, TokenChoice

SETTINGS = Settings(bundle="bundle", timeout_ms=5000, max_sweep_betas=11, max_top_k=1000)
TENTHS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
DEFAULTS = QueryParameters(choice=None, policy=None, betas=TENTHS, top_k=5, timeout_ms=5000)


def classify(query):
    return classify_parameters(QueryParams(query), SETTINGS)


def sweep(query):
    return sweep_parameters(QueryParams(query), SETTINGS)


@pytest.mark.parametrize(
    ("query", "changes"),
    [
        ("", {}),
        ("beta=0.7", {"choice": 0.7}),
        ("beta=clean", {"choice": 0.0}),
        ("beta=robust", {"choice": 1.0}),
        ("beta=1e-1", {"choice": 0.1}),
        ("beta=-0", {"choice": 0.0}),
        ("strength=0.5", {"choice": Strength(0.5)}),
        ("policy=uploads", {"policy": "uploads"}),
        ("token=fog", {"choice": TokenChoice("fog")}),
        ("token=fog&beta=0.5", {"choice": TokenChoice("fog", 0.5)}),
        ("token=fog&strength=0.5", {"choice": TokenChoice("fog", Strength(0.5))}),
        ("mix=fog:3,robust:1", {"choice": Mix((("fog", 0.75), ("robust", 0.25)))}),
        ("mix=fog:3&normalize=true", {"choice": Mix((("fog", 1.0),))}),
        ("mix=fog:3&normalize=false", {"choice": Mix((("fog", 3.0),))}),
        ("mix=clean:1,robust:1", {"choice": 0.5}),
        ("top_k=1", {"top_k": 1}),
        ("top_k=1000", {"top_k": 1000}),
        ("top_k=007", {"top_k": 7}),
        ("timeout_ms=1", {"timeout_ms": 1}),
        ("timeout_ms=5000", {"timeout_ms": 5000}),
        ("timeout_ms=20&top_k=2&beta=1", {"timeout_ms": 20, "top_k": 2, "choice": 1.0}),
    ],
)
def test_classify_parameters_are_those_of_the_query_and_else_the_defaults(query, changes):
    assert classify(query) == replace(DEFAULTS, **changes)


@pytest.mark.parametrize(
    ("query", "betas"),
    [
        ("", TENTHS),
        ("betas=0:1:0.5", [0, 0.5, 1]),
        ("betas=0.3,0.1,0.3", [0.1, 0.3]),
        ("betas=clean,robust", [0, 1]),
        ("betas=0.5", [0.5]),
        ("betas=0:1:0.1", TENTHS),
    ],
)
def test_the_betas_of_a_sweep_ascend_without_duplicates(query, betas):
    assert sweep(query).betas == pytest.approx(betas)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (
            "betta=1",
            "there is no parameter 'betta': use beta, strength, token, mix, policy, normalize, top_k, timeout_ms",
        ),
        ("Beta=1", "no parameter 'Beta'"),
        ("betas=0:1:0.5", "no parameter 'betas'"),
        ("=1", "no parameter ''"),
        ("beta=1&x", "no parameter 'x'"),
        ("x" * 100 + "=1", f"no parameter '{'x' * 40}'"),
        ("beta=0&beta=1", "beta is given more than once"),
        ("top_k=1&top_k=1", "top_k is given more than once"),
        ("beta=0.5&policy=uploads", "the parameters beta and policy exclude each other: give one of them"),
        ("mix=fog:1&beta=0.5", "the parameters beta and mix exclude each other"),
        ("mix=fog:1&token=fog", "the parameters token and mix exclude each other"),
        ("token=fog&policy=uploads", "the parameters token and policy exclude each other"),
        ("token=fog&beta=0.5&strength=0.5", "the parameters beta and strength exclude each other"),
        ("normalize=false", "normalize belongs to a mix"),
        ("mix=fog:1&normalize=no", "normalize belongs to a mix"),
        ("beta=0.5&strength=0.5", "the parameters beta and strength exclude each other"),
        ("strength=0.5&policy=uploads", "the parameters strength and policy exclude each other"),
        ("top_k=0", "top_k is '0': give a whole number from 1 to 1000"),
        ("top_k=1001", "from 1 to 1000"),
        ("top_k=-1", "top_k is '-1'"),
        ("top_k=1.5", "top_k is '1.5'"),
        ("top_k=1_0", "top_k is '1_0'"),
        ("top_k=%201", "top_k is ' 1'"),
        ("top_k=٣", "top_k is '٣'"),
        ("top_k=", "top_k is ''"),
        ("top_k=" + "9" * 5000, f"top_k is '{'9' * 40}': give"),
        ("timeout_ms=5001", "timeout_ms is '5001': give a whole number from 1 to 5000"),
        ("timeout_ms=0", "timeout_ms is '0'"),
    ],
)
def test_a_wrong_parameter_of_classify_is_named(query, words):
    with pytest.raises(InvalidParameterError) as caught:
        classify(query)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        "beta=0.5",
        "policy=uploads",
        "betas=0,0.5&betas=1",
        "betas=0:1:0.01",
        "strength=0.5",
        "betas=0&strengths=0",
        "strengths=0:1:0.01",
    ],
)
def test_a_wrong_parameter_of_a_sweep_is_refused(query):
    with pytest.raises(InvalidParameterError):
        sweep(query)


@pytest.mark.parametrize("beta", ["nan", "inf", "2", "-0.1", "abc", "", "0,7", "1_0", "true", "%F0%9F%99%82"])
def test_an_invalid_beta_is_refused(beta):
    with pytest.raises(InvalidBetaError):
        classify(f"beta={beta}")


@pytest.mark.parametrize("strength", ["nan", "2", "-0.1", "clean", "robust", "", "1_0"])
def test_an_invalid_strength_is_refused(strength):
    with pytest.raises(InvalidStrengthError):
        classify(f"strength={strength}")
    with pytest.raises(InvalidStrengthError):
        sweep(f"strengths=0,{strength}")


def test_the_strengths_of_a_sweep_ascend_without_duplicates():
    assert sweep("strengths=0.5,0,0.5").betas == [Strength(0), Strength(0.5)]
    assert sweep("strengths=0:1:0.5").betas == [Strength(0), Strength(0.5), Strength(1)]


@pytest.mark.parametrize("betas", ["0:1", "0:1:0", "1:0:0.1", "0:2:0.5", "0,2", "", "x", "0:1:0.0001"])
def test_an_invalid_grid_of_betas_is_refused(betas):
    with pytest.raises(InvalidBetaError):
        sweep(f"betas={betas}")


@given(
    items=st.lists(
        st.tuples(st.sampled_from(["beta", "token", "mix", "top_k", "timeout_ms", "policy"]) | st.text(), st.text())
    )
)
def test_any_query_gives_parameters_within_the_limits_or_a_documented_error(items):
    try:
        parameters = classify_parameters(QueryParams(items), SETTINGS)
    except TureenError:
        return
    choice = parameters.choice
    assert choice is None or isinstance(choice, Mix | TokenChoice) or 0 <= choice <= 1
    assert 1 <= parameters.top_k <= 1000
    assert 1 <= parameters.timeout_ms <= 5000


@pytest.mark.parametrize(
    "mix", ["", "fog", "fog:-1", "fog:nan", "fog:1,fog:1", "FOG:1", ",".join(f"t{i}:1" for i in range(10**4))]
)
def test_an_invalid_mix_is_refused(mix):
    with pytest.raises(InvalidMixError):
        classify(f"mix={mix}")


def test_a_repeated_query_is_parsed_once_and_a_long_one_each_time():
    parsed = []

    def parse(query, settings):
        parsed.append(str(query))
        return classify_parameters(query, settings)

    cache = QueryCache(parse, SETTINGS)
    assert cache.parse(b"beta=0.5") is cache.parse(b"beta=0.5")
    assert cache.parse(b"beta=0.25").choice == 0.25
    assert parsed == ["beta=0.5", "beta=0.25"]
    with pytest.raises(InvalidParameterError):
        cache.parse(b"beta=0.5&beta=0.5")
    long = b"beta=0." + b"0" * CACHED_QUERY_BYTES
    assert cache.parse(long) == cache.parse(long)
    assert len(parsed) == 5
