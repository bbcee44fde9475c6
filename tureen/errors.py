"""What can go wrong in the core library, and who must act.

    TureenError
    ├── InvalidBetaError                 caller: the β is not a number in [0, 1] nor the name of a mode
    │   └── SingleTokenError             caller: there is no β to choose, the model has one token
    ├── ImageError                       caller
    │   ├── EmptyImageError              there are no bytes
    │   ├── UndecodableImageError        it looks like a JPEG, PNG or WebP image, and cannot be decoded
    │   ├── UnsupportedImageTypeError    it is not a JPEG, PNG or WebP image
    │   └── ImageTooLargeError           more bytes or pixels than the limit
    ├── BundleError                      operator: the bundle is missing, damaged or from another version
    │   ├── BundleFileError              one file of it is
    │   └── GraphFileError               the bytes are not the ONNX graph that they should be; names no file
    └── EngineError                      operator: the engine is not installed, not vouched for, or answers wrongly

Messages are written here and in the callers, never taken from a library: they may be shown to anybody.
"""

from __future__ import annotations


class TureenError(Exception):
    """Base of every error that Tureen raises on purpose."""


class InvalidBetaError(TureenError, ValueError):
    def __init__(self, value: object) -> None:
        shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
        super().__init__(f'β is {shown}; give a number from 0 (clean) to 1 (robust), or "clean" or "robust"')


class SingleTokenError(InvalidBetaError):
    def __init__(self, what: str = "beta") -> None:
        Exception.__init__(
            self,
            f"this model has one token, so there is no β to choose: leave {what} out, or co-train the model with "
            "`tureen train finetune --init …`",
        )


class ImageError(TureenError, ValueError):
    """Base of what can be wrong with an image."""


class EmptyImageError(ImageError):
    def __init__(self) -> None:
        super().__init__("the image is empty: send the bytes of a JPEG, PNG or WebP file")


class UndecodableImageError(ImageError):
    def __init__(self) -> None:
        super().__init__("the image cannot be decoded: it is damaged or cut short")


class UnsupportedImageTypeError(ImageError):
    def __init__(self, what: str = "the data is not a JPEG, PNG or WebP image") -> None:
        super().__init__(what)


class ImageTooLargeError(ImageError):
    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"the image has more than {limit:,} {what}, the limit")


class BundleError(TureenError):
    """The bundle cannot be used; the message names the file and what to do."""


class BundleFileError(BundleError):
    """A file of a bundle that cannot be used, and in one word or a few, why."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class GraphFileError(BundleError):
    """What is wrong with the bytes of an ONNX graph; whoever knows the file adds its name and what to do."""


class EngineError(TureenError):
    """The engine cannot be used; the message names it and what to do."""


def printable(text: str) -> str:
    """A text from a file that is not trusted, fit for a terminal or a log: on one line, nothing in it a command."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
