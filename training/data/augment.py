"""Changes training images at random, one batch at a time, on the device of the batch.

The recipe selects the kinds of change. All random numbers come from the argument `generator`, so the images of a step
depend only on the seed and the step. Knows nothing about models or files.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from training.recipes import Augmentation


def augment_images(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Returns the images, float32 (B, 3, H, W) in [0, 1], after all changes of `augmentation` that mix no images.

    The order of the changes is shift, rotation, brightness, flip, RandAugment, erasing.
    """
    images = shift_images(images, augmentation.shift_pixels, generator)
    images = rotate_images(images, augmentation.rotation_degrees, generator)
    images = change_brightness(images, augmentation.brightness, generator)
    if augmentation.flip:
        is_flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
        images = torch.where(is_flipped[:, None, None, None], images.flip(3), images)
    if augmentation.randaugment_ops:
        images = _randaugmented(images, augmentation, generator)
    return erase_rectangles(images, augmentation.erasing, generator)


def shift_images(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Returns each image moved by a random offset of at most `pixels` along both axes. Uncovered pixels become 0."""
    if not pixels:
        return images
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator, device=images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)  # (B, H)
    columns = offsets[1] + torch.arange(width, device=images.device)  # (B, W)
    padded = F.pad(images, (pixels,) * 4).permute(0, 2, 3, 1)
    batch = torch.arange(count, device=images.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def rotate_images(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Returns each image rotated about its centre by a random angle in [−degrees, degrees].

    Interpolates bilinearly. Uncovered pixels take the value of the nearest border pixel.
    """
    if not degrees:
        return images
    angles = torch.empty(len(images), device=images.device).uniform_(-degrees, degrees, generator=generator).deg2rad()
    cos, sin = angles.cos(), angles.sin()
    aspect = images.shape[2] / images.shape[3]
    zero = torch.zeros_like(angles)
    # The grid has the range [−1, 1] along both axes, also where the image is not square.
    maps = torch.stack([cos, -sin * aspect, zero, sin / aspect, cos, zero], dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def change_brightness(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Returns each image multiplied by a random factor in [1 − strength, 1 + strength], clipped to [0, 1]."""
    if not strength:
        return images
    factors = torch.empty(len(images), 1, 1, 1, device=images.device)
    return (images * factors.uniform_(1 - strength, 1 + strength, generator=generator)).clamp(0, 1)


def erase_rectangles(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Returns the images after random erasing: with the given probability, one rectangle of an image becomes noise.

    Source: Zhong et al., AAAI 2020. As published, the rectangle has 2 to 33 % of the area and a side ratio between 0.3
    and 3.3. The centre of the rectangle is anywhere in the image, so a part of the rectangle may be outside.
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


def mix_images(
    images: Tensor, labels: Tensor, augmentation: Augmentation, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns the images after MixUp or CutMix, and their targets after label smoothing.

    labels: int64 (B,). classes: number K of classes. If all three changes are off, the targets are the labels. Else the
    targets are float32 (B, K), and each row is a distribution over the classes. If MixUp and CutMix are both on, each
    batch gets one of them, as in Touvron et al. (DeiT, ICML 2021). All images of a batch have the same weight (MixUp)
    or rectangle (CutMix). Sources: Zhang et al., ICLR 2018 (MixUp); Yun et al., ICCV 2019 (CutMix).
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
    """Returns masks, bool (B, 1, height, width). Each mask is True inside one rectangle.

    height_share, width_share: the size of each rectangle. top, left: the distance of its centre from the top and from
    the left of the image. All four have shape (B,) or (1,), and are shares of the image's height or width.
    """

    def span(share: Tensor, centre: Tensor, size: int) -> Tensor:
        places = (torch.arange(size, device=share.device) + 0.5) / size
        return (places[None, :] - centre[:, None]).abs() * 2 < share[:, None]  # (B, size)

    return span(height_share, top, height)[:, None, :, None] & span(width_share, left, width)[:, None, None, :]


def _randaugmented(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Returns the images after RandAugment (Cubuk et al., NeurIPS 2020), by the package kornia.

    All images of the batch get the same operations.
    """
    from kornia.augmentation.auto import RandAugment

    augment = RandAugment(n=augmentation.randaugment_ops, m=augmentation.randaugment_magnitude)
    seed = _python_random(generator).getrandbits(32)
    # kornia uses the global generators of Python and torch. The state of both is restored.
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            random.seed(seed)
            torch.manual_seed(seed)
            return augment(images).clamp(0, 1)
    finally:
        random.setstate(state)


def _python_random(generator: torch.Generator) -> random.Random:
    """Returns a random number generator of Python whose seed comes from the generator of torch."""
    drawn = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return random.Random(int(drawn))  # noqa: S311 - augmentation, not cryptography
