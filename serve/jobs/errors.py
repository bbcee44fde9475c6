"""What a batch job may be refused for; each message says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tureen.errors import ImageError, TureenError


class JobError(TureenError):
    """A job that cannot run or go on."""


class InputError(JobError, ValueError):
    """An input that is no folder, archive, glob or manifest, or one that cannot be read."""


class OutputError(JobError, ValueError):
    """An output directory that holds something else, or another job."""


class OutputTakenError(OutputError):
    """Another process is at work in the output."""


class OutsideRootsError(JobError, ValueError):
    def __init__(self, path: str, roots: Sequence[Path]) -> None:
        listed = ", ".join(map(str, roots)) or "no directory"
        super().__init__(f"{path!r} is not below what jobs may use, {listed}, or is no plain absolute path")


class JobStoppedError(JobError):
    """Too large a share of the images failed."""


class UnreadableError(ImageError):
    """One file of the input that cannot be read: it is missing, no regular file, or the disk fails."""


class UnknownJobError(JobError):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id[:32]!r}: ask /jobs for those there are")


class JobStateError(JobError):
    def __init__(self, state: str, wanted: str) -> None:
        super().__init__(f"a job that is {state.replace('_', ' ')} cannot be {wanted}")


class TooManyJobsError(JobError):
    def __init__(self, most: int) -> None:
        super().__init__(f"{most:,} jobs have not ended, as many as there may be: wait, or cancel some")


class JobsUnavailableError(JobError):
    def __init__(self) -> None:
        super().__init__("this server takes no jobs: start it with --job-input-roots and --job-output-roots")


class NoResultError(JobError):
    def __init__(self) -> None:
        super().__init__("there is no such result of the job here: ask /jobs/ID/results for those there are")


class JobInterruptedError(JobError):
    """Whoever runs the job stops before its end: it was paused or cancelled, or the server ends."""
