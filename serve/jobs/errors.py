"""What a batch job may be refused for; each message says what to do."""

from __future__ import annotations

from tureen.errors import ImageError, TureenError


class JobError(TureenError):
    """A job that cannot run or go on."""


class InputError(JobError, ValueError):
    """An input that is no folder, archive, glob or manifest, or one that cannot be read."""


class OutputError(JobError, ValueError):
    """An output directory that holds something else, or another job."""


class JobStoppedError(JobError):
    """Too large a share of the images failed."""


class UnreadableError(ImageError):
    """One file of the input that cannot be read: it is missing, no regular file, or the disk fails."""
