import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tureen.interface.probabilities import probabilities, top_predictions

LOGITS = hnp.arrays(np.float32, 7, elements=st.floats(-1e4, 1e4, width=32))
TEMPERATURES = st.floats(0.01, 100)


@given(LOGITS, st.integers(1, 10), TEMPERATURES)
def test_probabilities_add_up_for_any_logits(logits, top_k, temperature):
    predictions = top_predictions(logits, list("abcdefg"), top_k, temperature)
    assert len(predictions) == min(top_k, 7)
    assert predictions[0].index == logits.argmax()
    assert sum(p.probability for p in top_predictions(logits, list("abcdefg"), 7, temperature)) == pytest.approx(1)


@given(LOGITS, TEMPERATURES)
def test_no_temperature_changes_the_order_of_the_labels(logits, temperature):
    labels = list("abcdefg")
    with_temperature = top_predictions(logits, labels, 7, temperature)
    assert [p.label for p in with_temperature] == [p.label for p in top_predictions(logits, labels, 7)]
    shares = [p.probability for p in with_temperature]
    assert shares == sorted(shares, reverse=True)


@given(hnp.arrays(np.float32, (3, 7), elements=st.floats(-1e4, 1e4, width=32)), st.tuples(*[TEMPERATURES] * 3))
def test_each_row_of_a_batch_has_its_own_temperature(logits, temperatures):
    batch = probabilities(logits, np.array(temperatures))
    for row, one, temperature in zip(logits, batch, temperatures, strict=True):
        np.testing.assert_array_equal(one, probabilities(row, temperature))


def test_top_k_of_zero_is_refused():
    with pytest.raises(ValueError, match="give 1 or more"):
        top_predictions(np.zeros(3, np.float32), list("abc"), 0)
