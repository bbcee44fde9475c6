"""APGD: which point it returns, when an image leaves the batch, and its losses."""

import pytest
import torch
import torch.nn.functional as F

from tests.training.attacks.attacked_models import (
    EPSILON,
    LARGE,
    four_classes,
    network,
    run,
    seeded,
    share_right,
    sure_images,
)
from training.attacks.apgd import apgd
from training.errors import RecipeError


def test_the_plain_ratio_needs_three_classes():
    images = torch.full((2, 3, 8, 8), 0.5)
    with pytest.raises(RecipeError, match="DLR loss needs 3 classes, the model has 2: attack with apgd-ce"):
        apgd(lambda x: x.flatten(1)[:, :2], images, torch.zeros(2, dtype=torch.int64), epsilon=0.1, steps=2, loss="dlr")


@pytest.mark.parametrize("name", ["apgd-t", "apgd", "apgd-dlr", "autoattack"])
def test_a_saturated_softmax_saves_no_model_from_the_logits_ratio(name):
    forward = network(scale=1e4)
    images, labels = sure_images(forward, 16)
    assert share_right(forward, run(name, forward, images, labels, epsilon=LARGE), labels) == 0


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
