"""Compares the attacks of this package with those of two other packages.

The network is a small one, trained here against PGD; the radius is larger than in training, so that the attacks
differ. A share is of 100 images: over ten random starts PGD's lay within two of them, Auto-PGD's within one.
"""

import logging
import sys
from contextlib import redirect_stdout
from functools import partial
from io import StringIO

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from sklearn.datasets import load_digits

from training.attacks.apgd import apgd
from training.attacks.autoattack import autoattack
from training.attacks.catalogue import ATTACKS
from training.attacks.gradient import fgsm, mi_fgsm, pgd

EPSILON = 55 / 255
STEPS = 100
TOLERANCE = 0.02 + 1e-6


@pytest.fixture(scope="module")
def digits():
    """A trained network, and 100 held-out digits with their labels."""
    data = load_digits()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.target), generator=generator)
    images = torch.from_numpy(data.images).float().div(16)[order, None].repeat(1, 3, 1, 1)
    labels = torch.from_numpy(data.target)[order]
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(192, 128), torch.nn.GELU(), torch.nn.Linear(128, 10)
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    radius = 38 / 255
    for _ in range(8):
        for x, y in zip(images[100:].split(64), labels[100:].split(64), strict=True):
            adversarial = pgd(network, x, y, epsilon=radius, steps=3, step_size=0.75 * radius, generator=generator)
            optimiser.zero_grad()
            F.cross_entropy(network(adversarial), y).backward()
            optimiser.step()
    optimiser.zero_grad()
    return network.eval(), images[:100], labels[:100]


@pytest.fixture(scope="module")
def attacked(digits):
    """The result of autoattack on the digits, its output, and the global state before and after."""
    network, images, labels = digits

    def surroundings():
        return {
            "gradients": [parameter.grad for parameter in network.parameters()],
            "random state": torch.get_rng_state().tolist(),
            "trace function": sys.gettrace(),
        }

    coverage = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        before = surroundings()
        with redirect_stdout(StringIO()) as printed:
            adversarial = autoattack(
                network, images, labels, epsilon=EPSILON, steps=0, generator=torch.Generator().manual_seed(0)
            )
        after = surroundings()
    finally:
        sys.settrace(coverage)
    return adversarial, printed.getvalue(), before, after


@pytest.fixture(scope="module")
def shares(digits, attacked):
    """The share of digits that stay right under each attack, by package and name."""
    network, images, labels = digits

    def share(adversarial):
        return (network(adversarial).argmax(1) == labels).float().mean().item()

    adversarial = {
        ("ours", name): attack(
            network, images, labels, epsilon=EPSILON, steps=STEPS, generator=torch.Generator().manual_seed(0)
        )
        for name, attack in ATTACKS.items()
        if name != "autoattack"
    }
    adversarial["ours", "autoattack"], *_ = attacked
    for name, attack in {
        "apgd-ce": APGDAttack(network, eps=EPSILON, n_iter=STEPS, seed=1),
        "apgd-t": APGDAttack_targeted(network, eps=EPSILON, n_iter=STEPS, seed=1),
    }.items():
        adversarial["pyautoattack", name] = attack.perturb(images, labels)
    for name, attack in {
        "fgsm": torchattacks.FGSM(network, eps=EPSILON),
        "pgd": torchattacks.PGD(network, eps=EPSILON, alpha=2.5 * EPSILON / STEPS, steps=STEPS),
        "mi-fgsm": torchattacks.MIFGSM(network, eps=EPSILON, alpha=EPSILON / STEPS, steps=STEPS),
        "apgd-ce": torchattacks.APGD(network, eps=EPSILON, steps=STEPS, seed=2),
        "apgd-t": torchattacks.APGDT(network, eps=EPSILON, steps=STEPS, seed=2),
        "autoattack": torchattacks.AutoAttack(network, eps=EPSILON, seed=2),
    }.items():
        adversarial["torchattacks", name] = attack(images, labels)
    return {key: share(value) for key, value in adversarial.items()}


def test_autoattack_changes_no_global_state(attacked):
    """Its parts seed the global random state, fill gradients of parameters and remove the trace function."""
    _, printed, before, after = attacked
    assert before["gradients"] == [None] * 4
    assert after == before
    assert not printed


def test_autoattack_returns_robust_images_unchanged(digits, attacked):
    network, images, labels = digits
    adversarial, *_ = attacked
    is_right = network(adversarial).argmax(1) == labels
    assert torch.equal(adversarial[is_right], images[is_right])
    assert (adversarial[~is_right] != images[~is_right]).flatten(1).any(1).sum() > 50
    assert (adversarial - images).abs().max() <= EPSILON + 1e-6


def test_the_network_distinguishes_the_attacks(digits, shares):
    network, images, labels = digits
    assert (network(images).argmax(1) == labels).float().mean() > 0.9
    assert 0.1 < shares["ours", "autoattack"] < shares["ours", "pgd"] - 0.02
    assert shares["ours", "pgd"] < shares["ours", "fgsm"] < 0.7


@pytest.mark.parametrize("name", ["fgsm", "pgd", "mi-fgsm", "apgd-ce", "apgd-t", "autoattack"])
def test_an_attack_leaves_as_much_accuracy_as_the_reference_implementation(shares, name):
    others = [share for (maker, of), share in shares.items() if of == name and maker != "ours"]
    assert others
    for other in others:
        assert shares["ours", name] == pytest.approx(other, abs=TOLERANCE)


def test_autoattack_leaves_at_most_the_accuracy_of_each_attack(shares):
    for key, share in shares.items():
        assert shares["ours", "autoattack"] <= share + TOLERANCE, key


def test_both_losses_leave_at_most_the_accuracy_of_either(shares):
    assert shares["ours", "apgd"] <= min(shares["ours", "apgd-ce"], shares["ours", "apgd-t"]) + TOLERANCE


@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
def test_auto_pgd_uses_the_steps_of_its_authors(loss):
    """Both implementations reach the same point for every image, on a function that uses all their rules."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5))
    body.requires_grad_(False)
    images = torch.rand(200, 3, 8, 8)
    epsilon = 0.03 if loss == "ce" else 0.008

    def network(x):
        return body(20 * (x - 0.5))

    labels = network(images).argmax(1)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    start = (images + epsilon * (2 * noise - 1)).clamp(images - epsilon, images + epsilon).clamp(0, 1)
    if loss != "dlr-targeted":
        theirs = APGDAttack(network, eps=epsilon, n_iter=STEPS, loss=loss)
    else:
        theirs = APGDAttack_targeted(network, eps=epsilon, n_iter=STEPS)
        theirs.y_target = network(images).topk(2).indices[:, 1]
    theirs.init_hyperparam(images)
    best, is_right, *_ = theirs.attack_single_run(images, labels, x_init=start)
    ours = apgd(
        network,
        images,
        labels,
        epsilon=epsilon,
        steps=STEPS,
        loss=loss,
        targets=1,
        until_fooled=loss != "ce",
        generator=torch.Generator().manual_seed(0),
    )
    if loss == "ce":
        torch.testing.assert_close(ours, best, atol=1e-5, rtol=0)
    else:  # ours is done with an image at the first success; that batch, smaller, rounds its own way
        assert torch.equal(network(ours).argmax(1) == labels, is_right)
        assert is_right.sum() > 20
        assert (ours - best)[is_right].abs().lt(1e-5).float().mean() > 0.999


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fgsm, lambda network: torchattacks.FGSM(network, eps=EPSILON)),
        (partial(mi_fgsm, steps=10), lambda network: torchattacks.MIFGSM(network, eps=EPSILON, alpha=EPSILON / 10)),
    ],
)
def test_a_deterministic_attack_gives_the_same_pixels_as_the_reference(digits, ours, theirs):
    network, images, labels = digits
    expected = theirs(network)(images, labels)
    torch.testing.assert_close(ours(network, images, labels, epsilon=EPSILON), expected, atol=1e-5, rtol=0)


def test_warnings_of_the_package_reach_the_log(digits, caplog):
    network, images, labels = digits
    with caplog.at_level(logging.WARNING, logger="auto-attack"):
        autoattack(lambda x: network(x).softmax(1), images, (labels + 1) % 10, epsilon=EPSILON, steps=0)
    assert "probability distribution" in caplog.text


def test_without_the_package_its_name_is_in_the_error(digits, monkeypatch):
    network, images, labels = digits
    monkeypatch.delitem(sys.modules, "training.attacks.autoattack")
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ModuleNotFoundError) as error:
        ATTACKS["autoattack"](network, images, labels, epsilon=EPSILON, steps=0, generator=None)
    assert error.value.name == "pyautoattack"
