"""Every metric the server exports, in one place. Labels come from closed sets: never a raw β, never a file name."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
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
            "Images classified, by β: clean is 0, robust is 1, mixed lies between; single: the model has one token.",
            ["mode", "beta_source"],
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
        self.in_flight = Gauge("tureen_requests_in_flight", "Permits taken.", registry=self.registry)
        self.queue_images = Gauge("tureen_queue_images", "Images waiting for a batch.", registry=self.registry)
        self.is_ready = Gauge("tureen_ready", "1 once the golden rows were reproduced.", registry=self.registry)
        self.default_beta = Gauge(
            "tureen_default_beta",
            "β of a request that names none; NaN: the model has one token.",
            registry=self.registry,
        )
        self.serving = Info("tureen_serving", "What is served, and on which engine.", registry=self.registry)

    def render(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' text format, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def mode_of(beta: float | None) -> str:
    """The label of a β: "clean", "robust" or "mixed"; "single" where there is none."""
    return {None: "single", 0.0: "clean", 1.0: "robust"}.get(beta, "mixed")
