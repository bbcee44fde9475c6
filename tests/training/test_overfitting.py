import pytest
import torch

from training.data.datasets import load_digits
from training.errors import SuspectError
from training.models.vit import DualTokenViT
from training.overfitting import Look, look, require_sound
from training.recipes import load_recipe


@pytest.mark.parametrize(
    "looks",
    [
        [],
        [Look(1, 0.1, 0.1), Look(2, 0.4, 0.3), Look(3, 0.6, 0.5)],
        [Look(1, 0.5, 0.4), Look(2, 0.6, 0.3)],  # a fall, not a collapse
        [Look(1, 0.5, 0.4), Look(2, 0.3, 0.1)],  # worse against both: learning went wrong, but not this way
        [Look(1, 0.1, 0.1), Look(2, 0.2, 0.02)],  # too little to tell from chance
    ],
)
def test_a_sound_run_goes_on(looks):
    require_sound(looks)


def test_one_step_up_and_ten_steps_down_is_catastrophic_overfitting():
    with pytest.raises(SuspectError, match=r"from step 2 to 3 .* against one attack step went from 50 to 90 %"):
        require_sound([Look(1, 0.2, 0.1), Look(2, 0.5, 0.4), Look(3, 0.9, 0.01)])


def test_a_look_measures_the_robust_mode_and_leaves_the_model_in_training():
    torch.manual_seed(0)
    model = DualTokenViT(load_recipe("digits", ["model.width=16", "model.depth=1"]).model).train()
    held_out = load_digits().held_out
    nothing = look(model, held_out, epsilon_255=0, step=7)
    everything = look(model, held_out, epsilon_255=127.5, step=7)
    assert model.training
    assert nothing.step == 7
    assert nothing.one_step == nothing.ten_steps
    assert everything.ten_steps <= nothing.ten_steps
    assert everything.ten_steps < 0.1
