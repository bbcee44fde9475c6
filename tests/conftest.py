"""Shared fixtures: a model that `tureen train` trains, the bundle that `tureen export` makes of it, and images."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from tests.fast import is_fast
from tests.forked_tureen import TRAINING, ForkedTureen
from tests.patience import PATIENCE

pytest_plugins = ["tests.remote_hosts"]

ROOT = Path(__file__).parents[1]
END_TO_END = ROOT / "tests" / "end_to_end"
SHARED_DATA = ROOT.parent / "shared" / "data"
SHORT_DIGITS = [
    "epochs=20", "model.width=64", "model.depth=2", "attack_steps=1", "learning_rate=0.006", "evaluation_steps=5"
]  # fmt: skip
KEPT_S = 24 * 3600  # a session that began before a source changed still reads what it has made
SHORT_SIGNS = [
    "epochs=30", "batch_size=20", "model.width=64", "model.depth=2", "model.heads=2", "learning_rate=0.004",
    "ema_decay=0.9", "attack_steps=1", "evaluation_steps=2", "evaluation_betas=0,1", "monitor_share=1",
    "augmentation.rotation_degrees=0", "augmentation.shift_pixels=1", "augmentation.brightness=0.1",
]  # fmt: skip
SIGN_NUMBERS = ("14", "13", "01", "02", "05", "17", "12", "09", "38", "18")  # of the signs' classes in GTSRB
# A directory with `bundle` and `held_out.npz`, for an environment without torch (test_lowest_versions.py).
PREPARED_DIGITS = os.environ.get("TUREEN_TEST_DIGITS")

# On a slow machine an example may take any time.
settings.register_profile("tureen", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tureen")

# OpenMP threads that spin at a barrier slow down a busy machine. torch reads this variable when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Beside another test process, one thread for each process is faster than threads that wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of tests/end_to_end and the fast tests, order all, and multiply each timeout by PATIENCE."""
    for item in items:
        if END_TO_END in item.path.parents:
            item.add_marker(pytest.mark.end_to_end)
        if is_fast(item):
            item.add_marker(pytest.mark.fast)
    # The other processes run fast tests while one trains the digits and one the signs.
    slow_files = {item.path for item in items if not item.get_closest_marker("fast")}
    trained = {ROOT / "tests" / "export" / "commands" / name for name in ("test_calibrate.py", "test_attack.py")}
    items.sort(key=lambda item: (item.path not in trained, item.path in slow_files))
    for item in items if PATIENCE != 1 else []:
        marker = item.get_closest_marker("timeout")
        limit = marker.args[0] if marker else float(config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(limit * PATIENCE), append=False)


@pytest.fixture(scope="session", autouse=True)
def _isolated_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests from reading or writing the cache and the state directory of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUREEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TUREEN_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        patch.setenv("TUREEN_ADMIN_PORT", "0")  # a free port for each of many servers
        yield


@pytest.fixture(scope="session")
def forked_tureen() -> Iterator[ForkedTureen]:
    """The process whose forks run `tureen serve` and other commands without their imports."""
    with closing(ForkedTureen()) as forked:
        yield forked


@pytest.fixture(scope="session")
def forked_training() -> Iterator[ForkedTureen]:
    """The process whose forks run `tureen train` and other commands without their imports, on one thread."""
    with closing(ForkedTureen(TRAINING)) as forked:
        yield forked


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Start each test with the usual handlers. A server in this process, or a background shell, ignores signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _no_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test without the width of a terminal, which a library may set for the whole process."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def digits_run(request: pytest.FixtureRequest) -> Path:
    """A run of the recipe `digits` with a smaller model and fewer epochs: a tenth of the work, about 95 % clean."""
    return _trained_digits(request.config, SHORT_DIGITS)


@pytest.fixture(scope="session")
def published_digits_run(request: pytest.FixtureRequest) -> Path:
    """A run of the unchanged recipe `digits`, for slow tests of published figures. Takes minutes on two cores."""
    return _trained_digits(request.config, [])


def _trained_digits(config: pytest.Config, settings: list[str]) -> Path:
    """Run `tureen train digits`; the pytest cache keeps the run until training/ or the settings change."""
    from tureen.cli import main

    def train(out: Path) -> None:
        assert main(["train", "digits", "--out", str(out), *(f"--set={setting}" for setting in settings)]) == 0

    sources = [*sorted((ROOT / "training").rglob("*.py")), ROOT / "tureen" / "tokens.py"]
    content = b"".join(source.read_bytes() for source in sources) + json.dumps(settings).encode()
    return _kept(config, "short-digits" if settings else "digits", content, train, last="checkpoint.json")


@pytest.fixture(scope="session")
def signs_run(request: pytest.FixtureRequest) -> Path:
    """A run of the recipe `signs` with a small model, on 14 images of each sign that Tureen draws. Read-only."""
    return _trained_signs(request.config)


def _trained_signs(config: pytest.Config) -> Path:
    """Run `tureen train signs` on drawn images; the pytest cache keeps the run until a source or a setting changes."""
    from tureen.cli import main

    def train(out: Path) -> None:
        settings = [f"--set={setting}" for setting in SHORT_SIGNS]
        with tempfile.TemporaryDirectory() as data:
            draw_signs(Path(data))
            assert main(["train", "signs", "--data", data, "--out", str(out), *settings]) == 0

    sources = [source for room in ("training", "tureen/pictures") for source in sorted((ROOT / room).rglob("*.py"))]
    content = b"".join(source.read_bytes() for source in sources) + json.dumps(SHORT_SIGNS).encode()
    return _kept(config, "short-signs", content, train, last="checkpoint.json")


def draw_signs(root: Path) -> None:
    """Write a folder for each drawn sign: two drawings, 32 × 32, in seven shades with noise."""
    from tureen.pictures.signs import SIGNS, drawn_picture

    rng = np.random.default_rng(0)
    for number, sign in enumerate(SIGNS):
        folder = root / f"{SIGN_NUMBERS[number]}-{sign}"
        folder.mkdir(parents=True)
        for seed in range(2):
            small = np.asarray(drawn_picture(sign, seed).resize((32, 32), Image.Resampling.BICUBIC), dtype=float)
            for shade in range(7):
                noisy = small * (0.85 + 0.05 * shade) + rng.normal(0, 4, small.shape)
                pixels = noisy.round().clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{7 * seed + shade:05}.png")


def _kept(config: pytest.Config, name: str, content: bytes, make: Callable[[Path], None], *, last: str) -> Path:
    """Return a directory of the pytest cache that `make` has written from this content.

    last: the file that `make` writes last.
    """
    cache = Path(config.cache.mkdir(name))
    out = cache / hashlib.sha256(content).hexdigest()[:12]
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # so that parallel sessions in one checkout make it once
        if not (out / last).exists():
            for earlier in filter(Path.is_dir, cache.iterdir()):
                if time.time() - earlier.stat().st_mtime > KEPT_S:
                    shutil.rmtree(earlier)
            shutil.rmtree(out, ignore_errors=True)  # incomplete
            make(out)
    return out


@pytest.fixture(scope="session")
def bundle_path(request: pytest.FixtureRequest) -> Path:
    """The exported bundle of the trained digits. Read-only: `own_bundle` is a copy."""
    if PREPARED_DIGITS:
        return Path(PREPARED_DIGITS) / "bundle"
    run: Path = request.getfixturevalue("digits_run")
    # Whether another precision passes depends on the processor.
    return _exported(request.config, "digits-bundle", run.name.encode(), [str(run), "--precision", "fp32"])


def _exported(config: pytest.Config, name: str, weights: bytes, arguments: list[str]) -> Path:
    """Run `tureen export`; the pytest cache keeps the bundle until weights, sources or installed packages change."""
    from tureen.cli import main

    def export(out: Path) -> None:
        assert main(["export", *arguments, "--out", str(out)]) == 0

    sources = sorted(source for room in ("export", "training", "tureen") for source in (ROOT / room).rglob("*.py"))
    packages = sorted(f"{found.name} {found.version}" for found in importlib.metadata.distributions())
    content = b"".join(source.read_bytes() for source in sources) + json.dumps([arguments[1:], packages]).encode()
    return _kept(config, name, content + weights, export, last="manifest.json")


@pytest.fixture
def own_bundle(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(bundle_path, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def checkpoint(digits_run: Path):
    from training.checkpoint import load_checkpoint

    return load_checkpoint(digits_run)


@dataclass
class HeldOut:
    """The digits that training does not use."""

    pixels: np.ndarray  # uint8 (450, 8, 8, 3)
    labels: np.ndarray  # int64 (450,)


@pytest.fixture(scope="session")
def held_out(request: pytest.FixtureRequest) -> HeldOut:
    if PREPARED_DIGITS:
        with np.load(Path(PREPARED_DIGITS) / "held_out.npz") as arrays:
            return HeldOut(arrays["pixels"], arrays["labels"])
    images = request.getfixturevalue("checkpoint").test
    return HeldOut(images.pixels, images.labels)


@pytest.fixture(scope="session")
def soup(bundle_path: Path) -> Iterator:
    import tureen

    with tureen.load(bundle_path, engine="onnxruntime") as soup:
        yield soup


@pytest.fixture(scope="session")
def digit_png(held_out: HeldOut) -> Callable[[int], bytes]:
    """A function that returns the held-out digit of an index as a PNG file."""

    def make(index: int) -> bytes:
        return encoded(Image.fromarray(held_out.pixels[index]))

    return make


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encoded


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """A smooth RGB image, 64 × 48, with a different colour in each quarter."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([x * 4, y * 5, 255 - x * 2 - y], axis=-1).astype(np.uint8))


@pytest.fixture(scope="session")
def photographs() -> list[bytes]:
    """The 200 JPEG files beside the repository; skips where they are absent."""
    if not (file := SHARED_DATA / "imagenet-sample-200.tar").exists():
        pytest.skip("no photographs beside the repository")
    with tarfile.open(file) as archive:
        members = sorted((m for m in archive if m.isfile() and m.name.endswith(".JPEG")), key=lambda m: m.name)
        return [archive.extractfile(m).read() for m in members if "/._" not in m.name]


@pytest.fixture(scope="session")
def pictures(request: pytest.FixtureRequest) -> list[bytes]:
    """The photographs, or synthetic ones if they are absent. JPEG files."""
    try:
        return request.getfixturevalue("photographs")
    except pytest.skip.Exception:
        rng = np.random.default_rng(0)
        blocks = [Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)) for _ in range(20)]
        return [encoded(image.resize((160, 120), Image.Resampling.BICUBIC), "JPEG") for image in blocks]


@pytest.fixture(scope="session")
def put_file() -> Callable[..., None]:
    """A function that puts a file into a bundle and lists it in the manifest, like an attacker with write access."""
    return put_listed_file


def put_listed_file(bundle: Path, name: str, data: bytes, **changes: object) -> None:
    """Write the file and its manifest record. changes: to other fields of the manifest."""
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(data)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (bundle / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.fixture(scope="session")
def single_token_weights() -> dict:
    """A state dict in the format of timm: 32 × 32 pixels, 16 patches, one block of width 192, five classes."""
    import torch

    from training.models.shapes import ViTConfig
    from training.models.vit import DualTokenViT

    torch.manual_seed(0)
    model = DualTokenViT(ViTConfig(image_size=32, patch_size=8, width=192, depth=1, heads=3, classes=5))
    weights = {name: tensor for name, tensor in model.state_dict().items() if "token" not in name}
    weights["cls_token"] = torch.randn(1, 1, 192) * 0.02
    weights["pos_embed"] = torch.cat([torch.randn(1, 1, 192) * 0.02, weights["pos_embed"]], dim=1)
    parts = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    named = {}
    for name, tensor in weights.items():
        name = name.replace("patch_embed.", "patch_embed.proj.")
        for ours, theirs in parts.items():
            name = name.replace(f".{ours}.", f".{theirs}.") if name.startswith("blocks") else name
        named[name] = tensor
    return named


@pytest.fixture(scope="session")
def single_token_file(single_token_weights: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import safetensors.torch

    file = tmp_path_factory.mktemp("weights") / "foreign.safetensors"
    safetensors.torch.save_file(single_token_weights, file)
    return file


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of five classes, with 12 noisy images of one colour, 40 × 36. Read-only."""
    root = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    colours = {
        "cat": (200, 60, 60), "cow": (60, 200, 60), "dog": (60, 60, 200), "hen": (200, 200, 60), "owl": (60, 200, 200)
    }  # fmt: skip
    for name, colour in colours.items():
        (root / name).mkdir(parents=True)
        for i in range(12):
            picture = (np.array(colour) + rng.integers(-60, 60, (36, 40, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(root / name / f"{i:03}.jpg")
    return root


@pytest.fixture(scope="session")
def single_token_bundle(request: pytest.FixtureRequest, single_token_file: Path) -> Path:
    """The exported bundle of a model with one token. Read-only."""
    arguments = [str(single_token_file), "--engine", "onnxruntime"]
    return _exported(request.config, "single-token-bundle", single_token_file.read_bytes(), arguments)


@pytest.fixture(scope="session")
def equal_tokens_bundle(request: pytest.FixtureRequest, single_token_file: Path) -> Path:
    """The exported bundle of the same model with its token as clean and robust token. Read-only."""
    arguments = [str(single_token_file), "--engine", "onnxruntime", "--tokens", "equal"]
    return _exported(request.config, "equal-tokens-bundle", single_token_file.read_bytes(), arguments)


@pytest.fixture(scope="session")
def torchvision():
    import torch

    try:
        return pytest.importorskip("torchvision")
    except RuntimeError as error:
        # The compiled operators of torchvision need the exact build of torch that they were compiled for. Without them,
        # the import fails on two operators that no ViT uses. Declarations without an implementation avoid that.
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # partly imported by the failed attempt
        return pytest.importorskip("torchvision")


@pytest.fixture(scope="session")
def timm(torchvision):
    return pytest.importorskip("timm")


@pytest.fixture(scope="session")
def transformers(torchvision):
    return pytest.importorskip("transformers")
