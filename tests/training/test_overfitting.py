import pytest
import torch

from training.data.datasets import load_digits
from training.errors import OverfittingError
from training.models.vit import DualTokenViT
from training.overfitting import OverfittingProbe, check_overfitting, probe_overfitting
from training.recipes import load_recipe


@pytest.mark.parametrize(
    "looks",
    [
        [],
        [OverfittingProbe(1, 0.1, 0.1), OverfittingProbe(2, 0.4, 0.3), OverfittingProbe(3, 0.6, 0.5)],
        [OverfittingProbe(1, 0.5, 0.4), OverfittingProbe(2, 0.6, 0.3)],  # a fall, not a collapse
        [
            OverfittingProbe(1, 0.5, 0.4),
            OverfittingProbe(2, 0.3, 0.1),
        ],  # worse against both: learning went wrong, but not this way
        [OverfittingProbe(1, 0.1, 0.1), OverfittingProbe(2, 0.2, 0.02)],  # too small a change to differ from chance
    ],
)
def test_a_healthy_run_continues(looks):
    check_overfitting(looks)


def test_one_step_up_and_ten_steps_down_is_catastrophic_overfitting():
    with pytest.raises(OverfittingError, match=r"from step 2 to 3 .* against one attack step went from 50 to 90 %"):
        check_overfitting(
            [OverfittingProbe(1, 0.2, 0.1), OverfittingProbe(2, 0.5, 0.4), OverfittingProbe(3, 0.9, 0.01)]
        )


def test_a_look_measures_the_robust_mode_and_leaves_the_model_in_training():
    torch.manual_seed(0)
    model = DualTokenViT(load_recipe("digits", ["model.width=16", "model.depth=1"]).model).train()
    validation = load_digits().validation
    nothing = probe_overfitting(model, validation, epsilon_255=0, step=7)
    everything = probe_overfitting(model, validation, epsilon_255=127.5, step=7)
    assert model.training
    assert nothing.step == 7
    assert nothing.one_step == nothing.ten_steps
    assert everything.ten_steps <= nothing.ten_steps
    assert everything.ten_steps < 0.1
