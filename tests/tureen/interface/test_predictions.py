import pytest

from tureen.interface.predictions import Classification, Prediction


def test_a_classification_is_read_from_the_json_that_it_becomes():
    one = Classification(
        beta=0.25,
        strength=None,
        mix={"fog": 0.75, "robust": 0.25},
        calibrated=False,
        predictions=[Prediction(label="7", index=7, probability=0.9)],
    )
    assert Classification.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize(
    ("fields", "caption"),
    [
        ({"beta": 0.25, "strength": 0.5}, "strength 0.5, β 0.25"),
        ({"beta": 0.25, "strength": None, "mix": {"fog": 0.75, "robust": 0.25}}, "mix fog 0.75, robust 0.25"),
        ({"beta": None, "strength": None}, "one token, no β"),
    ],
)
def test_the_html_of_a_classification_has_the_choice_and_the_escaped_labels(fields, caption):
    predictions = [Prediction(label="<i>7", index=7, probability=0.9), Prediction(label="1", index=1, probability=0.1)]
    html = Classification(**fields, calibrated=False, predictions=predictions)._repr_html_()
    assert f"<caption>{caption}</caption>" in html
    assert html.count("<tr>") == 3
    assert "&lt;i&gt;7" in html
    assert "90.0%" in html
