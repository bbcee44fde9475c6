"""Attacks find planted adversarial examples, and raise an error where they cannot work."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from training.attacks.catalogue import ATTACKS
from training.attacks.gradient import apgd, fgsm, has_zero_gradient, mi_fgsm, pgd
from training.errors import RecipeError, ZeroGradientError

EPSILON = 8 / 255
LARGE = 0.2  # with this radius, every attack breaks the network below
GRADIENT = [name for name in ATTACKS if name not in ("autoattack", "square")]
ITERATIVE = [name for name in GRADIENT if name != "fgsm"]

every_attack = pytest.mark.parametrize("name", ATTACKS)
every_attack_with_a_gradient = pytest.mark.parametrize("name", [*GRADIENT, "autoattack"])


def run(name, forward, images, labels, *, epsilon=EPSILON, steps=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ATTACKS[name](forward, images, labels, epsilon=epsilon, steps=steps, generator=generator)


def seeded(shape, *, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def four_classes(margin):
    """Return logits: class 0 if the margin (B,) is positive, else class 1; two more classes are never predicted."""
    never = torch.full_like(margin, -20.0)
    return torch.stack([margin / 2, -margin / 2, never, never], dim=1)


def network(scale=1.0):
    """A random function from images (B, 3, 8, 8) to the logits of 5 classes, curved enough to mislead a single step."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5))
    body.requires_grad_(False)
    return lambda images: scale * body(8 * (images - 0.5))


def sure_images(forward, count):
    """Return the most confidently classified of a thousand random images, with the predicted labels."""
    images = seeded((1000, 3, 8, 8))
    best, second = forward(images).topk(2).values.unbind(1)
    images = images[(best - second).topk(count).indices]
    return images, forward(images).argmax(1)


def share_right(forward, images, labels):
    return (forward(images).argmax(1) == labels).float().mean().item()


@every_attack_with_a_gradient
def test_the_strongest_point_of_a_linear_model_is_found(name):
    """The optimum of a linear model is known: every pixel moves by ε against its weight. Nothing less fools it."""
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    reach = EPSILON * weight.abs().sum()

    def forward(x):
        return four_classes(((x - 0.5) * weight).flatten(1).sum(1) + 0.98 * reach)

    images, labels = torch.full((4, 3, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)
    assert share_right(forward, images, labels) == 1
    assert share_right(forward, run(name, forward, images, labels), labels) == 0


@pytest.mark.parametrize(
    "attack",
    [
        fgsm,
        partial(pgd, steps=10, step_size=EPSILON / 4),
        partial(mi_fgsm, steps=10),
        partial(apgd, steps=10),
        partial(apgd, steps=2, until_fooled=False),
        partial(apgd, steps=10, loss="dlr-targeted"),
    ],
)
def test_a_robust_linear_model_is_attacked_to_its_worst_point(attack):
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))

    def forward(x):
        return four_classes(((x - 0.5) * weight).flatten(1).sum(1) + 1.5 * EPSILON * weight.abs().sum())

    images = torch.full((4, 3, 8, 8), 0.5)
    adversarial = attack(forward, images, torch.zeros(4, dtype=torch.int64), epsilon=EPSILON)
    torch.testing.assert_close(adversarial, images - EPSILON * weight.sign())


@every_attack_with_a_gradient
def test_a_planted_adversarial_example_is_found(name):
    """The model is right except around one corner of the ε-ball, with a slope that leads there."""
    images = torch.full((1, 3, 8, 8), 0.5)
    corner = images + EPSILON * (seeded((1, 3, 8, 8)) - 0.5).sign()

    def forward(x):
        return four_classes((x - corner).flatten(1).norm(dim=1) - 0.01)

    labels = torch.tensor([0])
    assert share_right(forward, images, labels) == 1
    assert share_right(forward, run(name, forward, images, labels, steps=40), labels) == 0


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-t", "apgd", "autoattack"])
def test_an_adversarial_example_planted_inside_the_ball_is_found(name):
    """No single step reaches the example; steps must turn back."""
    images = torch.full((1, 3, 8, 8), 0.5)
    inside = images + EPSILON * (2 * seeded((1, 3, 8, 8)) - 1)

    def forward(x):
        return four_classes((x - inside).flatten(1).norm(dim=1) - 0.03)

    labels = torch.tensor([0])
    assert share_right(forward, run("fgsm", forward, images, labels), labels) == 1
    assert share_right(forward, run(name, forward, images, labels, steps=100), labels) == 0


@every_attack_with_a_gradient
def test_an_adversarial_example_planted_in_a_network_is_found(name):
    """A linear readout of network features that fails only for points as extreme as the planted one.

    Source: Zimmermann et al., *Increasing confidence in adversarial robustness evaluations*, NeurIPS 2022.
    """
    torch.manual_seed(0)
    features = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 32), torch.nn.Tanh())
    image = seeded((1, 3, 8, 8)) * 0.8 + 0.1
    planted = image + EPSILON * (seeded((1, 3, 8, 8), seed=2) - 0.5).sign()
    with torch.no_grad():
        inner = features(image + EPSILON * (2 * seeded((500, 3, 8, 8), seed=3) - 1))
        away = features(planted) - inner.mean(0)
        readout = torch.linalg.solve(inner.T.cov() + 1e-4 * torch.eye(32), away[0])

    def forward(x):
        return four_classes(10 * ((away - features(x) + inner.mean(0)) @ readout / (away @ readout) + 0.02))

    assert (forward(image + EPSILON * (2 * seeded((500, 3, 8, 8), seed=4) - 1)).argmax(1) == 0).all()
    labels = torch.tensor([0])
    assert share_right(forward, run(name, forward, image, labels), labels) == 0


@pytest.mark.parametrize("name", ["fgsm", "pgd", "mi-fgsm", "apgd-ce"])
def test_a_saturated_softmax_is_an_error_for_attacks_on_the_cross_entropy(name):
    forward = network(scale=1e4)
    images, labels = sure_images(forward, 16)
    assert has_zero_gradient(forward, images, labels).all()
    with pytest.raises(ZeroGradientError):
        run(name, forward, images, labels)


def test_the_plain_ratio_needs_three_classes():
    images = torch.full((2, 3, 8, 8), 0.5)
    with pytest.raises(RecipeError, match="DLR loss needs 3 classes, the model has 2: attack with apgd-ce"):
        apgd(lambda x: x.flatten(1)[:, :2], images, torch.zeros(2, dtype=torch.int64), epsilon=0.1, steps=2, loss="dlr")


@pytest.mark.parametrize("name", ["apgd-t", "apgd", "apgd-dlr", "autoattack"])
def test_a_saturated_softmax_saves_no_model_from_the_logits_ratio(name):
    forward = network(scale=1e4)
    images, labels = sure_images(forward, 16)
    assert share_right(forward, run(name, forward, images, labels, epsilon=LARGE), labels) == 0


def rounded(forward):
    """Return the model with a quantised input: piecewise constant, so its gradient is zero everywhere."""
    return lambda x: forward((4 * x).round() / 4)


@pytest.mark.parametrize("name", GRADIENT)
def test_rounding_inside_a_model_is_an_error_not_robustness(name):
    forward = rounded(network())
    images, labels = sure_images(forward, 16)
    with pytest.raises(ZeroGradientError):
        run(name, forward, images, labels)


@pytest.mark.parametrize("name", GRADIENT)
def test_one_image_without_a_gradient_does_not_stop_the_attack_on_another(name):
    forward = network()

    def rounded_where_bright(x):
        is_bright = (x.flatten(1).mean(1) > 0.5)[:, None, None, None]
        return forward(torch.where(is_bright, x.round(), x))

    dark_and_bright = torch.stack([0.3 * seeded((3, 8, 8)), 1 - 0.3 * seeded((3, 8, 8))])
    labels = forward(dark_and_bright).argmax(1)
    labels[1] = rounded_where_bright(dark_and_bright).argmax(1)[1]
    adversarial = run(name, rounded_where_bright, dark_and_bright, labels, epsilon=0.1)
    assert (rounded_where_bright(adversarial).argmax(1) == labels).tolist() == [False, True]


def test_square_breaks_a_model_without_a_gradient():
    forward = rounded(network())
    images, labels = sure_images(forward, 4)
    assert share_right(forward, run("square", forward, images, labels, epsilon=LARGE, steps=3000), labels) == 0


def test_autoattack_includes_square():
    forward = rounded(network())
    images, labels = sure_images(forward, 1)
    assert share_right(forward, run("autoattack", forward, images, labels, epsilon=LARGE), labels) == 0


@every_attack
def test_the_result_stays_within_epsilon_and_the_range(name):
    forward = network()
    images = seeded((8, 3, 8, 8))
    images[:4] = images[:4].round()
    before = images.clone()
    adversarial = run(name, forward, images, forward(images).argmax(1), epsilon=LARGE)
    assert torch.equal(images, before)
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert EPSILON < (adversarial - images).abs().max() <= LARGE + 1e-6


@every_attack
def test_a_radius_of_zero_gives_the_images_back(name):
    forward = network()
    images = seeded((4, 3, 8, 8))
    adversarial = run(name, forward, images, forward(images).argmax(1), epsilon=0.0)
    assert torch.equal(adversarial, images)
    assert adversarial is not images


@every_attack
def test_a_radius_of_a_half_leaves_no_accuracy(name):
    """Chance is 20 %, but the labels are predictions of the model, so a working attack leaves 0 %."""
    forward = network()
    images = seeded((16, 3, 8, 8))
    labels = forward(images).argmax(1)
    assert share_right(forward, run(name, forward, images, labels, epsilon=0.5), labels) == 0


@pytest.mark.parametrize("name", ITERATIVE)
def test_more_steps_are_never_weaker_and_a_single_one_never_stronger(name):
    """Up to one image of 200, which is the effect of a random start."""
    forward = network()
    images = seeded((200, 3, 8, 8))
    labels = forward(images).argmax(1)

    def share(name, steps):
        return share_right(forward, run(name, forward, images, labels, epsilon=0.015, steps=steps), labels)

    once = share("fgsm", 1)
    shares = [share(name, steps) for steps in (1, 5, 40)]
    assert 0.2 < shares[-1] < 0.8
    assert shares[1] <= shares[0] + 0.005
    assert shares[2] <= shares[1] + 0.005
    assert shares[2] < once


@every_attack
def test_only_the_images_get_gradients(name):
    layer = torch.nn.Linear(192, 5)
    images = seeded((8, 3, 8, 8))

    def forward(x):
        return layer(x.flatten(1))

    run(name, forward, images, forward(images).argmax(1), epsilon=LARGE)
    assert layer.weight.grad is None
    assert images.grad is None


@every_attack
def test_the_seed_repeats_the_result_and_the_global_random_state_stays(name):
    forward = network()
    images = seeded((8, 3, 8, 8))
    labels = forward(images).argmax(1)
    state = torch.get_rng_state()
    first = run(name, forward, images, labels, epsilon=LARGE)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(run(name, forward, images, labels, epsilon=LARGE), first)
    other = run(name, forward, images, labels, epsilon=LARGE, seed=1)
    assert torch.equal(other, first) == (name in ("fgsm", "mi-fgsm"))


@every_attack_with_a_gradient
def test_logits_in_half_precision_will_do(name):
    forward = network()
    images = seeded((4, 3, 8, 8))
    labels = forward(images).bfloat16().argmax(1)
    adversarial = run(name, lambda x: forward(x).bfloat16(), images, labels, epsilon=LARGE)
    assert adversarial.dtype == torch.float32
    assert share_right(forward, adversarial, labels) == 0


@every_attack
def test_one_image_is_a_batch(name):
    forward = network()
    images = seeded((1, 3, 8, 8))
    labels = forward(images).argmax(1)
    assert share_right(forward, run(name, forward, images, labels, epsilon=LARGE), labels) == 0


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "apgd", "autoattack"])
def test_a_misclassified_image_costs_nothing_and_is_unchanged(name):
    forward = network()
    images = seeded((8, 3, 8, 8))
    labels = forward(images).argmin(1)
    assert torch.equal(run(name, forward, images, labels), images)


def test_a_fooled_image_leaves_the_batch():
    forward, rows = network(), []
    images = seeded((64, 3, 8, 8))
    labels = forward(images).argmax(1)

    def counted(x):
        rows.append(len(x))
        return forward(x)

    adversarial = apgd(counted, images, labels, epsilon=EPSILON, steps=20)
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 64
    assert rows[-1] == (forward(adversarial).argmax(1) == labels).sum() > 0


def test_in_training_the_batch_stays_whole_and_each_image_keeps_its_worst_point():
    forward, seen, with_gradient = network(), [], []
    images = seeded((64, 3, 8, 8))
    labels = forward(images).argmax(1)

    def recorded(x):
        seen.append(x.detach().clone())
        with_gradient.append(torch.is_grad_enabled())
        return forward(x)

    adversarial = apgd(recorded, images, labels, epsilon=EPSILON, steps=2, until_fooled=False)
    assert [len(x) for x in seen] == [64, 64, 64]  # the start and each step
    assert with_gradient == [True, True, False]
    losses = torch.stack([F.cross_entropy(forward(x), labels, reduction="none") for x in seen])
    worst = F.cross_entropy(forward(adversarial), labels, reduction="none")
    torch.testing.assert_close(worst, losses.max(dim=0).values)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("apgd-t", "apgd-dlr, apgd-ce or pgd"), ("apgd", "apgd-dlr, apgd-ce or pgd"), ("autoattack", "apgd")],
)
def test_the_targeted_ratio_names_the_alternative_for_three_classes(name, advice):
    weight = torch.randn(192, 3, generator=torch.Generator().manual_seed(0))
    images = torch.full((2, 3, 8, 8), 0.5)

    def forward(x):
        return (x - 0.5).flatten(1) @ weight + torch.tensor([100.0, 0.0, 0.0])

    with pytest.raises(RecipeError, match=f"4 classes, the model has 3: attack with {advice}"):
        run(name, forward, images, torch.zeros(2, dtype=torch.int64), epsilon=1e-3)


def test_the_targeted_ratio_tries_the_less_likely_classes_too():
    """The most likely wrong class cannot be reached, but the next one can."""
    image = torch.full((1, 3, 8, 8), 0.5)

    def forward(x):
        next_likely = 100 * (x - 0.5).flatten(1).mean(1)
        first, second, last = (torch.full_like(next_likely, value) for value in (2.0, 1.0, -3.0))
        return torch.stack([first, second, next_likely, last], dim=1)

    options = {"epsilon": EPSILON, "steps": 10, "loss": "dlr-targeted"}
    assert forward(apgd(forward, image, torch.tensor([0]), targets=1, **options)).argmax() == 0
    assert forward(apgd(forward, image, torch.tensor([0]), targets=2, **options)).argmax() == 2


def test_a_robust_image_is_returned_at_the_end_of_the_attack_on_the_likeliest_class():
    forward = network()
    images, labels = sure_images(forward, 8)
    one, all_wrong = (
        apgd(
            forward,
            images,
            labels,
            epsilon=1e-3,
            steps=10,
            loss="dlr-targeted",
            targets=targets,
            generator=torch.Generator().manual_seed(0),
        )
        for targets in (1, 9)
    )
    assert torch.equal(one, all_wrong)
    assert not torch.equal(one, images)


def test_the_targeted_ratio_has_no_form_for_training():
    with pytest.raises(RecipeError, match="until_fooled"):
        apgd(
            network(),
            seeded((2, 3, 8, 8)),
            torch.tensor([0, 1]),
            epsilon=EPSILON,
            steps=2,
            loss="dlr-targeted",
            until_fooled=False,
        )


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_widest_margin_fools_and_is_wider_than_that_of_an_attack_that_ends_early(scale):
    """At the larger scale the cross-entropy has no gradient, and only the DLR finds a point."""
    forward = network(scale)
    images, labels = sure_images(forward, 16)

    def margins(x):
        right, wrong = forward(x).gather(1, labels[:, None]), forward(x).scatter(1, labels[:, None], -torch.inf)
        return wrong.amax(1) - right.squeeze(1)

    widest = margins(run("apgd-margin", forward, images, labels, epsilon=LARGE))
    assert (widest > 0).all()
    assert widest.mean() > margins(run("apgd", forward, images, labels, epsilon=LARGE)).mean()


def test_the_widest_margin_is_that_of_the_image_where_no_point_is_wider():
    """Every point around the image is classified better than the image."""
    image = torch.full((1, 3, 8, 8), 0.5)
    forward = lambda x: four_classes((x - image).flatten(1).norm(dim=1) + (x - image).flatten(1).sum(1).abs() + 1)  # noqa: E731
    moved = run("apgd-margin", forward, image, torch.tensor([0]))
    assert torch.equal(moved, image)


def test_vanished_gradients_are_found_per_image():
    def forward(x):
        is_dark = x.flatten(1).mean(1, keepdim=True) < 0.5
        logits = x.flatten(1)[:, :4]
        return torch.where(is_dark, logits, logits.round())

    images = torch.stack([torch.full((3, 8, 8), 0.3), torch.full((3, 8, 8), 0.7)])
    assert has_zero_gradient(forward, images, torch.tensor([0, 0])).tolist() == [False, True]
