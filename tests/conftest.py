"""What the tests share: one model trained by the real command, one bundle exported from it, images of every kind."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test starts reads or writes what the user has in their cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUREEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits_run(request: pytest.FixtureRequest) -> Path:
    """A run of the recipe `digits` as it stands, by `tureen train`; kept between sessions until training/ changes."""
    from tureen.cli import main

    sources = [*sorted((ROOT / "training").glob("*.py")), ROOT / "tureen" / "tokens.py"]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    out = Path(request.config.cache.mkdir("digits")) / digest
    if not (out / "checkpoint.json").exists():
        for stale in out.parent.iterdir():
            shutil.rmtree(stale)
        assert main(["train", "digits", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def bundle_path(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the trained digits, by `tureen export`; read-only: copy it to change it."""
    from tureen.cli import main

    out = tmp_path_factory.mktemp("export") / "digits-bundle"
    assert main(["export", str(digits_run), "--out", str(out)]) == 0
    return out


@pytest.fixture
def own_bundle(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle_path, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def checkpoint(digits_run: Path):
    from training.checkpoint import load_checkpoint

    return load_checkpoint(digits_run)


@pytest.fixture(scope="session")
def soup(bundle_path: Path) -> Iterator:
    import tureen

    with tureen.load(bundle_path, engine="onnxruntime") as soup:
        yield soup


@pytest.fixture(scope="session")
def digit_png(checkpoint) -> Callable[[int], bytes]:
    """The held-out digit of that index, as the bytes of a PNG file."""

    def make(index: int) -> bytes:
        return encoded(Image.fromarray(checkpoint.held_out.pixels[index]))

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
    """A smooth picture with something different in each quarter, 64 × 48."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([x * 4, y * 5, 255 - x * 2 - y], axis=-1).astype(np.uint8))
