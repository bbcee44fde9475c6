"""The names of attacks, their labels, and which attack a model of few classes gets."""

import pytest

from training.attacks.catalogue import ATTACKS, attack_label, find_attack, substitution_message, suitable_attack
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
