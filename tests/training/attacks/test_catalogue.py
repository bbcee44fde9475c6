"""The names of attacks, their labels, and which attack a model of few classes gets."""

import pytest
import torch

from training.attacks.catalogue import ATTACKS, find_attack, substitution_message, suitable_attack
from training.attacks.names import attack_label
from training.errors import RecipeError


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_a_label(name):
    assert attack_label(name, 40)
    assert ("40" in attack_label(name, 40)) == (name not in ("fgsm", "autoattack"))


def test_attack_labels_name_attack_and_steps():
    assert attack_label("pgd", 40) == "PGD-40"
    assert attack_label("apgd", 100) == "APGD-100 (CE, targeted DLR)"
    assert attack_label("apgd-dlr", 100) == "APGD-100 (CE, DLR)"


@pytest.mark.parametrize(
    ("name", "classes", "chosen"),
    [
        ("apgd", 4, "apgd"),
        ("apgd", 3, "apgd-dlr"),
        ("apgd", 2, "apgd-ce"),
        ("apgd-dlr", 2, "apgd-ce"),
        ("pgd", 2, "pgd"),
    ],
)
def test_an_attack_drops_to_the_losses_that_so_few_classes_define(name, classes, chosen):
    assert suitable_attack(name, classes) == chosen


def test_an_unknown_attack_is_an_error_that_lists_the_known_ones():
    with pytest.raises(RecipeError, match=r"'cw'.*pgd, .*autoattack"):
        find_attack("cw")


@pytest.mark.parametrize("name", ["apgd-t", "autoattack"])
def test_an_attack_without_a_substitute_is_an_error_below_four_classes(name):
    with pytest.raises(RecipeError, match="needs 4 classes, there are 3: attack with apgd"):
        suitable_attack(name, 3)


def test_the_message_of_a_substitution_names_both_attacks():
    assert (
        substitution_message("apgd", "apgd-dlr", 3) == "apgd needs more than 3 classes: attacking with apgd-dlr instead"
    )


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1)])
@pytest.mark.parametrize("name", ["apgd", "autoattack"])
def test_under_another_norm_the_attack_fools_within_the_radius(name, norm, order):
    """Moving along the weights fools the linear model from a tenth of the radius on."""
    weight = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    images, labels, epsilon = torch.full((2, 3, 4, 4), 0.5), torch.tensor([0, 0]), 0.5
    reach = 0.1 * epsilon * (weight.norm() if order == 2 else weight.abs().max())

    def forward(x):
        margin = ((x - 0.5) * weight).flatten(1).sum(1) + reach
        never = torch.full_like(margin, -20.0)
        return torch.stack([margin / 2, -margin / 2, never, never], dim=1)

    generator = torch.Generator().manual_seed(0)
    found = find_attack(name, norm)(forward, images, labels, epsilon=epsilon, steps=10, generator=generator)
    assert (forward(found).argmax(1) == 1).all()
    distance = (found - images).flatten(1).norm(p=order, dim=1)
    assert (distance <= epsilon * 1.001).all()
    assert (distance > 0).all()
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_an_attack_that_is_for_linf_only_is_an_error_under_another_norm(norm):
    with pytest.raises(RecipeError, match=f"pgd is an attack under l∞: for {norm} choose apgd or autoattack"):
        find_attack("pgd", norm)
