"""Decides whether a client repeats refused requests too early. `serve.connection.http_connection` delays its refusals.

A refusal costs a tenth of a served request. A client that ignores Retry-After and repeats its request immediately gets
thousands of them, and takes the CPU from the requests of others. A delayed refusal makes it wait instead.
"""

from __future__ import annotations

import math

from serve.limits import ConnectionLimits


class Impatience:
    """The refusals that the client of one connection has received. Times are those of the event loop."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._patient_from_s = -math.inf  # when the client may repeat its request, by the last Retry-After

    def delay_s(self, *, now_s: float, retry_after_s: float, delayed: int) -> float:
        """Returns the seconds by which the refusal of a request is delayed; 0 for a client that has waited.

        now_s: arrival of the request. retry_after_s: of the refusal. delayed: the number of refusals
        that are being delayed on all connections; at max_delayed_refusals, no further one is.
        """
        is_early = now_s < self._patient_from_s
        delay_s = self._limits.refusal_delay_s if is_early and delayed < self._limits.max_delayed_refusals else 0.0
        self._patient_from_s = now_s + delay_s + retry_after_s
        return delay_s
