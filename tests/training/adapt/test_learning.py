"""The learning of one token: it lowers the loss, changes no other weight, and is repeated by its seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.adapt.learning import FrozenModel, learn_token, token_forward
from training.errors import DivergedError
from training.models.vit import DualTokenViT

ALL = np.arange(15)


def learned(frozen, settings, rows=ALL, stream=1):
    return list(learn_token(frozen, rows, frozen.model.soup(0.0), settings, stream=stream))


@pytest.mark.parametrize(("steps", "expected"), [(12, [0, 5, 10, 12]), (10, [0, 5, 10]), (1, [0, 1]), (0, [0])])
def test_the_checkpoints_include_the_start_and_the_end(frozen, settings, steps, expected):
    settings = replace(settings, steps=steps)
    assert settings.checkpoints == expected
    assert [step for step, _ in learned(frozen, settings)] == expected


@pytest.mark.parametrize("epsilon_255", [0, 4])
def test_learning_lowers_the_loss_and_changes_the_token_alone(frozen, settings, epsilon_255):
    settings = replace(settings, epsilon_255=epsilon_255, steps=30)
    before = {name: tensor.clone() for name, tensor in frozen.model.state_dict().items()}
    checkpoints = learned(frozen, settings)
    losses = [frozen.score(ALL, token, settings, stream=2).loss for _, token in checkpoints]
    assert losses[-1] < 0.9 * losses[0]
    torch.testing.assert_close(checkpoints[0][1], frozen.model.clean_token)
    for name, tensor in frozen.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_seed_and_the_stream_repeat_every_bit(frozen, settings):
    settings = replace(settings, epsilon_255=4)
    first, again, other, another = (
        learned(frozen, one, stream=stream)[-1][1]
        for one, stream in ((settings, 1), (settings, 1), (settings, 2), (replace(settings, seed=4), 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, another)


def test_only_the_rows_are_learned_from(model, coloured, settings):
    changed = replace(coloured, pixels=coloured.pixels.copy())
    changed.pixels[10:] = 0
    frozen, other = FrozenModel(model, coloured), FrozenModel(model, changed)
    assert torch.equal(learned(frozen, settings, ALL[:10])[-1][1], learned(other, settings, ALL[:10])[-1][1])


def test_the_score_agrees_with_the_logits_and_an_attack_lowers_it(frozen, settings):
    token = learned(frozen, replace(settings, steps=60))[-1][1]
    logits = token_forward(frozen.model, token)(frozen.pixels(ALL))
    labels = torch.from_numpy(frozen.images.labels)
    score = frozen.score(ALL, token, settings, stream=2)
    assert score.right == int((logits.argmax(1) == labels).sum()) == int(frozen.correct(ALL, token).sum())
    assert score.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum")), 1e-5)
    assert frozen.score(ALL, token, replace(settings, epsilon_255=16), stream=2).loss > score.loss


def test_logits_that_are_not_finite_are_an_error(model, coloured, settings):
    damaged = DualTokenViT(model.config).eval().requires_grad_(False)
    damaged.head.bias.fill_(float("nan"))
    frozen = FrozenModel(damaged, coloured)
    with pytest.raises(DivergedError, match="not finite"):
        learned(frozen, settings)
    with pytest.raises(DivergedError, match="not finite"):
        frozen.correct(ALL, damaged.clean_token)
