"""A job and its output directory: the lock, the specification, the listing, the shards and the summary.

    OUTPUT/_job/job.json       the specification; its hash is the fingerprint of the job
    OUTPUT/_job/inputs.jsonl   the listing: one line per image
    OUTPUT/_job/id             the id of the job in the server's store, if a server runs it
    OUTPUT/_job/lock           locked by the process that runs the job
    OUTPUT/part-00000.parquet  a shard with all its rows
    OUTPUT/_SUCCESS            counts and fingerprint, written when every shard exists

Specification, listing, shards and summary are written atomically: each is complete or absent. After a crash the job
resumes with the missing shards.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from serve.errors import InputError, JobStoppedError, OutputError, OutputTakenError, UnreadableError
from serve.jobs.decoding import ERROR_CODES
from serve.jobs.image_source import ImageSource, InputImage
from serve.jobs.job_spec import InputSummary, JobOptions, JobSpec, build_spec, check_betas, check_unchanged
from serve.jobs.pipeline import OnImages, Pipeline, ShardInput
from serve.jobs.rooted_files import JOB_FOLDER, OutputDirectory, open_regular_file
from serve.jobs.shard_file import ModelInfo, Shard, read_shard, write_shard
from tureen.atomic_file import atomic_file, write_atomically
from tureen.bundle.manifest import Manifest, Precision
from tureen.engines.base import Engine
from tureen.preprocess import ImageLimits
from tureen.tokens import Strength

SUCCESS_FILE = "_SUCCESS"
SPEC_FILE, LISTING_FILE, NEW_LISTING_FILE = "job.json", "inputs.jsonl", "inputs.jsonl.new"
JOB_ID_FILE, LOCK_FILE = "id", "lock"
MIN_IMAGES_FOR_RATE = 100  # an error rate of fewer images is not significant


class JobSummary(BaseModel):
    """The counts, the model and the engine of a finished job. It is the content of the file _SUCCESS."""

    fingerprint: str  # of the JobSpec
    images: int  # number of images
    rows: int  # number of rows, failed ones included
    failed_rows: int  # number of rows with an error
    error_codes: dict[str, int]  # number of rows with each error code
    shards: int  # number of shards
    model: str
    version: str  # of the model
    engine: str
    precision: Precision
    betas: tuple[float | None, ...]  # of the images to which the input gives no β; (None,) if the model has one token
    mix: str | None = None  # the mix of tokens that classified every image; None: the soups at `betas`
    beta_range: tuple[float, float] | None = None  # lowest and highest β of the rows if the input gives β, else None
    calibrated: bool  # whether the probabilities use fitted temperatures


@dataclass(frozen=True)
class ShardTask:
    """A shard to make.

    offset: byte offset, in the listing, of the line of the shard's first image. is_retry: True if the shard exists and
    only its failed images are classified again.
    """

    number: int  # of the shard, from 0
    offset: int
    is_retry: bool


@dataclass(frozen=True)
class ShardResult:
    """The result of making one shard. number: of the shard. error_codes: the number of rows with each error code."""

    number: int
    error_codes: Mapping[str, int]


@contextmanager
def lock_output(output: OutputDirectory) -> Iterator[None]:
    """Locks the output directory for this process during the `with` block.

    If no job has started in the block, removes the files in the folder `_job` in the end. Raises OutputTakenError if
    another process holds the lock, and OutputError if the directory cannot be written to.
    """
    path = output.job_folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except FileNotFoundError:  # another process has just removed the folder
        raise OutputTakenError(f"another process uses {output.name}") from None
    except OSError as error:
        raise OutputError(f"{output.name} cannot be written to: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(descriptor), os.lstat(path))
        except OSError:
            is_ours = False
        if not is_ours:  # another process holds the lock, or has just removed the file
            raise OutputTakenError(f"another process uses {output.name}")
        try:
            yield
        finally:
            _remove_unused(output)
    finally:
        os.close(descriptor)


def _remove_unused(output: OutputDirectory) -> None:
    """Removes an unfinished new listing. If no job has started in the output, removes listing, id and lock too."""
    has_job = not output.is_new or os.path.lexists(output.job_folder / SPEC_FILE)
    for name in (NEW_LISTING_FILE,) if has_job else (NEW_LISTING_FILE, LISTING_FILE, JOB_ID_FILE, LOCK_FILE):
        if os.path.lexists(output.job_folder / name):
            with suppress(OSError):
                (output.job_folder / name).unlink()


def check_not_inside(output: Path, input_path: str) -> None:
    """Raises OutputError if the output is the input folder or inside it. Such a job would list its shards as images."""
    if os.path.isdir(input_path) and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(input_path)):
        raise OutputError(f"{output} is inside the input, so its files would be input files: give another directory")


def read_job_spec(output: OutputDirectory) -> JobSpec | None:
    """Returns the specification of the job in an output directory; None if the directory is empty.

    Raises OutputError if the directory has other files, or if this version of Tureen cannot read the specification.
    """
    if os.path.lexists(output.job_folder / SPEC_FILE):
        try:
            with open_regular_file(output.job_folder / SPEC_FILE) as file:
                return JobSpec.model_validate_json(file.read())
        except (OSError, ValidationError) as error:
            raise OutputError(f"{output.name} holds a job of another version: give another directory") from error
    if any(entry.name != JOB_FOLDER for entry in output.path.iterdir()):
        raise OutputError(f"{output.name} is not empty and holds no job: give another directory")
    return None


def list_inputs(
    source: ImageSource,
    output: OutputDirectory,
    beta_of: Callable[[Strength], float],
    on_listed: Callable[[int], None],
) -> InputSummary:
    """Writes the listing, one JSON line per image, to the file NEW_LISTING_FILE. Returns a summary of the listing.

    beta_of: returns the β of a strength. The listing has this β in place of the strength. on_listed: receives the
    number of images so far. Raises InputError if the input cannot be listed or has no image. Raises OutputError if the
    input has a link to a folder that contains the output.
    """
    digest, images, has_own_betas = hashlib.sha256(), 0, False
    with atomic_file(output.job_folder / NEW_LISTING_FILE) as listing:
        for image in source.list_images():
            beta = image.beta if image.strength is None else beta_of(image.strength)
            line = json.dumps([image.id, image.path, beta, image.location]).encode() + b"\n"
            digest.update(line)
            listing.write(line)
            images += 1
            has_own_betas |= beta is not None
            on_listed(images)
    for folder in source.linked_folders:
        check_not_inside(Path(output.name), folder)
    if not images:
        raise InputError("the input holds no file")
    return InputSummary(digest.hexdigest(), images, has_own_betas)


def read_job_id(output: OutputDirectory) -> str | None:
    """Returns the id, in the server's store, of the job in an output directory; None if no server runs this job.

    Raises OutputError if the file with the id is unreadable.
    """
    try:
        with open_regular_file(output.job_folder / JOB_ID_FILE) as file:
            return file.read(64).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{output.name} holds no readable job: give another directory") from error


def start_or_resume(
    output: OutputDirectory,
    source: ImageSource,
    manifest: Manifest,
    engine: Engine,
    limits: ImageLimits,
    options: JobOptions,
    earlier: JobSpec | None,
    on_listed: Callable[[int], None] = lambda images: None,
) -> JobSpec:
    """Lists the input, and returns the specification of the job. Writes the listing and the specification of a new job.

    earlier: the specification that `read_job_spec` returned; None for a new job. on_listed: receives the number of
    images listed so far.
    Raises OutputError if the specification differs from `earlier`. Raises InputError if the options give a β twice, or
    more than one β although the input gives β. Raises SingleTokenError if the options or the input give a β and the
    model has one token. Raises the errors of `list_inputs`.
    """
    check_betas(options)
    curve = manifest.strength if earlier is None or earlier.strength is None else earlier.strength
    beta_of = manifest.model_copy(update={"strength": curve}).beta_of
    inputs = list_inputs(source, output, beta_of, on_listed)
    spec = build_spec(options, inputs, manifest, engine, limits, earlier)
    new_listing = output.job_folder / NEW_LISTING_FILE
    if earlier is None:
        new_listing.rename(output.job_folder / LISTING_FILE)
        _write_json(output.job_folder / SPEC_FILE, spec)
    else:
        check_unchanged(earlier, spec)
        new_listing.unlink()
    return spec


class Job:
    """A job whose specification and listing are written. Makes the shards that are missing."""

    def __init__(self, output: OutputDirectory, spec: JobSpec, labels: Sequence[str]) -> None:
        self.output, self.spec = output, spec
        self._model_info = ModelInfo(labels, spec.model, spec.version, spec.engine, spec.precision, spec.strength)
        self._metadata = {
            "tureen.fingerprint": spec.fingerprint,
            "tureen.model": spec.model,
            "tureen.version": spec.version,
            "tureen.engine": f"{spec.engine} {spec.precision}",
            "tureen.betas": json.dumps(spec.betas),
            **({} if spec.mix is None else {"tureen.mix": spec.mix}),
            "tureen.calibrated": json.dumps(spec.temperatures.is_calibrated),
        }
        self._error_codes: dict[int, Counter[str]] = {}  # by shard, of the shards that exist

    def shard_path(self, number: int) -> Path:
        """Returns the path of the file of shard `number`, which counts from 0."""
        return self.output.path / f"part-{number:05}.{self.spec.format}"

    def missing_shards(self) -> list[int]:
        """Returns the numbers of the shards that do not exist yet."""
        return [number for number in range(self.spec.shards) if not self.shard_path(number).is_file()]

    def run(
        self,
        make_shards: Callable[[Iterator[ShardTask]], Iterator[ShardResult]],
        *,
        retry_failed: bool = False,
        max_error_rate: float = 1.0,
        on_images: OnImages = lambda done, failed: None,
    ) -> JobSummary:
        """Makes the missing shards, writes the summary and returns it.

        make_shards: makes and writes the shards of the tasks, in any order. retry_failed: whether to classify images
        with an error again. max_error_rate: a share, 0 to 1. on_images: receives the numbers of finished and failed
        images of each existing shard; `make_shards` reports those of new shards itself.
        Raises JobStoppedError if the share of rows with an error exceeds `max_error_rate`, OutputError if an existing
        shard is damaged, OSError if the disk fails, and the errors of `make_shards`.
        """
        (self.output.path / SUCCESS_FILE).unlink(missing_ok=True)  # written again at the end
        missing = self.missing_shards()
        for number in sorted(set(range(self.spec.shards)) - set(missing)):
            shard = self._read(number)
            self._error_codes[number] = _count_codes(shard)
            failed, images = len(self._first_rows(shard.failed_rows)), self.images_in(number)
            on_images(images - failed if retry_failed else images, 0 if retry_failed else failed)
        if not retry_failed:
            self._check_rate(max_error_rate)
        for result in make_shards(self._tasks(missing, retry_failed=retry_failed)):
            self._error_codes[result.number] = Counter(result.error_codes)
            self._check_rate(max_error_rate)
        self._check_rate(max_error_rate, min_images=1)
        return self._finish()

    def make_shards(self, pipeline: Pipeline, tasks: Iterable[ShardTask], on_images: OnImages) -> Iterator[ShardResult]:
        """Makes the shards of the tasks in this process and writes them. Yields the result of each shard.

        While one shard is written, the next ones are in progress. Raises JobStoppedError if none of the files of a
        shard with MIN_IMAGES_FOR_RATE or more rows can be read. Raises JobError if the engine fails on every image of a
        batch of two or more.
        """
        for finished in pipeline.run(map(self._shard_input, tasks), on_images):
            number, shard = finished.number, finished.shard
            if len(shard) >= MIN_IMAGES_FOR_RATE and set(shard.error_codes) == {ERROR_CODES[UnreadableError]}:
                raise JobStoppedError(
                    f"none of the files of shard {number} ({len(shard):,} rows) can be read: check that the input has "
                    "not moved. The finished shards are kept"
                )
            write_shard(self.shard_path(number), shard, self._model_info, self.spec.format, self._metadata)
            yield ShardResult(number, dict(_count_codes(shard)))

    def _tasks(self, missing: Sequence[int], *, retry_failed: bool) -> Iterator[ShardTask]:
        to_make = set(missing)
        with open_regular_file(self.output.job_folder / LISTING_FILE) as listing:
            for number in range(self.spec.shards):
                if number in to_make or (retry_failed and self._error_codes[number]):
                    yield ShardTask(number, listing.tell(), is_retry=number not in to_make)
                for _ in range(self.images_in(number)):
                    listing.readline()

    def _shard_input(self, task: ShardTask) -> ShardInput:
        width, number = len(self.spec.betas), task.number
        with open_regular_file(self.output.job_folder / LISTING_FILE) as listing:
            listing.seek(task.offset)
            lines = [listing.readline() for _ in range(self.images_in(number))]
        images = [InputImage(*json.loads(line)) for line in lines]
        if not task.is_retry:
            shard = Shard(width * len(images), self.spec.top_k)
            return ShardInput(number, shard, [(width * n, image) for n, image in enumerate(images)])
        shard = self._read(number)
        return ShardInput(number, shard, [(row, images[row // width]) for row in self._first_rows(shard.failed_rows)])

    def _first_rows(self, rows: Sequence[int]) -> list[int]:
        """Returns the index of the first row of each image to which one of these rows belongs, ascending."""
        width = len(self.spec.betas)
        return sorted({row - row % width for row in rows})

    def images_in(self, number: int) -> int:
        """Returns the number of images of shard `number`. The last shard may have fewer than the others."""
        return min(self.spec.shard_images, self.spec.images - number * self.spec.shard_images)

    def _beta_range(self) -> tuple[float, float]:
        """Returns the lowest and the highest β of the rows of a job whose input gives β."""
        (default,) = self.spec.betas
        assert default is not None  # a model with one token has no β
        with open_regular_file(self.output.job_folder / LISTING_FILE) as listing:
            given = {InputImage(*json.loads(line)).beta for line in listing}
        betas = [default if beta is None else beta for beta in given]
        return min(betas), max(betas)

    def _read(self, number: int) -> Shard:
        shard = read_shard(self.shard_path(number), self.spec.format, self.spec.top_k)
        if len(shard) != self.images_in(number) * len(self.spec.betas):
            raise OutputError(
                f"{self.shard_path(number)} has {len(shard)} rows, not the number that the job wrote: remove the file"
            )
        return shard

    def _check_rate(self, max_error_rate: float, min_images: int = MIN_IMAGES_FOR_RATE) -> None:
        failed = sum(codes.total() for codes in self._error_codes.values())
        rows = sum(self.images_in(number) for number in self._error_codes) * len(self.spec.betas)
        if rows >= min_images * len(self.spec.betas) and failed > max_error_rate * rows:
            raise JobStoppedError(
                f"{failed:,} of {rows:,} rows are errors, above the error rate of {max_error_rate:g}. The finished "
                "shards are kept: look at error_code, then resume with a larger rate"
            )

    def _finish(self) -> JobSummary:
        spec = self.spec
        codes = sum(self._error_codes.values(), Counter[str]())
        summary = JobSummary(
            fingerprint=spec.fingerprint,
            images=spec.images,
            rows=spec.images * len(spec.betas),
            failed_rows=codes.total(),
            error_codes=dict(sorted(codes.items())),
            shards=spec.shards,
            model=spec.model,
            version=spec.version,
            engine=spec.engine,
            precision=spec.precision,
            betas=spec.betas,
            mix=spec.mix,
            beta_range=self._beta_range() if spec.has_own_betas else None,
            calibrated=spec.temperatures.is_calibrated,
        )
        assert not self.missing_shards()
        _write_json(self.output.path / SUCCESS_FILE, summary)
        return summary


def _write_json(path: Path, content: BaseModel) -> None:
    write_atomically(path, content.model_dump_json(indent=2).encode() + b"\n")


def _count_codes(shard: Shard) -> Counter[str]:
    return Counter(code for code in shard.error_codes if code is not None)
