"""Admits requests, classifies their images with the current model, and replaces that model on a reload.

A request is admitted if it receives a permit; otherwise it is refused. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from serve.control.beta_choice import ActiveSettings
from serve.control.settings_state import SettingsState
from serve.control.state_directory import TOKEN_DIRECTORY
from serve.control.token_cache import TokenCache
from serve.errors import NotReadyError
from serve.inference.admission import Permits
from serve.inference.admitted_request import Admission
from serve.inference.batch_policy import Priority
from serve.inference.image_decoders import Decoders
from serve.inference.loaded_model import InferenceRequest, InferenceResult, LoadedModel, open_soup
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from serve.telemetry.request_trace import REQUEST_TRACE
from tureen.bundle.bundle import Bundle, load_bundle
from tureen.bundle.manifest import BACKBONE, Manifest
from tureen.engines.timings_cache import explain_choice
from tureen.errors import EngineError, SingleTokenError, TokenFileError, TureenError
from tureen.image_cost import LEAST_COST, NO_COST, ImageCost, image_cost
from tureen.preprocess import Pixels
from tureen.remote.locate import locate_bundle
from tureen.soup import Soup
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

logger = logging.getLogger("tureen.serve")


class Service:
    """Classifies the images of all requests in shared batches, each image at its own β. `open` makes it ready."""

    def __init__(self, settings: Settings, bundle: Bundle, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._first_bundle = bundle
        self._model: LoadedModel | None = None
        self._holds: dict[LoadedModel, set[object]] = {}  # the admissions and the background work that use each model
        self._retirements: set[asyncio.Task[None]] = set()
        self._comparisons: set[asyncio.Task[None]] = set()
        self._permits = Permits(settings, metrics)
        self._is_draining = False
        self._may_report_ready = True
        self._decoders = Decoders(
            settings.decode_threads,
            settings.decode_processes,
            max_memory=settings.max_decode_memory,
            on_decoded=self._permits.record_decoding,
        )
        self._revision, self._state = 0, SettingsState()
        self._token_cache = TokenCache(settings.state_dir / TOKEN_DIRECTORY)
        self._loading_tokens = asyncio.Lock()
        self._tokens_in_force: dict[str, str] | None = {}  # SHA-256 by name; in use or parked; None: to be retried
        self._revision_of_tokens = 0
        self.active_settings = initial_settings(bundle.manifest, settings.default_beta)
        self._export_settings()
        metrics.is_ready.set(0)

    @property
    def is_ready(self) -> bool:
        """Whether probes get the answer that the service is ready.

        True if `open` has loaded a model, whose engine reproduced the golden rows, and neither `drain` nor
        `withhold_ready` was called. `report_ready` undoes the latter.
        """
        return self._model is not None and self._may_report_ready and not self._is_draining

    @property
    def bundle(self) -> Bundle:
        """The bundle of the current model. Before a model is loaded, the bundle that `open` will load."""
        return self._first_bundle if self._model is None else self._model.bundle

    @property
    def model(self) -> LoadedModel:
        """The current model. Raises NotReadyError before `open` has loaded one."""
        if self._model is None:
            raise NotReadyError
        return self._model

    async def open(self) -> None:
        """Loads the first bundle on a thread and becomes ready. Raises the errors of `open_soup`."""
        await self._load(self._first_bundle)
        self.metrics.is_ready.set(self.is_ready)

    def withhold_ready(self) -> None:
        """Makes the service report that it is not ready until `report_ready` is called. It still admits requests."""
        self._may_report_ready = False

    def report_ready(self) -> None:
        """Makes the service report that it is ready, if it has loaded a model and does not drain."""
        self._may_report_ready = True
        self.metrics.is_ready.set(self.is_ready)

    async def reload(self, bundle: Path | None = None) -> None:
        """Replaces the current model with a bundle. No request is refused or fails because of the reload.

        bundle: directory of the bundle; None: that of the settings. An address in the settings is resolved again.

        The engine of the new model must reproduce the golden rows, and is warmed up, before the model becomes current.
        Requests that were admitted earlier get their results from the previous model. It is closed after the last of
        these requests.
        Raises BundleError if the bundle is damaged, SingleTokenError if --default-beta is set and the model has one
        token, and the errors of `open_soup`. After an error the previous model stays current.
        """
        previous = self.model
        await self._load(await asyncio.to_thread(self._read_bundle, bundle))
        retirement = asyncio.create_task(self._retire(previous))
        self._retirements.add(retirement)
        retirement.add_done_callback(self._retirements.discard)

    def apply_settings(self, revision: int, state: SettingsState) -> None:
        """Applies the operator's settings to the requests that are admitted later.

        Policies and API keys that need tokens that the model does not have apply when `load_tokens` has loaded them.
        Does nothing if the revision number is below that of the settings in force.
        """
        if revision < self._revision:
            return
        self._revision, self._state = revision, state
        if self.parked_tokens:
            self._tokens_in_force = None  # their files may have arrived
        if self._model is not None and state.tokens.items() - (self._tokens_in_force or {}).items():
            known = self.active_settings.state
            unchanged = {"policies": known.policies, "api_keys": known.api_keys, "tokens": known.tokens}
            state = state.model_copy(update=unchanged)
        self._activate(state)

    def _activate(self, state: SettingsState) -> None:
        self.active_settings = replace(self.active_settings, revision=self._revision, state=state)
        self._export_settings()

    @property
    def applied_revision(self) -> int:
        """The revision of the operator's settings in force whose tokens are in use or parked too."""
        has_tokens = self._model is None or self._state.tokens == self._tokens_in_force
        return self._revision if has_tokens else self._revision_of_tokens

    @property
    def parked_tokens(self) -> Mapping[str, str]:
        """The operators' tokens that the current model cannot use, with the reason of each, by name."""
        return {} if self._model is None else self._model.parked_tokens

    @property
    def own_tokens(self) -> list[str]:
        """The names of the current model's tokens that no operator added, sorted. Empty before a model is loaded."""
        return [] if self._model is None else self._model.own_tokens

    async def load_tokens(self) -> None:
        """Makes the current model use the tokens of the settings in force. Must be called after `apply_settings`.

        A token that the model cannot use is parked: a request for it fails, `parked_tokens` has the reason, and an
        error is logged. Does nothing if the tokens did not change, or before a model is loaded.
        """
        if self.applied_revision == self._revision:
            return
        async with self._loading_tokens:
            if self._model is not None:
                await self._load_tokens(self._model)
                if self._state.tokens == self._tokens_in_force:  # if not, another call loads the newer ones
                    self._activate(self._state)

    async def check_token(self, sha256: str) -> None:
        """Checks that the current model can use a token: `Soup.check_token` on a thread. sha256: of its file.

        Raises TokenFileError if the model cannot use it, and NotReadyError before a model is loaded.
        """
        with self.hold_model() as model:
            token = await asyncio.to_thread(self._token_cache.read, sha256)
            try:
                replaceable = self._state.tokens.keys() - model.parked_tokens.keys()
                await asyncio.to_thread(model.soup.check_token, token, replaceable)
            except EngineError as error:
                raise TokenFileError(str(error)) from error

    async def _load_tokens(self, model: LoadedModel) -> None:
        revision, tokens, parked_before = self._revision, self._state.tokens, model.parked_tokens
        await asyncio.to_thread(model.load_tokens, tokens, self._token_cache)
        self._tokens_in_force, self._revision_of_tokens = tokens, revision
        for name, reason in sorted(model.parked_tokens.items() - parked_before.items()):
            logger.error("the token %s cannot be used: %s", name, reason)
        self.metrics.operator_tokens.labels("used").set(len(tokens) - len(model.parked_tokens))
        self.metrics.operator_tokens.labels("parked").set(len(model.parked_tokens))

    def drain(self) -> None:
        """Makes the service report that it is not ready. It still admits requests."""
        self._is_draining = True
        self.metrics.is_ready.set(0)

    async def close(self) -> None:
        """Completes the accepted requests, then frees engines and threads. Applies the last updates of the metrics."""
        await asyncio.gather(*self._comparisons, *self._retirements, return_exceptions=True)
        if self._model is not None:
            await self._model.close()
        await self._decoders.close()
        self.metrics.pending.apply()  # no timer runs after the event loop

    def refusal(
        self, costs: Sequence[ImageCost] = (LEAST_COST,), rows: int = 1, timeout_ms: int | None = None
    ) -> TureenError | None:
        """Returns NotReadyError until a model is loaded, then the result of `Permits.refusal`.

        It is None if a request can be admitted now. `Permits.refusal` documents the arguments.
        """
        return NotReadyError() if self._model is None else self._permits.refusal(costs, rows, timeout_ms)

    @contextmanager
    def admit(
        self,
        images: Sequence[bytes | Pixels] = (),
        rows: int = 1,
        timeout_ms: int | None = None,
        arrived_s: float | None = None,
    ) -> Iterator[Admission]:
        """Admits a request with these images, and holds its permit until the `with` block ends.

        images: encoded bytes, or pixels uint8 (H, W, 3) of the model's size. rows: engine rows per image. timeout_ms:
        of the request; None: that of the settings. arrived_s: start of the timeout (time.monotonic), by default now.
        Raises the error that `refusal` returns if the request cannot be admitted.
        """
        costs = [self._cost(image) for image in images]
        if (refusal := self.refusal(costs, rows * len(images), timeout_ms)) is not None:
            raise refusal
        arrived_s = time.monotonic() if arrived_s is None else arrived_s
        admission = Admission(self, images, costs, rows, arrived_s=arrived_s, timeout_ms=timeout_ms)
        if (trace := REQUEST_TRACE.get()) is not None:
            trace.manifest = admission.model.bundle.manifest
        self._holds[admission.model].add(admission)
        try:
            with self._permits.hold(costs, rows):
                try:
                    yield admission
                finally:
                    admission.end_decoding()
        finally:
            self._release(admission.model, admission)
            if self._permits.taken == 0:
                admission.model.notify_idle()

    def end_decoding(self, cost: ImageCost, rows: int) -> None:
        """Stops counting an admitted image as waiting for a decoder.

        Must be called when its decoding has ended, or when it is certain that it will not start. rows: engine rows of
        the image.
        """
        self._permits.queue_time.end_decoding(cost, rows)

    def compare_modes(self, admission: Admission, result: InferenceResult, beta: float) -> None:
        """Runs a random sample of the classified images in the other mode too, and counts how often the labels differ.

        result: of one image at `beta`. The other mode is the robust mode for a β below 0.5, else the clean mode. The
        image runs as a background row, without another decoding. A rate of different labels that changes is a signal of
        unusual traffic. It does not detect an attack.
        """
        if random.random() >= self.settings.disagreement_share:  # noqa: S311 - a sample
            return
        other = ROBUST_BETA if beta < (CLEAN_BETA + ROBUST_BETA) / 2 else CLEAN_BETA
        task = asyncio.create_task(self._compare(admission, result, other))
        self._comparisons.add(task)
        task.add_done_callback(self._comparisons.discard)

    async def _compare(self, admission: Admission, result: InferenceResult, other: float) -> None:
        with self._hold(admission.model) as model:
            request = InferenceRequest(result.pixels, (other,))
            deadline_s = time.monotonic() + admission.timeout_ms / 1000
            compared = await model.infer(request, deadline_s=deadline_s, priority=Priority.BACKGROUND)
        if isinstance(compared, TureenError):
            outcome = "dropped"
        else:
            outcome = "agree" if result.logits[0].argmax() == compared.logits[0].argmax() else "disagree"
        self.metrics.mode_comparisons.labels(outcome).inc()

    def hold_model(self) -> AbstractContextManager[LoadedModel]:
        """Yields the current model, and keeps it open until the `with` block ends, for background work.

        Raises NotReadyError if no model is loaded.
        """
        return self._hold(self.model)

    @contextmanager
    def _hold(self, model: LoadedModel) -> Iterator[LoadedModel]:
        hold = object()
        self._holds[model].add(hold)
        try:
            yield model
        finally:
            self._release(model, hold)

    def _read_bundle(self, bundle: Path | None) -> Bundle:
        settings = self.settings
        return load_bundle(bundle or locate_bundle(settings.bundle, must_exist=False, cache=settings.cache_dir))

    async def _load(self, bundle: Bundle) -> None:
        started = time.monotonic()
        # First, because it may raise SingleTokenError.
        new_settings = initial_settings(bundle.manifest, self.settings.default_beta)
        soup, start = await asyncio.to_thread(open_soup, bundle, self.settings)
        model = LoadedModel(
            soup,
            self.settings,
            self.metrics,
            self._decoders,
            is_idle=lambda: self._permits.taken == 0,
            on_run=lambda rows, seconds: self._on_run(model, rows, seconds),
        )
        if self._model is not None and _speed_key(self._model.soup) == _speed_key(soup):
            start = start.minimum(
                self._permits.queue_time.start
            )  # under load, a reload measures times that are too long
        async with self._loading_tokens:
            await self._load_tokens(model)
            while self._state.tokens != self._tokens_in_force:  # they changed while the model loaded them
                await self._load_tokens(model)
            self._permits.restart(start)
            self._holds[model] = set()
            self._model = model
        self.active_settings = replace(new_settings, revision=self._revision, state=self._state)
        self._export_settings()
        manifest, engine = bundle.manifest, soup.engine
        self.metrics.set_serving(
            {
                "model": manifest.name,
                "version": manifest.version,
                "engine": engine.name,
                "engine_version": engine.version,
                "precision": engine.precision,
            }
        )
        reason = explain_choice(bundle, self.settings.engine_options)
        suffix = f"; {reason}" if reason else ""
        logger.info(
            "ready: %s %s on %s %s, golden rows reproduced, after %.1f s%s",
            manifest.name, manifest.version, engine.name, engine.precision, time.monotonic() - started, suffix,
        )  # fmt: skip

    def _cost(self, image: bytes | Pixels) -> ImageCost:
        if not isinstance(image, bytes):
            return NO_COST
        limits = self.settings.limits
        return image_cost(image, max_pixels=limits.max_image_pixels, max_scans=limits.max_jpeg_scans)

    def _on_run(self, model: LoadedModel, rows: int, seconds: float) -> None:
        if model is self._model:  # the speed of a replaced model does not predict that of its successor
            self._permits.queue_time.record_run(rows, seconds, time.monotonic())

    def _release(self, model: LoadedModel, hold: object) -> None:
        holds = self._holds[model]
        holds.discard(hold)
        if not holds and model is not self._model:
            model.is_unused.set()

    async def _retire(self, model: LoadedModel) -> None:
        if self._holds[model]:
            await model.is_unused.wait()
        del self._holds[model]
        await model.close()
        logger.info("closed: %s %s", model.bundle.manifest.name, model.bundle.manifest.version)

    def _export_settings(self) -> None:
        default = self.active_settings.default
        self.metrics.default_beta.set(math.nan if default.beta is None else default.beta)
        self.metrics.revision.set(default.revision)


def _speed_key(soup: Soup) -> tuple[object, ...]:
    """Returns a key that is equal for two bundles of the same speed, such as one model with other weights."""
    manifest, engine = soup.bundle.manifest, soup.engine
    return engine.name, engine.precision, manifest.preprocess, manifest.files[BACKBONE].size


def initial_settings(manifest: Manifest, default_beta: float | None) -> ActiveSettings:
    """Returns the settings that are in force before any change by an operator.

    default_beta: value of the option --default-beta; None if it is not given. Raises SingleTokenError if it is given
    and the model has one token.
    """
    if not manifest.has_two_tokens:
        if default_beta is not None:
            raise SingleTokenError("--default-beta")
        return ActiveSettings(None, "bundle")
    if default_beta is None:
        return ActiveSettings(manifest.default_beta, "bundle")
    return ActiveSettings(default_beta, "operator")
