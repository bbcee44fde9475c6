import pytest
import torch
import torch.nn.functional as F

from training.evaluation.accuracy import attack_each_beta
from training.evaluation.transfer import mean_forward, transfer_matrix

LEVELS = range(28, 228)  # at distances from mid-grey of 0.5, 1.5, … 99.5, twice each
CLEAR_LEVELS = [level for level in LEVELS if abs(level - 127.5) > 4]  # from which no random start leads across
BETAS = [0.0, 1.0]


def matrix_of(model, images, *, epsilon_255, steps=4, attack="apgd", betas=BETAS):
    outcomes = attack_each_beta(model, images, betas=betas, epsilon_255=epsilon_255, steps=steps, attack=attack)
    return transfer_matrix(model, images, outcomes=outcomes, epsilon_255=epsilon_255, steps=steps)


def test_the_diagonal_equals_the_evaluation_and_the_rest_transfers(grey_model, grey_images):
    """An attack of 10/255 moves the margin by 30 levels at β = 0 and 10 at β = 1; one on the other β, by 10 and 0."""
    matrix = matrix_of(grey_model, grey_images(LEVELS), epsilon_255=10)
    assert matrix.robust == [pytest.approx([0.7, 1.0]), pytest.approx([0.9, 0.9])]
    assert [worst.value for worst in matrix.worst] == pytest.approx([0.7, 0.9])
    assert matrix.worst[0].low < 0.7 < matrix.worst[0].high
    assert (matrix.n, matrix.attack, matrix.epsilon_255) == (200, "APGD-4 (CE, DLR, widest margin)", 10)
    assert matrix.joint_attack == "APGD-4 (CE, DLR, widest margin) on the mean over β"
    assert matrix.suspects == []


def test_the_worst_case_is_never_above_the_table(margin_model, grey_images):
    """The table's attack found more than the attack of the matrix, whose gradients mislead."""
    images = grey_images(CLEAR_LEVELS)
    model = margin_model(lambda images, betas: misled(20 * (images - 0.5).mean(dim=(1, 2, 3))))
    outcomes = attack_each_beta(model, images, betas=BETAS, epsilon_255=20, steps=500, attack="square")
    matrix = transfer_matrix(model, images, outcomes=outcomes, epsilon_255=20, steps=4)
    for index, outcome in enumerate(outcomes.values()):
        assert matrix.robust[index][index] == outcome.robust.mean() < 1
        assert matrix.worst[index].value == outcome.robust.mean()


def masked_at_zero(images, betas):
    """Return the brightness; at β < ½ it has a small gradient that leads away from every error."""
    margin = 20 * (images - 0.5).mean(dim=(1, 2, 3))
    return torch.where(betas < 0.5, misled(margin), margin)


def misled(margin):
    return 1.1 * margin.detach() - 0.1 * margin


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_masked_gradients_are_found_out_by_the_attack_on_another_beta(margin_model, grey_images, attack):
    model, images = margin_model(masked_at_zero), grey_images(CLEAR_LEVELS)
    matrix = matrix_of(model, images, epsilon_255=20, attack=attack)
    assert matrix.robust == [[1, 1], pytest.approx([160 / 192, 160 / 192])]
    assert [(suspect.attacked, suspect.served) for suspect in matrix.suspects] == [(1, 0), (None, 0)]
    assert matrix.suspects[0].p_value == 2**-32
    assert matrix.worst[0].value == 160 / 192


def test_the_worst_attack_is_chosen_per_image(margin_model, grey_images):
    """The attack on each β breaks either dark or bright images, so the worst case counts those that neither breaks."""

    def one_sided(images, betas):
        brightness = images.mean(dim=(1, 2, 3))
        is_bright = brightness > 0.5
        margin = 20 * (brightness - torch.where(is_bright, 191.5, 63.5) / 255)
        return torch.where((betas < 0.5) == is_bright, misled(margin), margin)

    distances = [d for d in range(-40, 40) if abs(d + 0.5) > 4]
    images = grey_images([centre + d for centre in (64, 192) for d in distances])
    images.labels[:] = [d < 0 for d in 2 * distances]
    matrix = matrix_of(margin_model(one_sided), images, epsilon_255=20)
    broken = sum(abs(d + 0.5) < 20 for d in distances) / len(images)
    assert matrix.robust == [pytest.approx([1 - broken] * 2)] * 2
    assert [worst.value for worst in matrix.worst] == pytest.approx([1 - 2 * broken] * 2)


def test_the_joint_attack_breaks_images_that_no_attack_on_one_beta_breaks(margin_model, grey_images):
    """Each β reads half of the image, so only an attack on both β changes both halves."""

    def half_each(images, betas):
        left, right = (20 * (half - 0.5).mean(dim=(1, 2, 3)) for half in images.chunk(2, dim=3))
        return torch.where(betas < 0.5, left, right)

    matrix = matrix_of(margin_model(half_each), grey_images(LEVELS), epsilon_255=20)
    assert matrix.robust[0][0] == matrix.robust[1][1] == 0.8
    assert matrix.robust[0][1] > 0.95
    assert matrix.joint == [0.8, 0.8]


def test_the_joint_attack_is_on_the_mean_of_the_log_probabilities():
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.rand(5, 3, 4, 4, generator=generator), torch.randn(3, 48, 3, generator=generator)
    forwards = [lambda x, weight=weight: 4 * x.flatten(1) @ weight for weight in weights]
    expected = sum(F.log_softmax(forward(images), dim=1) for forward in forwards) / 3
    torch.testing.assert_close(mean_forward(forwards)(images), expected)
