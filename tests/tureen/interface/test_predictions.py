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
