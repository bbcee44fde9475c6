"""The errors of the core library. The first word of a line says who must act: the caller or the operator.

    TureenError
    ├── InvalidBetaError                 caller: the β is not a number in [0, 1] nor the name of a mode
    │   └── SingleTokenError             caller: the model has one token, so there is no β to choose
    ├── InvalidStrengthError             caller: the strength is not a number in [0, 1]
    ├── InvalidMixError                  caller: the mix of tokens has a wrong form, name or weight
    │   └── UnknownTokenError            caller: the model has no token of this name
    ├── ImageError                       caller: an image cannot be used; `index` is its position among several
    │   ├── EmptyImageError              there are no bytes
    │   ├── UnreadableImageError         the file of the image cannot be read
    │   ├── UndecodableImageError        the bytes begin like a JPEG, PNG or WebP image, and cannot be decoded
    │   ├── UnsupportedImageTypeError    the bytes are not a JPEG, PNG or WebP image, or Pillow's mode is unusable
    │   ├── InvalidPixelsError           an array has a wrong dtype or shape
    │   └── ImageTooLargeError           the image exceeds a limit, such as bytes, pixels or scans
    ├── ArgumentError                    caller: a Python argument has a wrong value
    ├── ArgumentTypeError                caller: a Python argument has a wrong type
    ├── ClosedError                      caller: the soup is closed
    ├── BundleError                      operator: the bundle is missing, damaged or from another version
    │   ├── BundleFileError              one file of the bundle is missing or damaged
    │   ├── GraphFileError               the bytes are not a valid ONNX graph; the message names no file
    │   ├── BundleAddressError           the address of a bundle is invalid, or its packages are not installed
    │   └── BundleTransferError          the bundle cannot be downloaded from its address, or uploaded
    │       └── UnreachableHostError     the host of the address does not respond
    ├── TokenFileError                   caller: a token file is missing, damaged or for another backbone
    └── EngineError                      operator: the engine is not installed, not in the bundle, or wrong

A server sends the messages for callers to its clients. So these messages contain no text of another library's error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Final

LISTED_TOKENS: Final = 20  # by UnknownTokenError


class TureenError(Exception):
    """Base of every error that Tureen raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns the state for pickle: the class, the message and the attributes of this error.

        Unpickling does not call the constructor. By default pickle would call it with the message alone, and the
        constructor of a subclass may have other parameters.
        """
        return _recreate_error, (type(self), self.args), self.__dict__


def _recreate_error(kind: type[TureenError], arguments: tuple[Any, ...]) -> TureenError:
    return kind.__new__(kind, *arguments)


class InvalidBetaError(TureenError, ValueError):
    def __init__(self, value: object) -> None:
        super().__init__(
            f'β is {truncated(repr(value), 40)}; give a number from 0 (clean) to 1 (robust), or "clean" or "robust"'
        )


class InvalidStrengthError(TureenError, ValueError):
    def __init__(self, value: object) -> None:
        super().__init__(
            f"the strength is {truncated(repr(value), 40)}; give a number from 0 (clean mode) to 1 (robust mode)"
        )


class InvalidMixError(TureenError, ValueError):
    """The mix of tokens is not valid; the message says what to give."""


class UnknownTokenError(InvalidMixError):
    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        listed = ", ".join(names[:LISTED_TOKENS]) + (
            f" and {len(names) - LISTED_TOKENS:,} others" * bool(names[LISTED_TOKENS:])
        )
        super().__init__(f"there is no token {name!r}{did_you_mean(name, names)}; the tokens are {listed}")


class SingleTokenError(InvalidBetaError):
    def __init__(self, what: str = "beta") -> None:
        Exception.__init__(
            self,
            f"this model has one token, so there is no β to choose: leave {what} out, or co-train the model with "
            "`tureen train finetune --init …`",
        )


class ImageError(TureenError, ValueError):
    """Base of the errors about an image that cannot be used."""

    index: int | None = None
    """The index of the image among the images of one call; None if the call has one image."""

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.index is None else f"images[{self.index}]: {message}"


class EmptyImageError(ImageError):
    def __init__(self) -> None:
        super().__init__("the image is empty: send the bytes of a JPEG, PNG or WebP file")


class UnreadableImageError(ImageError):
    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{truncated(printable(what), 200)} cannot be read: {reason}")


class UndecodableImageError(ImageError):
    def __init__(self, what: str = "the image cannot be decoded: it is damaged or cut short") -> None:
        super().__init__(what)


class UnsupportedImageTypeError(ImageError):
    def __init__(self, what: str = "the data is not a JPEG, PNG or WebP image") -> None:
        super().__init__(what)


class InvalidPixelsError(ImageError):
    def __init__(self, name: str, value: object, expected: str) -> None:
        is_array = hasattr(value, "dtype") and hasattr(value, "shape")
        shown = f"{value.dtype} {tuple(value.shape)}" if is_array else f"a {type(value).__name__}"  # type: ignore[attr-defined]
        super().__init__(f"{name} is {shown}: give {expected}")


class ImageTooLargeError(ImageError):
    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"the image has more than {limit:,} {what}, the limit")


class ArgumentError(TureenError, ValueError):
    """A Python argument has a wrong value; the message names it and says what to give."""


class ArgumentTypeError(TureenError, TypeError):
    """A Python argument has a wrong type; the message names it and says what to give."""


class ClosedError(TureenError):
    def __init__(self) -> None:
        super().__init__("the soup is closed: open another one with tureen.load")


class BundleError(TureenError):
    """The bundle cannot be used; the message names the file and says what to do."""


class BundleFileError(BundleError):
    """A file of a bundle cannot be used. state: the reason in a few words, such as "missing"."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class GraphFileError(BundleError):
    """The bytes are not a valid ONNX graph. The code that catches this error adds the file name and the advice."""


class BundleAddressError(BundleError):
    """The address of a bundle cannot be used; the message names it and says what to do."""


class BundleTransferError(BundleError):
    """The bundle cannot be downloaded or uploaded; the message names the address and says what to do."""

    is_missing = False
    """Whether the host responds that there is no such bundle, repository or revision."""


class UnreachableHostError(BundleTransferError):
    """The host of the address does not respond, or responds that it is unavailable. A cached copy may be used."""


class TokenFileError(TureenError):
    """A token file cannot be used; the message names the file or the token and says what to do."""


class EngineError(TureenError):
    """The engine cannot be used; the message names it and says what to do."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns the end of a message that refuses `name`: the most similar of the valid names; empty if none is similar.

    It is "; did you mean 'epochs'?" for "epocs". Upper and lower case count as equal.
    """
    by_lower_case = {valid.lower(): valid for valid in names}
    similar = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f"; did you mean {by_lower_case[similar[0]]!r}?" if similar else ""


def printable(text: str) -> str:
    """Returns the text as one line for a terminal or a log: escapes line breaks and all unprintable characters.

    text: may come from an untrusted file.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def truncated(text: str, length: int) -> str:
    """Returns the text. If it has more than `length` characters, cuts it to `length`, with "..." at the end."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
