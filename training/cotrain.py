"""Co-training: one step's loss, the schedules, and the loop that saves itself and can be resumed.

Knows nothing about files beyond the state it saves, and nothing about how a run is shown.
"""

from __future__ import annotations

import copy
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from training.atomic import replace_file
from training.attacks import pgd
from training.data import Images
from training.errors import CheckpointError, DivergedError
from training.model import DualTokenViT, images_from_pixels
from training.recipes import Recipe


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training came to; losses are means over its steps, NaN for a half that was not trained."""

    epoch: int
    epochs: int
    clean_loss: float
    robust_loss: float
    epsilon_255: float
    learning_rate: float


def best_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """bf16 arithmetic inside the model where the recipe wants it and the device has it; the rest stays fp32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported()
    else:
        has_bf16 = bool(torch.cpu.get_capabilities().get("amx_bf16"))  # without AMX, bf16 is no faster than fp32
    if recipe.precision == "bf16" or (recipe.precision == "auto" and has_bf16):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def cotraining_losses(
    model: DualTokenViT, images: Tensor, labels: Tensor, *, recipe: Recipe, epsilon: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The two expectations of Eq. 1 on one batch: mean cross-entropy in clean mode, and in robust mode under attack.

    images: float32 (B, 3, H, W) in [0, 1]. labels: int64 (B,). epsilon: radius in the same range.
    Both halves go through the model in one forward pass of 2·B rows, each row with its own token; the attack is
    PGD on the robust mode. Where α is 0 or 1 the half without weight is not computed, and its loss is NaN.
    """
    count = len(images)
    clean_rows = model.clean_token.expand(count, -1)
    robust_rows = model.robust_token.expand(count, -1)
    nan = images.new_tensor(math.nan)
    if recipe.alpha == 1:
        return F.cross_entropy(model(images, clean_rows).float(), labels), nan
    robust_mode = robust_rows.detach()
    adversarial = pgd(
        lambda x: model(x, robust_mode),
        images,
        labels,
        epsilon=epsilon,
        steps=recipe.attack_steps,
        step_size=epsilon * recipe.attack_step,
        generator=generator,
    )
    if recipe.alpha == 0:
        return nan, F.cross_entropy(model(adversarial, robust_rows).float(), labels)
    logits = model(torch.cat([images, adversarial]), torch.cat([clean_rows, robust_rows])).float()
    return F.cross_entropy(logits[:count], labels), F.cross_entropy(logits[count:], labels)


def eq1(clean_loss: Tensor, robust_loss: Tensor, alpha: float) -> Tensor:
    """Eq. 1 of the paper: α·clean + (1 − α)·robust, where a loss without weight may be NaN."""
    if alpha == 1:
        return clean_loss
    return robust_loss if alpha == 0 else alpha * clean_loss + (1 - alpha) * robust_loss


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The learning rate at a share of training in [0, 1]: linear warm-up, then a half cosine to zero."""
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    after = (progress - recipe.warmup) / (1 - recipe.warmup) if recipe.warmup < 1 else 0.0
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * after))


def epsilon(recipe: Recipe, progress: float) -> float:
    """The radius at a share of training in [0, 1], in the range [0, 1] of the images: a linear ramp, then constant."""
    ramp = min(1.0, progress / recipe.epsilon_ramp) if recipe.epsilon_ramp else 1.0
    return recipe.epsilon_255 / 255 * ramp


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


class Cotraining:
    """A training run in progress: model, its moving average, optimiser, random state and epoch.

    The same recipe, seed and device give the same run, whether or not it was interrupted.
    """

    def __init__(self, recipe: Recipe, train: Images, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        self.epoch = 0
        self.seconds = 0.0  # spent in epochs, over all processes that took part
        torch.manual_seed(recipe.seed)
        self.model = DualTokenViT(recipe.model).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.generator = torch.Generator(device).manual_seed(recipe.seed)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self._images = images_from_pixels(torch.from_numpy(train.pixels).to(device))
        self._labels = torch.from_numpy(train.labels).to(device)
        self._steps_per_epoch = max(1, len(train) // recipe.batch_size)

    @property
    def is_finished(self) -> bool:
        return self.epoch >= self.recipe.epochs

    def run_epoch(self) -> Epoch:
        """Train one epoch; raises DivergedError where the loss is not finite."""
        started = time.perf_counter()
        order = torch.randperm(len(self._labels), generator=self.generator, device=self.device)
        sums = torch.zeros(2, device=self.device)
        for index in range(self._steps_per_epoch):
            chosen = order[index * self.recipe.batch_size : (index + 1) * self.recipe.batch_size]
            sums += self._step(chosen, self.epoch * self._steps_per_epoch + index)
        self.epoch += 1
        self.seconds += time.perf_counter() - started
        clean_loss, robust_loss = (sums / self._steps_per_epoch).tolist()
        progress = self.epoch / self.recipe.epochs
        return Epoch(
            epoch=self.epoch,
            epochs=self.recipe.epochs,
            clean_loss=clean_loss,
            robust_loss=robust_loss,
            epsilon_255=epsilon(self.recipe, progress) * 255,
            learning_rate=learning_rate(self.recipe, progress),
        )

    def _step(self, chosen: Tensor, step: int) -> Tensor:
        progress = step / (self.recipe.epochs * self._steps_per_epoch)
        images = shifted(self._images[chosen], self.recipe.shift_pixels, self.generator)
        with autocast(self.recipe, self.device):
            losses = cotraining_losses(
                self.model,
                images,
                self._labels[chosen],
                recipe=self.recipe,
                epsilon=epsilon(self.recipe, progress),
                generator=self.generator,
            )
        loss = eq1(*losses, self.recipe.alpha)
        if not loss.isfinite():
            raise DivergedError(f"the loss is {loss.item()} at step {step}: lower learning_rate or epsilon_255")
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.recipe, progress)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimiser.step()
        decay = min(self.recipe.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                average.lerp_(parameter, 1 - decay)
        return torch.stack(losses).detach()

    def save(self, path: Path) -> None:
        """Write all that `restore` needs to `path`, atomically; safetensors, no pickle."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
        tensors["generator"] = self.generator.get_state()
        metadata = {"recipe": self.recipe.fingerprint(), "epoch": str(self.epoch), "seconds": repr(self.seconds)}
        replace_file(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))

    def restore(self, path: Path) -> None:
        """Continue where `save` left off; raises CheckpointError for another recipe's state or a damaged file."""
        try:
            with safe_open(path, framework="pt", device=str(self.device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: start again without --resume") from error
        if metadata.get("recipe") != self.recipe.fingerprint():
            raise CheckpointError(f"{path} is of another recipe or other settings: resume with the same ones")
        self.model.load_state_dict(_under("model.", tensors))
        self.average.load_state_dict(_under("average.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimiser.", tensors).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.generator.set_state(tensors["generator"].cpu())
        self.epoch = int(metadata["epoch"])
        self.seconds = float(metadata["seconds"])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
