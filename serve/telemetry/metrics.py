"""Every metric the server exports, in one place. Labels come from closed sets: never a raw β, never a file name.

One process keeps them in memory. Several keep them in files of a shared directory, and any of them answers for all:
counters and histograms are added up; of a gauge, `multiprocess_mode` says what becomes. Neither Info nor
Gauge.set_function can be kept in files, so neither is used. Series of short closed sets exist from the start, or the
first event would be none to a rate: Prometheus sees an increase only from a value that it has seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from tureen.tokens import CLEAN_BETA, ROBUST_BETA

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
STAGES = ("decode", "queue", "inference")

SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus_client looks for the name of the directory
SERVING = ("model", "version", "engine", "engine_version", "precision")


def share_metrics(directory: Path, worker: int) -> None:
    """Keep this process' metrics in files of the directory, under the worker's number; before any Metrics are made.

    The number, not the process' id: the worker that takes a dead one's place goes on with its counters, so that they
    never fall and the files never grow in number.
    """
    os.environ[SHARED_DIRECTORY] = str(directory)
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: worker)  # type: ignore[no-untyped-call]


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self, shared: Path | None = None) -> None:
        """shared: the directory that was given to share_metrics, where several processes make up the server."""
        self._shared = shared
        self._serving_before: tuple[str, ...] | None = None
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tureen_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "tureen_request_seconds", "From a request's head to its answer.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "tureen_stage_seconds", "Time of a classification in each stage: decode, queue, inference.", ["stage"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batch_images = Histogram(
            "tureen_batch_images", "Images in each run of the engine.", buckets=IMAGES, registry=self.registry
        )
        self.classifications = Counter(
            "tureen_classifications",
            "Images classified, by β: 0 is the clean mode, 1 the robust one; single: the model has one token.",
            ["beta", "beta_source"],
            registry=self.registry,
        )
        self.rejections = Counter(
            "tureen_rejections",
            "Requests answered with an error, by the error's code.",
            ["code"],
            registry=self.registry,
        )
        self.dropped = Counter(
            "tureen_dropped", "Requests that left the queue before the engine saw them.", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        self.mode_comparisons = Counter(
            "tureen_mode_comparisons",
            "Answers of which the other mode was asked too: agree, disagree or dropped. A signal, no detector.",
            ["outcome"], registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "tureen_requests_in_flight", "Permits taken.", multiprocess_mode="livesum", registry=self.registry
        )
        self.body_bytes = Gauge(
            "tureen_body_bytes", "Bytes of the bodies being received.", multiprocess_mode="livesum",
            registry=self.registry,
        )  # fmt: skip
        self.queue_images = Gauge(
            "tureen_queue_images", "Images waiting for a batch.", multiprocess_mode="livesum", registry=self.registry
        )
        self.engine_failures = Counter(
            "tureen_engine_failures", "Runs of the engine that failed; the images of each are run again in halves.",
            registry=self.registry,
        )  # fmt: skip
        self.is_ready = Gauge(
            "tureen_ready", "Processes whose engine has reproduced the golden rows.",
            multiprocess_mode="livesum", registry=self.registry,
        )  # fmt: skip
        self.default_beta = Gauge(
            "tureen_default_beta", "β of a request that names none; NaN: the model has one token.",
            multiprocess_mode="livemostrecent", registry=self.registry,
        )  # fmt: skip
        self.revision = Gauge(
            "tureen_settings_revision", "Revision of the operator's settings that every process has reached.",
            multiprocess_mode="livemin", registry=self.registry,
        )  # fmt: skip
        self.control_reachable = Gauge(
            "tureen_control_store_reachable",
            "1 while the store of the operator's settings can be reached; else what was last known is in force.",
            multiprocess_mode="livemin", registry=self.registry,
        )  # fmt: skip
        self.expected_queue = Gauge(
            "tureen_expected_queue_seconds",
            "How long a small image admitted now would take, at the speed of the last seconds; of several processes, "
            "at the slowest.",
            multiprocess_mode="livemax", registry=self.registry,
        )  # fmt: skip
        self.expected_queue_limit = Gauge(
            "tureen_expected_queue_limit_seconds", "--max-queue-ms: whoever would take longer is answered 429.",
            multiprocess_mode="livemax", registry=self.registry,
        )  # fmt: skip
        self._serving = Gauge(
            "tureen_serving_info", "1 for what is served, and on which engine; 0 for what was served before.", SERVING,
            multiprocess_mode="livemax", registry=self.registry,
        )  # fmt: skip
        self.reloads = Counter(
            "tureen_reloads", "Reloads of the bundle, by outcome: ok, or failed where the old one serves on.",
            ["outcome"], registry=self.registry,
        )  # fmt: skip
        self.process_starts = Counter(
            "tureen_process_starts", "Server processes started; each beyond --workers took a dead one's place.",
            registry=self.registry,
        )  # fmt: skip
        self.jobs = Counter(
            "tureen_jobs", "Batch jobs that stopped, by the state they are in then.", ["state"], registry=self.registry
        )
        self.job_rows = Counter("tureen_job_rows", "Rows of batch jobs that the engine ran.", registry=self.registry)
        self._start_series()
        self._stages = [self.stage_seconds.labels(stage) for stage in STAGES]

    def _start_series(self) -> None:
        for metric, labels in (
            (self.stage_seconds, STAGES),
            (self.dropped, ("deadline", "abandoned")),
            (self.mode_comparisons, ("agree", "disagree", "dropped")),
            (self.reloads, ("ok", "failed")),
            (self.jobs, ("succeeded", "partially_succeeded", "failed", "cancelled", "paused")),
        ):
            for label in labels:
                metric.labels(label)

    def observe_stages(self, *seconds: float) -> None:
        """How long a classification spent in each of the STAGES."""
        for stage, spent in zip(self._stages, seconds, strict=True):
            stage.observe(spent)

    def set_serving(self, what: Mapping[str, str]) -> None:
        """Say what is served from now on, by the names in SERVING."""
        values_in_order = tuple(what[name] for name in SERVING)
        if self._serving_before not in (None, values_in_order):
            self._serving.labels(*self._serving_before).set(0)  # files cannot forget a series
        self._serving.labels(*values_in_order).set(1)
        self._serving_before = values_in_order

    def render(self) -> tuple[bytes, str]:
        """The metrics of every process in Prometheus' text format, and its media type."""
        if self._shared is None:
            return generate_latest(self.registry), CONTENT_TYPE_LATEST
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._shared))  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


def beta_bucket(beta: float | None) -> str:
    """The label of a β: both modes, the quarters between them, or "single" where there is none."""
    if beta is None:
        return "single"
    if beta in (CLEAN_BETA, ROBUST_BETA):
        return f"{beta:g}"
    return next(f"below {bound:g}" for bound in (0.25, 0.5, 0.75, 1.0) if beta < bound)
