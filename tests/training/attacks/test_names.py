from training.attacks.catalogue import ATTACKS
from training.attacks.names import ATTACK_LABELS, attack_label


def test_every_attack_has_a_label_in_the_same_order():
    assert list(ATTACK_LABELS) == list(ATTACKS)


def test_a_label_has_the_steps_of_an_attack_that_has_steps():
    assert attack_label("pgd", 40) == "PGD-40"
    assert attack_label("autoattack", 40) == "AutoAttack standard"
