"""Declares every Prometheus metric of the server. Label values come from closed sets: never a raw β or a file name.

A server with one process keeps its metrics in memory. Several processes keep them in files of a shared directory, so
each process can export the metrics of all. The export sums counters and histograms, and combines the values of a gauge
by its `multiprocess_mode`. Info and Gauge.set_function do not work with files, so they are not used.

If a metric has a small set of label values, all its series exist from the start. Prometheus computes an increase from
an earlier value. So it would miss the first event of a series that begins with this event.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serve.telemetry.pending_updates import PendingUpdates
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
STAGES = ("decode", "queue", "inference")

TOKEN_SERIES = 20  # tokens that have a separate series in each process
TOKEN_SERIES_FROM = 100  # images at a token before it gets a series, so that rare tokens take none
OTHER_TOKENS = "other"

SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # the variable in which prometheus_client expects the directory
SERVING = ("model", "version", "engine", "engine_version", "precision")


def share_metrics(directory: Path, worker: int) -> None:
    """Makes this process keep its metrics in files of the directory. Must be called before Metrics().

    This is the multiprocess mode of prometheus_client. The names of the files contain the worker number, not the
    process id. So a restarted worker continues the counters, which never decrease, and the number of files is constant.
    """
    os.environ[SHARED_DIRECTORY] = str(directory)
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: worker)  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one server. They are in a separate registry of prometheus_client, not in the default registry."""

    def __init__(self, shared: Path | None = None) -> None:
        """shared: the directory that `share_metrics` received; None if the server has one process."""
        self._shared = shared
        self._serving_before: tuple[str, ...] | None = None
        self.registry = CollectorRegistry()
        self.pending = PendingUpdates(self.registry)  # first
        self.requests = Counter(
            "tureen_requests", "Completed requests.", ["route", "method", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "tureen_request_seconds", "Seconds from the head of a request to the end of its response.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "tureen_stage_seconds", "Seconds of an image in each stage: decode, queue, inference.", ["stage"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batch_images = Histogram(
            "tureen_batch_images", "Images in each engine run.", buckets=IMAGES, registry=self.registry
        )
        self.classifications = Counter(
            "tureen_classifications",
            "Classified images by β: 0 is the clean mode, 1 the robust mode, single a model with one token.",
            ["beta", "beta_source"],
            registry=self.registry,
        )
        self.token_classifications = Counter(
            "tureen_token_classifications",
            "Classified images by token of a mix, for 20 tokens in use; other: the rest.",
            ["token"],
            registry=self.registry,
        )
        self._images_of_token: dict[str, int] = {}
        self._tokens_with_series: set[str] = set()
        self.operator_tokens = Gauge(
            "tureen_operator_tokens",
            "Tokens that operators added: used, or parked because the model of a process cannot use them.",
            ["state"],
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self.rejections = Counter(
            "tureen_rejections",
            "Requests that ended with an error, by error code.",
            ["code"],
            registry=self.registry,
        )
        self.dropped = Counter(
            "tureen_dropped", "Rows that left the queue without a run: deadline or abandoned.", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        self.mode_comparisons = Counter(
            "tureen_mode_comparisons",
            "Images that also ran in the other mode, by outcome: agree, disagree or dropped. A signal, not a detector.",
            ["outcome"], registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "tureen_requests_in_flight",
            "Admitted requests in progress.",
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self.body_bytes = Gauge(
            "tureen_body_bytes", "Bytes of all bodies being received.", multiprocess_mode="livesum",
            registry=self.registry,
        )  # fmt: skip
        self.queue_images = Gauge(
            "tureen_queue_images", "Images that wait for a batch.", multiprocess_mode="livesum", registry=self.registry
        )
        self.engine_failures = Counter(
            "tureen_engine_failures", "Failed engine runs. Each half of a failed batch runs again.",
            registry=self.registry,
        )  # fmt: skip
        self.is_ready = Gauge(
            "tureen_ready", "Processes whose engine has reproduced the golden rows.",
            multiprocess_mode="livesum", registry=self.registry,
        )  # fmt: skip
        self.default_beta = Gauge(
            "tureen_default_beta", "β of a request without one; NaN if the model has one token.",
            multiprocess_mode="livemostrecent", registry=self.registry,
        )  # fmt: skip
        self.revision = Gauge(
            "tureen_settings_revision", "Revision of the operator's settings that every process has applied.",
            multiprocess_mode="livemin", registry=self.registry,
        )  # fmt: skip
        self.control_reachable = Gauge(
            "tureen_control_store_reachable",
            "1 while the settings store can be reached; 0 while the last known settings apply.",
            multiprocess_mode="livemin", registry=self.registry,
        )  # fmt: skip
        self.expected_queue = Gauge(
            "tureen_expected_queue_seconds",
            "Expected seconds to classify a small image admitted now, in the slowest process, at the recent speed.",
            multiprocess_mode="livemax", registry=self.registry,
        )  # fmt: skip
        self.expected_queue_limit = Gauge(
            "tureen_expected_queue_limit_seconds",
            "Limit on the expected seconds of a request, from --max-queue-ms. A request beyond it gets 429.",
            multiprocess_mode="livemax", registry=self.registry,
        )  # fmt: skip
        self._serving = Gauge(
            "tureen_serving_info", "1 for the current model and engine; 0 for previous ones.", SERVING,
            multiprocess_mode="livemax", registry=self.registry,
        )  # fmt: skip
        self.reloads = Counter(
            "tureen_reloads", "Reloads of the bundle, by outcome: ok, or failed (the previous bundle stays).",
            ["outcome"], registry=self.registry,
        )  # fmt: skip
        self.process_starts = Counter(
            "tureen_process_starts", "Started server processes; each one beyond --workers replaced a dead process.",
            registry=self.registry,
        )  # fmt: skip
        self.jobs = Counter(
            "tureen_jobs", "Stopped batch jobs, by the state that they entered.", ["state"], registry=self.registry
        )
        self.job_rows = Counter("tureen_job_rows", "Rows of batch jobs that the engine ran.", registry=self.registry)
        self._start_series()
        self._request_series: dict[tuple[str, str, str], Counter] = {}
        self._seconds_series: dict[str, Histogram] = {}
        self._classification_series: dict[tuple[str, str], Counter] = {}
        self._stages = [self.stage_seconds.labels(stage) for stage in STAGES]

    def _start_series(self) -> None:
        for metric, labels in (
            (self.stage_seconds, STAGES),
            (self.token_classifications, (OTHER_TOKENS,)),
            (self.operator_tokens, ("used", "parked")),
            (self.rejections, ("overloaded", "client_gone")),  # the codes that the dashboard and the alerts name
            (self.dropped, ("deadline", "abandoned")),
            (self.mode_comparisons, ("agree", "disagree", "dropped")),
            (self.reloads, ("ok", "failed")),
            (self.jobs, ("succeeded", "partially_succeeded", "failed", "cancelled", "paused")),
        ):
            for label in labels:
                metric.labels(label)

    def count_request(self, route: str, method: str, status: str, seconds: float) -> None:
        """Counts a completed request. seconds: its duration."""
        series = self._request_series.get((route, method, status))
        if series is None:
            series = self._request_series[route, method, status] = self.requests.labels(route, method, status)
            self._seconds_series[route] = self.request_seconds.labels(route)
        self.pending.count(series)
        self.pending.observe(self._seconds_series[route], seconds)

    def count_rejection(self, code: str) -> None:
        """Counts a request that ended with an error. code: of the error."""
        self.pending.count(self.rejections.labels(code))

    def count_classification(self, beta: str, source: str) -> None:
        """Counts a classified image. beta: a result of `beta_bucket`, or MIX_BUCKET. source: of the β."""
        series = self._classification_series.get((beta, source))
        if series is None:
            series = self._classification_series[beta, source] = self.classifications.labels(beta, source)
        self.pending.count(series)

    def count_token(self, name: str) -> None:
        """Counts an image that was classified at a mix with this token.

        A token gets a separate series at its TOKEN_SERIES_FROM-th image, while fewer than TOKEN_SERIES tokens have
        one. All other images are in the series `other`.
        """
        if name not in self._tokens_with_series:
            count = self._images_of_token[name] = self._images_of_token.get(name, 0) + 1
            if count < TOKEN_SERIES_FROM or len(self._tokens_with_series) >= TOKEN_SERIES:
                name = OTHER_TOKENS
            else:
                self._tokens_with_series.add(name)
        self.token_classifications.labels(name).inc()

    def observe_stages(self, *seconds: float) -> None:
        """Records how long one image was in each stage: decode, queue, inference. seconds: in the order of STAGES."""
        for stage, spent in zip(self._stages, seconds, strict=True):
            self.pending.observe(stage, spent)

    def set_serving(self, labels: Mapping[str, str]) -> None:
        """Sets `tureen_serving_info` to the current model and engine. labels: a value for each name in SERVING."""
        values_in_order = tuple(labels[name] for name in SERVING)
        if self._serving_before not in (None, values_in_order):
            self._serving.labels(*self._serving_before).set(0)  # a series in files cannot be removed
        self._serving.labels(*values_in_order).set(1)
        self._serving_before = values_in_order

    def render(self) -> tuple[bytes, str]:
        """Returns the metrics of every process in the text format of Prometheus, and its media type."""
        self.pending.apply()
        if self._shared is None:
            return generate_latest(self.registry), CONTENT_TYPE_LATEST
        registry = CollectorRegistry()
        registry.register(_FilesCollector(self._shared))
        return generate_latest(registry), CONTENT_TYPE_LATEST


class _FilesCollector(Collector):
    """Reads the metrics of all processes from the shared directory. Skips an empty file.

    The process of an empty file has not written a metric yet.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        files = [str(file) for file in self._directory.glob("*.db") if file.stat().st_size]
        merged: Iterable[Metric] = MultiProcessCollector.merge(files, accumulate=True)  # type: ignore[no-untyped-call]
        return merged


MIX_BUCKET = "mix"  # in place of a bucket of β, for a mix of named tokens


def beta_bucket(beta: float | None) -> str:
    """Returns the label value of a β for metrics: "0", "1", or the quarter that contains β, such as "below 0.25".

    Returns "single" for None, which means that the model has one token.
    """
    if beta is None:
        return "single"
    if beta in (CLEAN_BETA, ROBUST_BETA):
        return f"{beta:g}"
    return next(f"below {bound:g}" for bound in (0.25, 0.5, 0.75, 1.0) if beta < bound)
