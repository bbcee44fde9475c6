"""What is served: the current model, who is admitted to it, and its replacement. Knows nothing about HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from serve.control.beta_choice import ANYBODY, ActiveSettings, BetaChoice, ClientIdentity
from serve.control.settings_state import SettingsState
from serve.errors import NotReadyError, OverloadedError, TooManyPixelsError
from serve.inference.batch_policy import Priority
from serve.inference.image_decoders import Decoders
from serve.inference.loaded_model import InferenceRequest, InferenceResult, LoadedModel, open_soup
from serve.inference.queue_time import QueueTime, StartSpeed, retry_after_s
from serve.settings import Settings
from serve.telemetry.metrics import Metrics, beta_bucket
from serve.telemetry.request_trace import REQUEST_TRACE
from tureen.bundle.bundle import Bundle, load_bundle
from tureen.bundle.manifest import BACKBONE, Manifest
from tureen.engines.timings_cache import explain
from tureen.errors import SingleTokenError, TureenError
from tureen.image_cost import LEAST, NOTHING, ImageCost, ImageKind, image_cost
from tureen.preprocess import Pixels
from tureen.soup import Soup
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

logger = logging.getLogger("tureen.serve")


class Service:
    """Classifies images, each at its own β, in shared batches. Not ready until `open` is done."""

    def __init__(self, settings: Settings, bundle: Bundle, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._first_bundle = bundle
        self._model: LoadedModel | None = None
        self._admitted: dict[LoadedModel, set[object]] = {}
        self._retired: set[asyncio.Task[None]] = set()
        self._signals: set[asyncio.Task[None]] = set()
        self._queue_time = QueueTime(
            StartSpeed(0.0, {1: 0.0}),
            decoders={
                ImageKind.SMALL: settings.decode_threads,
                ImageKind.LARGE: settings.decode_processes,
                ImageKind.DISPROPORTIONATE: 1,
            },
        )
        self._permits_taken = 0
        self._is_draining = False
        self._decoders = Decoders(
            settings.decode_threads,
            settings.decode_processes,
            max_memory=settings.max_decode_memory,
            on_decoded=lambda cost, seconds: self._queue_time.decoded(cost, seconds, time.monotonic()),
        )
        self._revision, self._control = 0, SettingsState()
        self.in_force = active_settings(bundle.manifest, settings.default_beta)
        self._show_in_force()
        metrics.is_ready.set(0)
        metrics.expected_queue_limit.set(settings.max_queue_ms / 1000)

    @property
    def is_ready(self) -> bool:
        """Whether an engine has reproduced the golden rows here, and requests shall come."""
        return self._model is not None and not self._is_draining

    @property
    def bundle(self) -> Bundle:
        """What is served, or will be."""
        return self._first_bundle if self._model is None else self._model.bundle

    @property
    def model(self) -> LoadedModel:
        """What is served; raises NotReadyError."""
        if self._model is None:
            raise NotReadyError
        return self._model

    async def open(self) -> None:
        """Compile, prove and warm the engine on a thread, then take requests; raises EngineError."""
        await self._serve(self._first_bundle)
        self.metrics.is_ready.set(1)

    async def reload(self) -> None:
        """Serve the bundle that lies there now, without refusing or failing a request.

        It is loaded, proven and warm before the next request gets it; who was admitted before is answered by the one
        before, which is closed after the last. Raises BundleError or EngineError, and then nothing has changed.
        """
        before = self.model
        await self._serve(await asyncio.to_thread(load_bundle, self.settings.bundle))
        retired = asyncio.create_task(self._retire(before))
        self._retired.add(retired)
        retired.add_done_callback(self._retired.discard)

    def follow(self, revision: int, control: SettingsState) -> None:
        """Have these settings in force for whoever is admitted from now on; an older revision changes nothing."""
        if revision < self._revision:
            return
        self._revision, self._control = revision, control
        self.in_force = replace(self.in_force, revision=revision, state=control)
        self._show_in_force()

    def drain(self) -> None:
        """Be no longer ready; requests are answered all the same."""
        self._is_draining = True
        self.metrics.is_ready.set(0)

    async def close(self) -> None:
        """Answer what was accepted, then free engines and threads."""
        await asyncio.gather(*self._signals, *self._retired, return_exceptions=True)
        if self._model is not None:
            await self._model.close()
        await self._decoders.close()

    def refusal(
        self, costs: Sequence[ImageCost] = (LEAST,), rows: int = 1, timeout_ms: int | None = None
    ) -> TureenError | None:
        """Why a request of these images and rows would not be taken now; None where it would.

        It would not where its images have more pixels than a request may; where all permits are taken; where all
        images to be decoded have too many pixels; or where by measurement it would wait longer than max_queue_ms, or
        than its own time limit. An idle machine takes every request within its pixels. Before a body is read, the
        request is taken for one small image.
        """
        if self._model is None:
            return NotReadyError()
        settings, pixels = self.settings, sum(cost.pixels for cost in costs)
        if pixels > settings.max_request_pixels:
            return TooManyPixelsError(settings.max_request_pixels)
        if not self._permits_taken:
            return None
        limit_s = min(settings.max_queue_ms, timeout_ms or settings.timeout_ms) / 1000
        expected_s = self._queue_time.expected_s(costs, rows)
        if (
            self._permits_taken >= settings.max_requests
            or expected_s > limit_s
            or not self._queue_time.has_room(costs, settings.max_decode_pixels)
        ):
            return OverloadedError(retry_after_s(expected_s, limit_s))
        return None

    @contextmanager
    def admit(
        self,
        images: Sequence[bytes | Pixels] = (),
        rows: int = 1,
        timeout_ms: int | None = None,
        arrived_s: float | None = None,
    ) -> Iterator[Admission]:
        """A permit for a request of these images, held until it is answered.

        rows: of the engine for each image. arrived_s: from when its time limit counts
        (time.monotonic), now where None. Raises NotReadyError, TooManyPixelsError or OverloadedError at once.
        """
        costs = [self._cost(image) for image in images]
        if (refusal := self.refusal(costs, rows * len(images), timeout_ms)) is not None:
            raise refusal
        arrived_s = time.monotonic() if arrived_s is None else arrived_s
        admission = Admission(self, images, costs, rows, arrived_s=arrived_s, timeout_ms=timeout_ms)
        if (trace := REQUEST_TRACE.get()) is not None:
            trace.manifest = admission.model.bundle.manifest
        self._permits_taken += 1
        for cost in costs:
            self._queue_time.enter(cost, rows)
        self._admitted[admission.model].add(admission)
        self._show_load()
        try:
            yield admission
        finally:
            self._permits_taken -= 1
            admission.leave_decoders()
            self._queue_time.leave(rows * len(costs))
            self._leave(admission.model, admission)
            if self._permits_taken == 0:
                admission.model.wake()
            self._show_load()

    def left_decoder(self, cost: ImageCost, rows: int) -> None:
        """An admitted image of this cost is decoded, or will not be."""
        self._queue_time.left_decoder(cost, rows)

    def compare_modes(self, admission: Admission, answered: InferenceResult, beta: float) -> None:
        """For a share of answers: ask the other mode too, of the pixels at hand, behind everybody who waits.

        How often the modes disagree is a signal that something may be odd with the traffic; it detects nothing.
        """
        if random.random() >= self.settings.disagreement_share:  # noqa: S311 - a sample
            return
        other = ROBUST_BETA if beta < (CLEAN_BETA + ROBUST_BETA) / 2 else CLEAN_BETA
        task = asyncio.create_task(self._compare(admission, answered, other))
        self._signals.add(task)
        task.add_done_callback(self._signals.discard)

    async def _compare(self, admission: Admission, answered: InferenceResult, other: float) -> None:
        with self._held(admission.model) as model:
            try:
                asked = InferenceRequest(answered.pixels, (other,))
                deadline_s = time.monotonic() + admission.timeout_ms / 1000
                reply = await model.ask(asked, deadline_s=deadline_s, priority=Priority.BATCH)
            except TureenError:
                self.metrics.mode_comparisons.labels("dropped").inc()
            else:
                agree = answered.logits[0].argmax() == reply.logits[0].argmax()
                self.metrics.mode_comparisons.labels("agree" if agree else "disagree").inc()

    def background(self) -> AbstractContextManager[LoadedModel]:
        """The model, not closed before this ends, for work that stands behind every request; raises NotReadyError."""
        return self._held(self.model)

    @contextmanager
    def _held(self, model: LoadedModel) -> Iterator[LoadedModel]:
        held = object()
        self._admitted[model].add(held)
        try:
            yield model
        finally:
            self._leave(model, held)

    async def _serve(self, bundle: Bundle) -> None:
        started = time.monotonic()
        own = active_settings(
            bundle.manifest, self.settings.default_beta
        )  # refused before the work where it has one token
        soup, start = await asyncio.to_thread(open_soup, bundle, self.settings)
        model = LoadedModel(
            soup,
            self.settings,
            self.metrics,
            self._decoders,
            is_idle=lambda: self._permits_taken == 0,
            on_run=lambda rows, seconds: self._on_run(model, rows, seconds),
        )
        if self._model is not None and _speed_key(self._model.soup) == _speed_key(soup):
            start = start.least(self._queue_time.start)  # a reload under load measures a slower machine than there is
        self._queue_time.restart(start)
        self._show_load()
        self._admitted[model] = set()
        self._model = model
        self.in_force = replace(own, revision=self._revision, state=self._control)
        self._show_in_force()
        manifest, engine = bundle.manifest, soup.engine
        self.metrics.serves(
            {
                "model": manifest.name,
                "version": manifest.version,
                "engine": engine.name,
                "engine_version": engine.version,
                "precision": engine.precision,
            }
        )
        why = explain(bundle, self.settings.engine_options)
        known = f"; {why}" if why else ""
        logger.info(
            "ready: %s %s on %s %s, golden rows reproduced, after %.1f s%s",
            manifest.name, manifest.version, engine.name, engine.precision, time.monotonic() - started, known,
        )  # fmt: skip

    def _cost(self, image: bytes | Pixels) -> ImageCost:
        if not isinstance(image, bytes):
            return NOTHING
        limits = self.settings.limits
        return image_cost(image, max_pixels=limits.max_image_pixels, max_scans=limits.max_jpeg_scans)

    def _on_run(self, model: LoadedModel, rows: int, seconds: float) -> None:
        if model is self._model:  # one that was replaced says nothing of the one after it
            self._queue_time.run(rows, seconds, time.monotonic())

    def _show_load(self) -> None:
        self.metrics.in_flight.set(self._permits_taken)
        self.metrics.expected_queue.set(self._queue_time.expected_s())

    def _leave(self, model: LoadedModel, hold: object) -> None:
        admitted = self._admitted[model]
        admitted.discard(hold)
        if not admitted and model is not self._model:
            model.is_unused.set()

    async def _retire(self, model: LoadedModel) -> None:
        if self._admitted[model]:
            await model.is_unused.wait()
        del self._admitted[model]
        await model.close()
        logger.info("closed: %s %s", model.bundle.manifest.name, model.bundle.manifest.version)

    def _show_in_force(self) -> None:
        default = self.in_force.default
        self.metrics.default_beta.set(math.nan if default.beta is None else default.beta)
        self.metrics.revision.set(default.revision)


class Admission:
    """A request that was taken, with all that is fixed by then, whatever an operator or a reload does meanwhile."""

    def __init__(
        self,
        service: Service,
        images: Sequence[bytes | Pixels],
        costs: Sequence[ImageCost],
        rows: int,
        *,
        arrived_s: float,
        timeout_ms: int | None,
    ) -> None:
        self.model = service.model
        self.timeout_ms = timeout_ms or service.settings.timeout_ms
        self.deadline_s = arrived_s + self.timeout_ms / 1000
        self.in_force = service.in_force
        self._service = service
        self._images, self._costs, self._rows = images, costs, rows
        self._undecoded = set(range(len(images)))

    def choose(self, beta: float | None, asker: ClientIdentity = ANYBODY) -> BetaChoice:
        """The β of an image that names this one, or none; raises as `ActiveSettings.choose` does."""
        return self.in_force.choose(beta, asker)

    async def answer(self, betas: Sequence[tuple[float, ...]]) -> list[InferenceResult | TureenError]:
        """Each image at all of its β. In the place of a bad image is its ImageError; neighbours are unharmed."""
        if len(betas) == 1:
            return [await self._answer(0, betas[0])]  # without a task of its own
        return list(await asyncio.gather(*(self._answer(index, its) for index, its in enumerate(betas))))

    async def classify(self, choice: BetaChoice) -> InferenceResult:
        """The only image at the β chosen for it; raises an ImageError or a ServeError."""
        (answered,) = await self.classify_all([choice])
        if isinstance(answered, TureenError):
            raise answered
        return answered

    async def classify_all(self, choices: Sequence[BetaChoice]) -> list[InferenceResult | TureenError]:
        """Each image at the β chosen for it, as `answer` has it; counted, and for a share the modes are compared."""
        # Of one token every β makes the same.
        betas = [CLEAN_BETA if choice.beta is None else choice.beta for choice in choices]
        replies = await self.answer([(beta,) for beta in betas])
        for reply, choice, beta in zip(replies, choices, betas, strict=True):
            if isinstance(reply, TureenError):
                continue
            self._service.metrics.classifications.labels(beta_bucket(choice.beta), choice.source).inc()
            if choice.beta is not None:
                self._service.compare_modes(self, reply, beta)
        return replies

    def leave_decoders(self) -> None:
        """Count none of its images as waiting for a decoder any more."""
        for index in list(self._undecoded):
            self._leave_decoder(index)

    def _leave_decoder(self, index: int) -> None:
        self._undecoded.remove(index)
        self._service.left_decoder(self._costs[index], self._rows)

    async def _answer(self, index: int, betas: tuple[float, ...]) -> InferenceResult | TureenError:
        asked = InferenceRequest(self._images[index], betas, self._costs[index])
        try:
            answered = await self.model.ask(
                asked, deadline_s=self.deadline_s, on_decoded=lambda: self._leave_decoder(index)
            )
        except TureenError as error:
            return error
        if (trace := REQUEST_TRACE.get()) is not None:
            trace.images.append((betas, answered))
        self._service.metrics.observe_stages(answered.decode_s, answered.queue_s, answered.inference_s)
        return answered


def _speed_key(soup: Soup) -> tuple[object, ...]:
    """Equal where an image takes the same work, as with other weights of the same model."""
    manifest, engine = soup.bundle.manifest, soup.engine
    return engine.name, engine.precision, manifest.preprocess, manifest.files[BACKBONE].size


def active_settings(manifest: Manifest, setting: float | None) -> ActiveSettings:
    """What decides on β before an operator has decided anything; raises SingleTokenError."""
    if not manifest.has_two_tokens:
        if setting is not None:
            raise SingleTokenError("--default-beta")
        return ActiveSettings(None, "bundle")
    return ActiveSettings(manifest.default_beta, "bundle") if setting is None else ActiveSettings(setting, "operator")
