"""The recipe and the model that fit images and options, before the first step."""

import torch

from training.distributed import Processes
from training.preparation import RunOptions, prepare_training, with_defaults
from training.recipes import load_recipe


def test_a_recipe_groups_the_images_unless_the_option_does():
    recipe = load_recipe("signs")
    assert with_defaults(recipe, RunOptions()) == (recipe, RunOptions(group_by=recipe.group_by))
    assert with_defaults(recipe, RunOptions(group_by="_"))[1].group_by == "_"


def test_a_prepared_training_has_the_classes_of_its_images_and_made_no_step(photos, capsys):
    settings = ["batch_size=10", "model.image_size=16", "model.width=16", "model.depth=1"]
    recipe = load_recipe("cifar10-cpu", settings)
    options = RunOptions(data=str(photos), workers=1)
    training, data = prepare_training(recipe, options, Processes(), torch.device("cpu"), is_new=True)
    assert training.recipe.model.classes == len(data.labels) == 5
    assert (training.step, training.steps_per_epoch) == (0, len(data.train) // 10)
    assert f"5 classes: {len(data.train)} images to train on" in capsys.readouterr().err
    second = Processes(rank=1)
    prepare_training(recipe, options, second, torch.device("cpu"), is_new=True)
    assert capsys.readouterr().err == ""
