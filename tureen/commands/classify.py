"""`tureen classify`: classifies image files at one strength, and also in clean mode and in robust mode.

Needs no server and no PyTorch. `tureen batch` is for many images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tureen.arguments import add_token_file_option, beta_argument, positive_int, strength_argument
from tureen.bundle.examples import BUNDLE_HELP, DEFAULT_EXAMPLE, EXAMPLES
from tureen.commands.terminal import DEFAULT_COLUMNS, terminal_columns, wrapped
from tureen.errors import ImageError, UnreadableImageError, printable, truncated
from tureen.interface.predictions import Classification, Prediction
from tureen.soup import DEFAULT_TOP_K, Soup, load
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

MAX_LABEL: Final = 24  # characters of a label in the table
MIN_BAR, MAX_BAR = 10, 40  # characters of a probability of 100 %
EIGHTHS: Final = " ▏▎▍▌▋▊▉"
FULL: Final = "█"


@dataclass(frozen=True)
class Readings:
    """Three classifications of one image: at the chosen β, in clean mode and in robust mode.

    Each has all labels, the most probable first. clean, robust: None if the model has one token.
    """

    chosen: Classification
    clean: Classification | None
    robust: Classification | None


def classify(arguments: list[str]) -> int:
    """Runs `tureen classify`. Returns 0, or 1 if an image cannot be used; the other images are still classified."""
    parser = argparse.ArgumentParser(
        prog="tureen classify",
        description="Classify images at one strength, from clean mode (0) to robust mode (1), beside the readings of "
        "both modes.",
        epilog="example: tureen classify photo.jpg --strength 0.7",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG or WebP file")
    parser.add_argument("--bundle", type=Path, help=f"{BUNDLE_HELP} (default: the example {DEFAULT_EXAMPLE})")
    beta = parser.add_mutually_exclusive_group()
    beta.add_argument(
        "--strength", type=strength_argument, help="0 (clean mode) to 1 (robust mode), which the model maps to β"
    )
    beta.add_argument("--beta", type=beta_argument, help="0 to 1, clean or robust (default: that of the bundle)")
    parser.add_argument("--token", metavar="NAME", help="token in place of the clean one")
    parser.add_argument("--mix", help="weights of tokens, such as fog:0.7,robust:0.3, in place of a strength or β")
    add_token_file_option(parser)
    parser.add_argument(
        "--top-k", type=positive_int, default=DEFAULT_TOP_K, help="number of labels (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of tables")
    options = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    status = 0
    strength = None if options.strength is None else options.strength.value
    choice = {"beta": options.beta, "strength": strength, "token": options.token, "mix": options.mix}
    with load(options.bundle or EXAMPLES / DEFAULT_EXAMPLE, tokens=options.token_file) as soup:
        for image in options.images:
            try:
                readings = read_image(soup, image, **choice)
            except ImageError as error:
                status = 1
                error.index = None  # the message names the file
                message = str(error) if isinstance(error, UnreadableImageError) else f"{printable(image)}: {error}"
                print(f"tureen classify: {message}", file=sys.stderr, flush=True)
                results.append({"image": image, "error": str(error)})
                continue
            if options.json:
                results.append({"image": image, **_as_json(readings, options.top_k)})
            else:
                print(readings_text(image, readings, options.top_k, terminal_columns() or DEFAULT_COLUMNS), flush=True)
        if options.json:
            manifest = soup.bundle.manifest
            print(json.dumps({"model": manifest.name, "version": manifest.version, "images": results}, indent=2))
    return status


def read_image(
    soup: Soup,
    image: str,
    beta: float | None = None,
    strength: float | None = None,
    token: str | None = None,
    mix: str | None = None,
) -> Readings:
    """Returns the classifications of the file `image`: at the given choice, in clean mode and in robust mode.

    beta, strength, token, mix: as for `Soup.classify`. Without any of them, the default β of the bundle is used. Raises
    an ImageError if the file cannot be used, and the other errors of `Soup.classify`.
    """
    everything = len(soup.labels)
    (chosen,) = soup.classify([image], beta, strength=strength, token=token, mix=mix, top_k=everything)
    if not soup.bundle.manifest.has_two_tokens:
        return Readings(chosen, None, None)
    clean, robust = soup.classify([image, image], [CLEAN_BETA, ROBUST_BETA], top_k=everything)
    return Readings(chosen, clean, robust)


def readings_text(image: str, readings: Readings, top_k: int, columns: int) -> str:
    """Returns the text for one image: a heading, then a line with a bar for each of the `top_k` most probable labels.

    If the terminal is too narrow for the bars, the probabilities stand below each label, without bars.

    The heading has the most probable label at the β or strength of the command, in clean mode and in robust mode. The
    bars show the probabilities at the β or strength of the command. columns: width of the terminal.
    """
    return "\n".join(_lines(image, readings, top_k, columns))


def _lines(image: str, readings: Readings, top_k: int, columns: int) -> Iterator[str]:
    chosen = readings.chosen
    shown = chosen.predictions[:top_k]
    labels = [truncated(printable(one.label), MAX_LABEL) for one in shown]
    label_width = max(map(len, labels))
    modes = {"clean mode": readings.clean, "robust mode": readings.robust}
    by_mode = {mode: reading.predictions for mode, reading in modes.items() if reading is not None}
    best = [f"{mode} {_best(predictions)}" for mode, predictions in by_mode.items()]
    chosen_at = _choice(chosen)
    at = f" at {chosen_at}" if chosen_at else ""
    title = f"{printable(image)}: {'; '.join([f'{_best(chosen.predictions)}{at}', *best])}"
    shares = [{one.index: one.probability for one in predictions} for predictions in by_mode.values()]
    bar_width = min(MAX_BAR, columns - label_width - 13 - 13 * len(by_mode))
    if bar_width < MIN_BAR:
        yield wrapped(title, columns)
        for label, one in zip(labels, shown, strict=True):
            yield wrapped(f"  {label}", columns)
            yield f"    {_percent(one.probability)}"
            for mode, share in zip(by_mode, shares, strict=True):
                yield wrapped(f"    {mode.removesuffix(' mode')} {_percent(share[one.index])}", columns)
        return
    yield title
    if by_mode:
        heading = chosen_at.partition(" (")[0]
        yield f"  {heading:>{label_width + bar_width + 11}}{''.join(f'{mode:>13}' for mode in by_mode)}"
    for label, one in zip(labels, shown, strict=True):
        others = "".join(f"{_percent(share[one.index]):>13}" for share in shares)
        bar = _bar(one.probability, bar_width)
        yield f"  {label:<{label_width}}  {bar:<{bar_width}}{_percent(one.probability):>9}{others}"


def _choice(chosen: Classification) -> str:
    """Returns the mix, or the strength with its β, as text; empty if the model has one token and there is no mix."""
    if chosen.mix is not None:
        return ",".join(f"{name}:{weight:.2f}" for name, weight in chosen.mix.items())
    return "" if chosen.beta is None else f"strength {chosen.strength:.2f} (β {chosen.beta:.2f})"


def _best(predictions: Sequence[Prediction]) -> str:
    return f"{printable(predictions[0].label)} {_percent(predictions[0].probability)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bar(share: float, width: int) -> str:
    eighths = round(share * width * 8)
    bar = FULL * (eighths // 8) + EIGHTHS[eighths % 8].strip()
    try:
        bar.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return "#" * round(share * width)
    return bar


def _as_json(readings: Readings, top_k: int) -> dict[str, Any]:
    def top(reading: Classification) -> list[dict[str, Any]]:
        return [one.model_dump() for one in reading.predictions[:top_k]]

    chosen = readings.chosen
    return {
        **chosen.model_dump(exclude={"predictions"}),
        "predictions": top(chosen),
        "clean": None if readings.clean is None else top(readings.clean),
        "robust": None if readings.robust is None else top(readings.robust),
    }
