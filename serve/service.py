"""What is served: the current model, who is admitted to it, and its replacement. Knows nothing about HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from serve.admission import QueueTime, retry_after_s
from serve.control.choice import ANYBODY, Asker, Choice, InForce
from serve.control.state import ControlState
from serve.errors import NotReadyError, OverloadedError
from serve.journey import JOURNEY
from serve.metrics import Metrics, beta_bucket
from serve.model import Answered, Asked, Model, open_soup
from serve.policy import Priority
from serve.settings import Settings
from tureen.bundle import Bundle, load_bundle
from tureen.engines.ranking import explain
from tureen.errors import SingleTokenError, TureenError
from tureen.preprocess import Pixels
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

logger = logging.getLogger("tureen.serve")


class Service:
    """Classifies images, each at its own β, in shared batches. Not ready until `open` is done."""

    def __init__(self, settings: Settings, bundle: Bundle, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._first_bundle = bundle
        self._model: Model | None = None
        self._admitted: dict[Model, set[Admission]] = {}
        self._retired: set[asyncio.Task[None]] = set()
        self._signals: set[asyncio.Task[None]] = set()
        self._queue_time = QueueTime(image_s=0.0)
        self._permits_taken = 0
        self._is_draining = False
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._revision, self._control = 0, ControlState()
        self.in_force = in_force(bundle, settings.default_beta)
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
    def model(self) -> Model:
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

    def follow(self, revision: int, control: ControlState) -> None:
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
        self._decoders.shutdown()

    def refusal(self, images: int = 1, timeout_ms: int | None = None) -> OverloadedError | NotReadyError | None:
        """Why so many more images would not be taken now, as is told before a body is read; None where they would.

        They would not where all permits are taken, or where by what was measured they would wait longer than
        max_queue_ms, or than their own time limit.
        """
        if self._model is None:
            return NotReadyError()
        limit_s = min(self.settings.max_queue_ms, timeout_ms or self.settings.timeout_ms) / 1000
        expected_s = self._queue_time.expected_s(images)
        # Whoever comes to an idle machine is taken, however slow it is.
        if self._permits_taken and (self._permits_taken >= self.settings.max_requests or expected_s > limit_s):
            return OverloadedError(retry_after_s(expected_s, limit_s))
        return None

    @contextmanager
    def admit(
        self, images: int = 1, timeout_ms: int | None = None, arrived_s: float | None = None
    ) -> Iterator[Admission]:
        """A permit for a request of so many images, held until it is answered.

        arrived_s: from when its time limit counts (time.monotonic), now where None. Raises NotReadyError or
        OverloadedError at once.
        """
        if (refusal := self.refusal(images, timeout_ms)) is not None:
            raise refusal
        now = time.monotonic()
        arrived_s = now if arrived_s is None else arrived_s
        admission = Admission(self, self.model, arrived_s, timeout_ms or self.settings.timeout_ms)
        if (journey := JOURNEY.get()) is not None:
            journey.manifest = admission.model.bundle.manifest
        self._permits_taken += 1
        self._queue_time.enter(images, now)
        self._admitted[admission.model].add(admission)
        self._show_load()
        try:
            yield admission
        finally:
            self._permits_taken -= 1
            self._queue_time.leave(images, time.monotonic(), was_run=admission.was_run)
            self._leave(admission)
            if self._permits_taken == 0:
                admission.model.wake()
            self._show_load()

    def compare_modes(self, admission: Admission, answered: Answered, beta: float) -> None:
        """For a share of answers: ask the other mode too, of the pixels at hand, behind everybody who waits.

        How often the modes disagree is a signal that something may be odd with the traffic; it detects nothing.
        """
        if random.random() >= self.settings.disagreement_share:  # noqa: S311 - a sample
            return
        other = ROBUST_BETA if beta < (CLEAN_BETA + ROBUST_BETA) / 2 else CLEAN_BETA
        task = asyncio.create_task(self._compare(admission, answered, other))
        self._signals.add(task)
        task.add_done_callback(self._signals.discard)

    async def _compare(self, admission: Admission, answered: Answered, other: float) -> None:
        with self._held(admission.model) as model:
            try:
                asked = Asked(answered.pixels, (other,))
                deadline_s = time.monotonic() + admission.timeout_ms / 1000
                reply = await model.ask(asked, deadline_s=deadline_s, priority=Priority.BATCH)
            except TureenError:
                self.metrics.mode_comparisons.labels("dropped").inc()
            else:
                agree = answered.logits[0].argmax() == reply.logits[0].argmax()
                self.metrics.mode_comparisons.labels("agree" if agree else "disagree").inc()

    def background(self) -> AbstractContextManager[Model]:
        """The model, not closed before this ends, for work that stands behind every request; raises NotReadyError."""
        return self._held(self.model)

    @contextmanager
    def _held(self, model: Model) -> Iterator[Model]:
        held = Admission(self, model, time.monotonic(), self.settings.timeout_ms)
        self._admitted[model].add(held)
        try:
            yield model
        finally:
            self._leave(held)

    async def _serve(self, bundle: Bundle) -> None:
        started = time.monotonic()
        own = in_force(bundle, self.settings.default_beta)  # refused before the work where it has one token
        soup, image_s = await asyncio.to_thread(open_soup, bundle, self.settings)
        model = Model(soup, self.settings, self.metrics, self._decoders, lambda: self._permits_taken == 0)
        if self._model is None:
            self._queue_time.image_s = image_s
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

    def _show_load(self) -> None:
        self.metrics.in_flight.set(self._permits_taken)
        self.metrics.expected_queue.set(self._queue_time.expected_s())

    def _leave(self, admission: Admission) -> None:
        admitted = self._admitted[admission.model]
        admitted.discard(admission)
        if not admitted and admission.model is not self._model:
            admission.model.is_unused.set()

    async def _retire(self, model: Model) -> None:
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

    def __init__(self, service: Service, model: Model, arrived_s: float, timeout_ms: int) -> None:
        self.model = model
        self.timeout_ms = timeout_ms
        self.deadline_s = arrived_s + timeout_ms / 1000
        self.in_force = service.in_force
        self.was_run = False
        self._service = service

    def choose(self, beta: float | None, asker: Asker = ANYBODY) -> Choice:
        """The β of an image that names this one, or none; raises as `InForce.choose` does."""
        return self.in_force.choose(beta, asker)

    async def answer(
        self, asked: Sequence[Asked], priority: Priority = Priority.ONLINE
    ) -> list[Answered | TureenError]:
        """One for each image. In the place of a bad image is its ImageError; neighbours are unharmed."""
        if len(asked) == 1:
            return [await self._answer(asked[0], priority)]  # without a task of its own
        return list(await asyncio.gather(*(self._answer(one, priority) for one in asked)))

    async def classify(self, image: bytes, choice: Choice) -> Answered:
        """One image at the β chosen for it; raises an ImageError or a ServeError."""
        (answered,) = await self.classify_all([image], [choice])
        if isinstance(answered, TureenError):
            raise answered
        return answered

    async def classify_all(
        self, images: Sequence[bytes | Pixels], choices: Sequence[Choice]
    ) -> list[Answered | TureenError]:
        """Each image at the β chosen for it, as `answer` has it; counted, and for a share the modes are compared."""
        # Of one token every β makes the same.
        betas = [CLEAN_BETA if choice.beta is None else choice.beta for choice in choices]
        asked = [Asked(image, (beta,)) for image, beta in zip(images, betas, strict=True)]
        replies = await self.answer(asked)
        for reply, choice, beta in zip(replies, choices, betas, strict=True):
            if isinstance(reply, TureenError):
                continue
            self._service.metrics.classifications.labels(beta_bucket(choice.beta), choice.source).inc()
            if choice.beta is not None:
                self._service.compare_modes(self, reply, beta)
        return replies

    async def _answer(self, asked: Asked, priority: Priority) -> Answered | TureenError:
        try:
            answered = await self.model.ask(asked, deadline_s=self.deadline_s, priority=priority)
        except TureenError as error:
            return error
        self.was_run = True
        if (journey := JOURNEY.get()) is not None:
            journey.images.append((asked.betas, answered))
        self._service.metrics.observe_stages(answered.decode_s, answered.queue_s, answered.inference_s)
        return answered


def in_force(bundle: Bundle, setting: float | None) -> InForce:
    """What decides on β before an operator has decided anything; raises SingleTokenError."""
    if not bundle.manifest.has_two_tokens:
        if setting is not None:
            raise SingleTokenError("--default-beta")
        return InForce(None, "bundle")
    return InForce(bundle.manifest.default_beta, "bundle") if setting is None else InForce(setting, "operator")
