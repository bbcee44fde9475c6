import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from training.cotrain import Cotraining, _seed
from training.data.datasets import Dataset, Images
from training.distributed import Processes
from training.errors import CheckpointError, DivergedError
from training.models.vit import DualTokenViT
from training.recipes import load_recipe
from tureen.preprocess import PreprocessSpec

SMALL = ["epochs=4", "batch_size=16", "model.width=16", "model.depth=1"]
CPU = torch.device("cpu")


def data(n=48):
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, n))
    return Dataset(images, images, images, [str(i) for i in range(10)], PreprocessSpec(image_size=8))


def weights(training):
    return {name: tensor.clone() for name, tensor in training.average.state_dict().items()}


def trained(*settings, **options):
    training = Cotraining(load_recipe("digits", [*SMALL, *settings]), data(), CPU, **options)
    while not training.is_finished:
        training.run_epoch()
    return training


@pytest.mark.parametrize(("alpha", "untouched"), [(1, "robust_token"), (0, "clean_token")])
def test_at_the_ends_of_alpha_the_other_token_is_not_trained(alpha, untouched):
    training = trained(f"alpha={alpha}", "epochs=1")
    fresh = Cotraining(training.recipe, data(), CPU)
    others = {"clean_token", "robust_token"} - {untouched}
    assert torch.equal(getattr(training.model, untouched), getattr(fresh.model, untouched))
    assert not torch.equal(getattr(training.model, others.pop()), fresh.model.clean_token)


def test_the_same_seed_trains_the_same_weights_and_another_seed_others():
    first, again, other = (weights(trained("epochs=1", f"seed={seed}")) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_run_interrupted_after_any_step_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, steps):
    settings = ["augmentation.mixup=0.8", "augmentation.cutmix=1", "augmentation.erasing=0.5"]
    expected = weights(trained(*settings))
    first = Cotraining(load_recipe("digits", [*SMALL, *settings]), data(), CPU)
    while first.step < steps:
        first.run_epoch(1)
    first.save(tmp_path / "state")
    second = Cotraining(first.recipe, data(), CPU)
    second.restore(tmp_path / "state")
    assert second.step == steps
    while not second.is_finished:
        second.run_epoch()
    found = weights(second)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_trial_is_a_step_at_any_point_of_the_schedule_and_the_images_begin_again():
    training, trial = (Cotraining(load_recipe("digits", [*SMALL, "epochs=1"]), data(), CPU) for _ in range(2))
    while not training.is_finished:
        training.run_epoch(1)
        trial.run_trial(training.step - 1)
    found = weights(trial)
    assert all(torch.equal(weight, found[name]) for name, weight in weights(training).items())
    assert trial.run_trial(2).epsilon_255 == pytest.approx(training.recipe.epsilon_255)
    assert trial.run_trial(0).epsilon_255 < training.recipe.epsilon_255


def test_the_size_of_a_state_is_that_of_its_tensors(tmp_path):
    training = Cotraining(load_recipe("digits", SMALL), data(), CPU)
    training.run_epoch()
    training.save(tmp_path / "state")
    assert training.state_bytes == sum(tensor.nbytes for tensor in load_file(tmp_path / "state").values())


def test_a_state_of_other_settings_of_other_images_or_a_damaged_one_is_refused(tmp_path):
    training = Cotraining(load_recipe("digits", SMALL), data(), CPU)
    training.save(tmp_path / "state")
    other = Cotraining(load_recipe("digits", [*SMALL, "alpha=0.25"]), data(), CPU)
    with pytest.raises(CheckpointError, match="other settings"):
        other.restore(tmp_path / "state")
    changed = data()
    changed.train.pixels[0, 0, 0, 0] ^= 1
    for images in (replace(data(), train=data(47).train), changed):
        with pytest.raises(CheckpointError, match="other images"):
            Cotraining(training.recipe, images, CPU).restore(tmp_path / "state")
    (tmp_path / "state").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read: delete it"):
        training.restore(tmp_path / "state")


@pytest.mark.parametrize("lost", ["model.head.weight", "average.head.bias", "optimiser.3.exp_avg", "optimiser.3."])
def test_a_state_that_lacks_a_part_is_refused(tmp_path, lost):
    training = Cotraining(load_recipe("digits", SMALL), data(), CPU)
    training.run_epoch()
    training.save(tmp_path / "state")
    with safe_open(tmp_path / "state", framework="pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names if not name.startswith(lost)}
    assert len(tensors) < len(names)
    save_file(tensors, tmp_path / "state", metadata)
    fresh = Cotraining(training.recipe, data(), CPU)
    with pytest.raises(CheckpointError, match="lacks some of the run's state"):
        fresh.restore(tmp_path / "state")


def test_a_batch_in_parts_gives_the_gradients_of_the_whole():
    """With ε = 0 the random start of the attack, which each part draws, has no effect; only summation order differs."""
    settings = ["epsilon_255=0", "epochs=2", "augmentation.shift_pixels=0"]
    whole, parts = (weights(trained(*settings, f"accumulate={n}")) for n in (1, 4))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5)


def test_randomness_in_a_step_depends_on_seed_step_and_process():
    """The seed fits the 32 bits of the CPU generator of torch, for any seed of a recipe."""
    seeds = [(seed, step, rank) for seed in (0, 1, 2**32 - 1) for step in (0, 1, 7) for rank in (0, 1)]
    drawn = {float(torch.rand(1, generator=torch.Generator().manual_seed(_seed(*numbers)))) for numbers in seeds}
    assert len(drawn) == len(seeds)
    trained("epochs=1", f"seed={2**32 - 1}")


def test_every_step_has_a_learning_rate():
    """Also for the only step of a run with warm-up."""
    training = trained("epochs=1", "batch_size=48", "warmup=1", "ema_decay=0", "weight_decay=0")
    fresh = Cotraining(training.recipe, data(), CPU)
    assert training.steps == 1
    assert not torch.equal(training.model.head.weight, fresh.model.head.weight)


def test_weight_decay_leaves_biases_norms_and_tokens_alone():
    training = Cotraining(load_recipe("digits", [*SMALL, "weight_decay=0.5"]), data(), CPU)
    decayed = {id(p) for p in training.optimiser.param_groups[0]["params"]}
    names = {name for name, parameter in training.model.named_parameters() if id(parameter) in decayed}
    assert training.optimiser.param_groups[1]["weight_decay"] == 0
    assert names == {
        name for name, _ in training.model.named_parameters() if name.endswith("weight") and "norm" not in name
    }


def test_trades_trains_both_modes():
    settings = ["objective=trades", "epochs=60", "epsilon_255=4", "augmentation.shift_pixels=0", "ema_decay=0"]
    training = Cotraining(load_recipe("digits", [*SMALL, *settings]), data(), CPU)
    first = last = training.run_epoch()
    while not training.is_finished:
        last = training.run_epoch()
    assert last.epsilon_255 == 4
    assert last.clean_loss < first.clean_loss / 2
    assert last.robust_loss < first.robust_loss / 2


def test_a_loss_that_is_not_a_number_stops_the_run():
    training = Cotraining(load_recipe("digits", SMALL), data(), CPU)
    with torch.no_grad():
        training.model.head.bias.fill_(math.nan)
    with pytest.raises(DivergedError, match="lower learning_rate"):
        training.run_epoch()


def test_a_gradient_that_is_not_a_number_stops_the_run_at_its_last_step_too():
    training = Cotraining(load_recipe("digits", [*SMALL, "epochs=1", "batch_size=48"]), data(), CPU)
    training.model.head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(DivergedError, match="lower learning_rate"):
        training.run_epoch()


def test_bf16_trains_if_the_recipe_requests_it():
    training = Cotraining(load_recipe("digits", [*SMALL, "precision=bf16"]), data(), CPU)
    progress = training.run_epoch()
    assert math.isfinite(progress.clean_loss)
    assert training.model.head.weight.dtype == torch.float32


def test_the_average_follows_the_weights():
    training = trained("ema_decay=0", "epochs=1")
    torch.testing.assert_close(training.average.head.weight, training.model.head.weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of the compiler's own imports
def test_a_compiled_model_trains_the_same_weights():
    """Up to fp32 rounding, because the compiler fuses operations."""
    eager, compiled = (weights(trained("epochs=2", is_compiled=c)) for c in (False, True))
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name], rtol=1e-4, atol=1e-5)


def test_a_closed_training_leaves_no_wrapper_that_could_be_the_last_owner_of_the_process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        training = Cotraining(load_recipe("digits", SMALL), data(), CPU, processes=Processes(rank=0, count=2))
        training.run_epoch(at_most=1)
        reducer = weakref.ref(training._outer.reducer)
        training.close()
        assert reducer() is None
    finally:
        torch.distributed.destroy_process_group()


def test_a_run_may_start_from_an_existing_model():
    start = DualTokenViT(load_recipe("digits", SMALL).model)
    training = Cotraining(load_recipe("digits", [*SMALL, "seed=5"]), data(), CPU, start=start)
    assert torch.equal(training.model.head.weight, start.head.weight)
    assert torch.equal(training.average.head.weight, start.head.weight)
