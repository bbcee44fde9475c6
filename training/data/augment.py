"""Random changes of training images, whole batches at a time and on their device.

Each is off unless a recipe asks for it. Everything random comes from the generator that is passed in, so a step's
images depend on the seed and the step alone. Knows nothing about models or files.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from training.recipes import Augmentation


def augmented(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """The images float32 (B, 3, H, W) in [0, 1], each changed on its own: shift, flip, RandAugment, erasing."""
    images = shifted(images, augmentation.shift_pixels, generator)
    if augmentation.flip:
        is_flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
        images = torch.where(is_flipped[:, None, None, None], images.flip(3), images)
    if augmentation.randaugment_ops:
        images = _randaugmented(images, augmentation, generator)
    return erased(images, augmentation.erasing, generator)


def shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image translated by its own random offset of up to `pixels` in both directions, zeros moving in."""
    if not pixels:
        return images
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator, device=images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)  # (B, H)
    columns = offsets[1] + torch.arange(width, device=images.device)  # (B, W)
    padded = F.pad(images, (pixels,) * 4).permute(0, 2, 3, 1)
    batch = torch.arange(count, device=images.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def erased(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Each image with a rectangle of noise in it, with that probability (Zhong et al., AAAI 2020).

    The rectangle has 2 to 33 % of the image's area and a side ratio between 0.3 and 3.3, as published; its centre lies
    anywhere, so that a part of it may lie outside.
    """
    if not probability:
        return images
    count, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=images.device)

    area, ratio = uniform(0.02, 0.33), torch.exp(uniform(-1.2, 1.2))
    box = _boxes((area * ratio).sqrt(), (area / ratio).sqrt(), uniform(0, 1), uniform(0, 1), height, width)
    is_erased = box & (uniform(0, 1) < probability)[:, None, None, None]
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return torch.where(is_erased, noise, images)


def mixed(
    images: Tensor, labels: Tensor, augmentation: Augmentation, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The batch after MixUp or CutMix and label smoothing: images as before, targets.

    labels: int64 (B,). Returns targets int64 (B,) where nothing is asked for, else float32 (B, K), each row a
    distribution over classes. Where both mixings are on, each batch gets one of them, as in Touvron et al. (DeiT, ICML
    2021). Sources: Zhang et al., ICLR 2018 (MixUp); Yun et al., ICCV 2019 (CutMix); one weight and one box a batch.
    """
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(augmentation, kind)]
    if not kinds and not augmentation.label_smoothing:
        return images, labels
    targets = F.one_hot(labels, classes).float()
    targets = targets * (1 - augmentation.label_smoothing) + augmentation.label_smoothing / classes
    if not kinds:
        return images, targets
    choice = _python_random(generator)
    kind = choice.choice(kinds)
    strength = getattr(augmentation, kind)
    share = choice.betavariate(strength, strength)  # of the image itself
    order = torch.randperm(len(images), generator=generator, device=images.device)
    if kind == "mixup":
        images = share * images + (1 - share) * images[order]
    else:
        side = images.new_tensor([(1 - share) ** 0.5])
        place = [images.new_tensor([choice.random()]) for _ in range(2)]
        box = _boxes(side, side, place[0], place[1], *images.shape[2:])
        images = torch.where(box, images[order], images)
        share = 1 - float(box.float().mean())
    return images, share * targets + (1 - share) * targets[order]


def _boxes(height_share: Tensor, width_share: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """bool (B, 1, H, W): a rectangle a row, its sides and the place of its centre as shares of the image's sides."""

    def span(share: Tensor, centre: Tensor, size: int) -> Tensor:
        places = (torch.arange(size, device=share.device) + 0.5) / size
        return (places[None, :] - centre[:, None]).abs() * 2 < share[:, None]  # (B, size)

    return span(height_share, top, height)[:, None, :, None] & span(width_share, left, width)[:, None, None, :]


def _randaugmented(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """RandAugment (Cubuk et al., NeurIPS 2020) by kornia, which chooses the operations once a batch."""
    from kornia.augmentation.auto import RandAugment

    augment = RandAugment(n=augmentation.randaugment_ops, m=augmentation.randaugment_magnitude)
    seed = _python_random(generator).getrandbits(32)
    # kornia draws from the global generators of Python and torch, which are left as they were.
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            random.seed(seed)
            torch.manual_seed(seed)
            return augment(images).clamp(0, 1)
    finally:
        random.setstate(state)


def _python_random(generator: torch.Generator) -> random.Random:
    """Python's generator for the few numbers a batch has in common, seeded from torch's."""
    drawn = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return random.Random(int(drawn))  # noqa: S311 - augmentation, not cryptography
