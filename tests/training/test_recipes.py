"""Settings of a recipe, and its fingerprint."""

import pytest

from training.errors import RecipeError
from training.recipes import Recipe, load_recipe


def test_how_a_run_is_measured_may_change_before_it_is_resumed():
    measured = [name for name in Recipe.model_fields if name.startswith("evaluation_")]
    values = {"evaluation_attack": "apgd", "evaluation_betas": "0,1"}
    settings = [f"{name}={values.get(name, '7')}" for name in measured]
    recipe = load_recipe("digits", [*settings, "monitor_share=0.5"])
    assert recipe.fingerprint() == load_recipe("digits").fingerprint()


def test_the_view_of_evaluation_is_also_that_of_training_images():
    assert load_recipe("digits", ["crop_fraction=0.5"]).fingerprint() != load_recipe("digits").fingerprint()


def test_settings_reach_the_recipe_by_name():
    recipe = load_recipe("digits", ["epochs=7", "model.depth=2", "evaluation_betas=0,0.1,1"])
    assert (recipe.epochs, recipe.model.depth, recipe.evaluation_betas) == (7, 2, (0, 0.1, 1))


@pytest.mark.parametrize(
    "setting",
    ["alpha=2", "model=1", "model.patch_size=3", "nothing=1", "model.nothing=1", "evaluation_betas=0.5", "x.y=1"],
)
def test_a_wrong_setting_is_named(setting):
    with pytest.raises(RecipeError):
        load_recipe("digits", [setting])


def test_the_settings_of_a_recipe_have_the_keys_of_set():
    settings = load_recipe("digits", ["model.depth=2"]).settings(without={"source"})
    assert (settings["model.depth"], settings["augmentation.flip"], settings["epochs"]) == (2, False, 80)
    assert "source" not in settings
    texts = [f"{key}={value}" for key, value in settings.items() if not isinstance(value, tuple) and value is not None]
    assert load_recipe("digits", texts) == load_recipe("digits", ["model.depth=2"])
