"""An admitted request: chooses the β or mix of its images, and classifies them with the model that it was admitted to.

Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from serve.control.beta_choice import ANONYMOUS, BetaChoice, ClientIdentity
from serve.errors import TokenParkedError
from serve.inference.loaded_model import InferenceRequest, InferenceResult
from serve.telemetry.metrics import MIX_BUCKET, beta_bucket
from tureen.errors import SingleTokenError, TureenError, UnknownTokenError
from tureen.image_cost import ImageCost
from tureen.preprocess import Pixels
from tureen.tokens import CLEAN_BETA, GivenChoice, Mix, Strength, TokenChoice, token_mix

if TYPE_CHECKING:
    from serve.inference.service import Service


class Admission:
    """An admitted request, with the model, the settings and the deadline that it has until its end.

    Later changes of the settings and reloads of the bundle do not affect it.
    """

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
        self.active_settings = service.active_settings
        self._tokens = self.model.soup.tokens
        self._parked_tokens = self.model.parked_tokens
        self._service = service
        self._images, self._costs, self._rows = images, costs, rows
        self._undecoded = set(range(len(images)))

    def choose(self, given: GivenChoice | None, identity: ClientIdentity = ANONYMOUS) -> BetaChoice:
        """Returns the β or the mix of an image and its source.

        given: what the request gives: a β, a strength, a mix or a token, or None. Raises SingleTokenError for a
        strength if the model has one token, UnknownTokenError if a token of the given mix does not exist,
        TokenParkedError if the model cannot use a token that an operator added, and the errors of
        `ActiveSettings.choose`.
        """
        if isinstance(given, TokenChoice):
            if given.share is not None and not self.model.bundle.manifest.has_two_tokens:
                raise SingleTokenError
            given = token_mix(given.name, CLEAN_BETA if given.share is None else self.beta_of(given.share))
        if given is not None and not isinstance(given, Mix):
            given = self.beta_of(given)
        choice = self.active_settings.choose(given, identity)
        names = set() if choice.mix is None else {name for name, _ in choice.mix.weights}
        if isinstance(given, Mix):
            self._check_names(given)
        # A parked token is not that of the same name in the bundle or in the directory of tokens.
        if not names <= self._tokens.keys() or not names.isdisjoint(self._parked_tokens):
            raise TokenParkedError
        return choice

    def _check_names(self, given: Mix) -> None:
        """Raises UnknownTokenError if a token of the given mix does not exist, or belongs to other clients."""
        private = self.active_settings.state.private_tokens
        for name, _ in given.weights:
            if name in private or not (name in self._tokens or name in self._parked_tokens):
                raise UnknownTokenError(name, (self._tokens.keys() | self._parked_tokens.keys()) - private)

    def beta_of(self, value: float | Strength) -> float:
        """Returns a β unchanged. Converts a strength to a β with the curve of the model that this request uses.

        A strength that a response shows for a bound of the operator becomes that bound. Raises SingleTokenError for a
        strength if the model has one token.
        """
        state = self.active_settings.state
        return self.model.bundle.manifest.beta_of(value, state.beta_min, state.beta_max)

    async def classify(self, choices: Sequence[BetaChoice]) -> list[InferenceResult | TureenError]:
        """Classifies each image of the request as chosen. Returns a result or an error for each image, in order.

        choices: one for each image. An error of one image does not affect the others. Counts each result by β in the
        metrics. If the model has two tokens, calls `Service.compare_modes` with each result that is not of a mix.
        """
        # A model with one token has no β, and any value gives the same token.
        betas = [CLEAN_BETA if choice.beta is None else choice.beta for choice in choices]
        tokens = [None if choice.mix is None else choice.mix.vector(self._tokens) for choice in choices]
        runs = [
            self.model.infer(
                InferenceRequest(self._images[index], (beta,), self._costs[index], token),
                deadline_s=self.deadline_s,
                on_decoded=partial(self._end_decoding, index),
            )
            for index, (beta, token) in enumerate(zip(betas, tokens, strict=True))
        ]
        # A single run needs no task.
        results = await asyncio.gather(*runs) if len(runs) > 1 else [await run for run in runs]
        for result, choice, beta in zip(results, choices, betas, strict=True):
            if isinstance(result, TureenError):
                continue
            bucket = MIX_BUCKET if choice.mix is not None else beta_bucket(choice.beta)
            self._service.metrics.count_classification(bucket, choice.source)
            for name, _ in () if choice.mix is None else choice.mix.weights:
                self._service.metrics.count_token(name)
            if choice.beta is not None and choice.mix is None:
                self._service.compare_modes(self, result, beta)
        return results

    async def sweep(self, betas: Sequence[float]) -> InferenceResult:
        """Classifies the single image of the request at every β, and returns the result.

        Raises the error that `LoadedModel.infer` returns if decoding or a run fails.
        """
        (image,), (cost,) = self._images, self._costs
        request = InferenceRequest(image, tuple(betas), cost)
        result = await self.model.infer(request, deadline_s=self.deadline_s, on_decoded=self.end_decoding)
        if isinstance(result, TureenError):
            raise result
        return result

    def end_decoding(self) -> None:
        """Removes the request's undecoded images from the count of images that wait for a decoder."""
        for index in list(self._undecoded):
            self._end_decoding(index)

    def _end_decoding(self, index: int) -> None:
        self._undecoded.remove(index)
        self._service.end_decoding(self._costs[index], self._rows)
