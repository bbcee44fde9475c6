"""Makes tokens for tests, without learning."""

import numpy as np

from tureen.bundle.manifest import BACKBONE, Accuracy
from tureen.bundle.token_file import Token, TokenAccuracy, TokenRecord

SHARE = Accuracy(value=0.8, low=0.7, high=0.9)


def make_token(soup, name, seed):
    """A token between both modes with noise. Its golden logits are those of the soup's own engine."""
    bundle = soup.bundle
    rng = np.random.default_rng(seed)
    vector = ((bundle.clean_token + bundle.robust_token) / 2 + rng.normal(0, 0.1, bundle.clean_token.shape)).astype(
        np.float32
    )
    pixels = bundle.golden.pixels
    return Token(make_record(bundle, name, seed), vector, soup.logits(pixels, [vector] * len(pixels)))


def make_record(bundle, name, seed=0):
    """The record of a token for the backbone of the bundle, with made-up figures."""
    return TokenRecord(
        name=name,
        model=bundle.manifest.name,
        backbone_sha256=bundle.manifest.files[BACKBONE].sha256,
        best_beta=0.5,
        steps=60,
        images=50,
        images_sha256="0" * 64,
        is_robust=False,
        seed=seed,
        accuracy=[TokenAccuracy(n=50, token=SHARE, best_beta=SHARE, wins=0, losses=0, p_value=1)],
    )
