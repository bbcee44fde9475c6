"""One job in its output directory: what pins it, which shards are done, and the end of it.

    OUTPUT/_job/job.json       the specification, whose hash is the job's fingerprint
    OUTPUT/_job/inputs.jsonl   the listing: a line for each image
    OUTPUT/part-00000.parquet  a shard: there with all its rows, or not there
    OUTPUT/_SUCCESS            counts and fingerprint, written once every shard is there

Whatever ends the process, what is there is whole, and the job goes on with what is not.
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
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serve.errors import InputError, JobStoppedError, OutputError, OutputTakenError, UnreadableError
from serve.jobs.atomic_files import create, reopen, sync, write_whole
from serve.jobs.decoding import CODES
from serve.jobs.image_source import Item, Source
from serve.jobs.pipeline import OnImages, Pipeline, Work
from serve.jobs.rooted_files import OWN, Place
from serve.jobs.shard import Format, Shard, Told, read_shard, write_shard
from tureen.bundle.manifest import Precision
from tureen.preprocess import ImageLimits

SUCCESS = "_SUCCESS"
ID = "id"  # of the server's job, in the job's own directory
JOB, INPUTS, NEW_INPUTS, LOCK = "job.json", "inputs.jsonl", "inputs.jsonl.new", "lock"
LEAST_FOR_RATE = 100  # images before a share of errors says anything


class Spec(BaseModel):
    """What decides the rows of a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    inputs: str  # SHA-256 of the listing
    images: int
    has_own_betas: bool  # the listing has a β for some images
    model: str
    version: str
    engine: str
    precision: Precision
    engine_version: str
    betas: tuple[float | None, ...]
    top_k: int
    format: Format
    shard_images: int
    batch_rows: int
    limits: ImageLimits
    jpeg_scaling: bool

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard_images)


class Summary(BaseModel):
    """What a finished job comes to; the content of _SUCCESS."""

    fingerprint: str
    images: int
    rows: int
    failed_rows: int
    error_codes: dict[str, int]
    shards: int
    model: str
    version: str
    engine: str
    precision: Precision
    betas: tuple[float | None, ...]


@dataclass(frozen=True)
class Part:
    """A shard to be made. offset: in the listing, of its first line. is_again: only the images that failed."""

    number: int
    offset: int
    is_again: bool


@dataclass(frozen=True)
class Made:
    """A shard that is there now, and how many of its rows are errors, by code."""

    number: int
    codes: Mapping[str, int]


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """The output for this process alone; nothing of a job that does not begin stays in it. Raises OutputError."""
    path = place.own / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except FileNotFoundError:  # another process has just removed the folder
        raise OutputTakenError(f"another process is at work in {place.name}") from None
    except OSError as error:
        raise OutputError(f"{place.name} cannot be written to: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(os.fstat(descriptor), os.lstat(path))
        except OSError:
            is_there = False
        if not is_there:  # another process holds the lock, or has just removed it
            raise OutputTakenError(f"another process is at work in {place.name}")
        try:
            yield
        finally:
            _clear(place)
    finally:
        os.close(descriptor)


def _clear(place: Place) -> None:
    """Removes the listing of a job that was not gone on with, and all files of one that has not begun."""
    has_begun = not place.is_new or os.path.lexists(place.own / JOB)
    for name in (NEW_INPUTS,) if has_begun else (NEW_INPUTS, INPUTS, ID, LOCK):
        if os.path.lexists(place.own / name):
            with suppress(OSError):
                (place.own / name).unlink()


def refuse_inside(output: Path, given: str) -> None:
    """Raises OutputError where the output is in the folder that INPUT is: its files would be images."""
    if os.path.isdir(given) and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(given)):
        raise OutputError(f"{output} is inside the input, whose files it would be among: give another directory")


def begun(place: Place) -> Spec | None:
    """The job that an output holds; None where it holds nothing. Raises OutputError where it holds something else."""
    if os.path.lexists(place.own / JOB):
        try:
            with reopen(place.own / JOB) as file:
                return Spec.model_validate_json(file.read())
        except (OSError, ValidationError) as error:
            raise OutputError(f"{place.name} holds a job of another version: give another directory") from error
    if any(entry.name != OWN for entry in place.output.iterdir()):
        raise OutputError(f"{place.name} is not empty, and what it holds is no job: give another directory")
    return None


def list_inputs(source: Source, place: Place, on_images: Callable[[int], None]) -> tuple[str, int, bool]:
    """Writes the listing; its SHA-256, the number of images, and whether some have a β of their own."""
    digest, images, has_own_betas = hashlib.sha256(), 0, False
    with create(place.own / NEW_INPUTS) as listing:
        for item in source.items():
            line = json.dumps([item.id, item.path, item.beta, item.where]).encode() + b"\n"
            digest.update(line)
            listing.write(line)
            images += 1
            has_own_betas |= item.beta is not None
            on_images(images)
        sync(listing)
    for folder in source.linked_folders:
        refuse_inside(Path(place.name), folder)
    if not images:
        raise InputError("the input holds no file")
    return digest.hexdigest(), images, has_own_betas


def begin(place: Place, spec: Spec) -> None:
    """Pins the job: from here on it can only go on as it is."""
    (place.own / NEW_INPUTS).rename(place.own / INPUTS)
    _write_json(place.own / JOB, spec)


def check_same(spec: Spec, now: Spec) -> None:
    """Raises OutputError with what is another than when the job began."""
    before, after = spec.model_dump(), now.model_dump()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        told = "; ".join(f"{name} was {_short(before[name])}, is {_short(after[name])}" for name in changed)
        raise OutputError(f"the job that the output holds is another one: {told}. Give another directory")


class Job:
    """A job that has begun, and is run as far as it goes."""

    def __init__(self, place: Place, spec: Spec, labels: Sequence[str]) -> None:
        self.place, self.spec = place, spec
        self._told = Told(labels, spec.model, spec.version, spec.engine, spec.precision)
        self._metadata = {
            "tureen.fingerprint": spec.fingerprint,
            "tureen.model": spec.model,
            "tureen.version": spec.version,
            "tureen.engine": f"{spec.engine} {spec.precision}",
            "tureen.betas": json.dumps(spec.betas),
        }
        self._codes: dict[int, Counter[str]] = {}  # of the rows of each shard

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.place.output / f"part-{number:05}.{self.spec.format}"

    def missing(self) -> list[int]:
        """The shards that are still to be made."""
        return [number for number in range(self.spec.shards) if not self.path(number).is_file()]

    def run(
        self,
        make: Callable[[Iterator[Part]], Iterator[Made]],
        *,
        retry_failed: bool = False,
        max_error_rate: float = 1.0,
        on_images: OnImages = lambda done, failed: None,
    ) -> Summary:
        """Has what is missing made and says what the job comes to.

        make: makes parts, in any order. retry_failed: classifies anew the images of rows that are errors. on_images:
        told of images done by earlier runs and of those among them that failed. Raises JobError, or OSError where the
        disk fails.
        """
        (self.place.output / SUCCESS).unlink(missing_ok=True)  # until it is true again
        missing = self.missing()
        for number in sorted(set(range(self.spec.shards)) - set(missing)):
            shard = self._read(number)
            self._codes[number] = _codes(shard)
            failed, images = len(self._rows_of_images(shard.failed)), self.images_in(number)
            on_images(images - failed if retry_failed else images, 0 if retry_failed else failed)
        if not retry_failed:
            self._check_rate(max_error_rate)
        for made in make(self._parts(missing, retry_failed=retry_failed)):
            self._codes[made.number] = Counter(made.codes)
            self._check_rate(max_error_rate)
        self._check_rate(max_error_rate, least=1)
        return self._finish()

    def make(self, pipeline: Pipeline, parts: Iterable[Part], on_images: OnImages) -> Iterator[Made]:
        """Makes the shards here, the next under way while one is written."""
        for finished in pipeline.run(map(self._work, parts), on_images):
            if len(finished.shard) >= LEAST_FOR_RATE and set(finished.shard.error_codes) == {CODES[UnreadableError]}:
                raise JobStoppedError(
                    f"no file of shard {finished.number}, {len(finished.shard):,} rows, can be read: is the input "
                    "still where it was? What is done is kept"
                )
            write_shard(self.path(finished.number), finished.shard, self._told, self.spec.format, self._metadata)
            yield Made(finished.number, dict(_codes(finished.shard)))

    def _parts(self, missing: Sequence[int], *, retry_failed: bool) -> Iterator[Part]:
        todo = set(missing)
        with reopen(self.place.own / INPUTS) as listing:
            for number in range(self.spec.shards):
                if number in todo or (retry_failed and self._codes[number]):
                    yield Part(number, listing.tell(), is_again=number not in todo)
                for _ in range(self.images_in(number)):
                    listing.readline()

    def _work(self, part: Part) -> Work:
        width, number = len(self.spec.betas), part.number
        with reopen(self.place.own / INPUTS) as listing:
            listing.seek(part.offset)
            lines = [listing.readline() for _ in range(self.images_in(number))]
        if not part.is_again:
            items = enumerate(map(_item, lines))
            return Work(number, Shard(width * len(lines), self.spec.top_k), ((width * n, one) for n, one in items))
        shard = self._read(number)
        return Work(number, shard, [(row, _item(lines[row // width])) for row in self._rows_of_images(shard.failed)])

    def _rows_of_images(self, rows: Sequence[int]) -> list[int]:
        """The first row of each image that these rows are of."""
        width = len(self.spec.betas)
        return sorted({row - row % width for row in rows})

    def images_in(self, number: int) -> int:
        """How many images a shard is of."""
        return min(self.spec.shard_images, self.spec.images - number * self.spec.shard_images)

    def _read(self, number: int) -> Shard:
        shard = read_shard(self.path(number), self.spec.format, self.spec.top_k)
        if len(shard) != self.images_in(number) * len(self.spec.betas):
            raise OutputError(
                f"{self.path(number)} has {len(shard)} rows, another number than it was made with: remove it"
            )
        return shard

    def _check_rate(self, most: float, least: int = LEAST_FOR_RATE) -> None:
        failed = sum(codes.total() for codes in self._codes.values())
        rows = sum(self.images_in(number) for number in self._codes) * len(self.spec.betas)
        if rows >= least * len(self.spec.betas) and failed > most * rows:
            raise JobStoppedError(
                f"{failed:,} of {rows:,} rows are errors, more than an error rate of {most:g}; what is done is kept: "
                "look at error_code, then go on with a larger rate"
            )

    def _finish(self) -> Summary:
        spec = self.spec
        codes = sum(self._codes.values(), Counter[str]())
        summary = Summary(
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
        )
        assert not self.missing()
        _write_json(self.place.output / SUCCESS, summary)
        return summary


def _write_json(path: Path, content: BaseModel) -> None:
    write_whole(path, lambda file: file.write(content.model_dump_json(indent=2).encode() + b"\n"))


def _codes(shard: Shard) -> Counter[str]:
    return Counter(code for code in shard.error_codes if code is not None)


def _item(line: bytes) -> Item:
    return Item(*json.loads(line))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
