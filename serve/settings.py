"""Defines the settings of the server. Each is a flag, an environment variable and a key of a file.

`serve.settings_sources` reads these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from serve.limits import BodyLimits, ConnectionLimits, is_host_name, is_loopback, is_origin, trusted_hosts
from tureen.bundle.examples import BUNDLE_HELP
from tureen.bundle.manifest import EngineName, Precision
from tureen.engines.base import EngineOptions
from tureen.machine import available_cpus, default_cache_directory, default_state_directory
from tureen.preprocess import PILLOW_MAX_PIXELS, ImageLimits
from tureen.soup import DEFAULT_TOP_K
from tureen.tokens import parse_beta


def _beta_or_none(value: str | float | None) -> float | None:
    return None if value is None else parse_beta(value)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def _parts(value: object, separator: str) -> list[str | Path]:
    """Returns the parts of an option with several values. Raises ValueError for a value of another type.

    value: from a flag or variable, a text with a separator between the parts; from a file or Python code, the parts.
    """
    if isinstance(value, str):
        return [part.strip() if separator == "," else part for part in value.split(separator)]
    given = value if isinstance(value, list | tuple | set | frozenset) else [value]
    parts = [part for part in given if isinstance(part, str | Path)]
    if len(parts) < len(given):
        raise ValueError("give a text, or an array of texts")
    return parts


def _names(value: str | Iterable[str] | None) -> frozenset[str] | None:
    """Returns the host names of an option, as `_parts` does. Returns the default, None, unchanged.

    Raises ValueError if one is neither `*` nor a host name.
    """
    if value is None:
        return None
    names = frozenset(map(str, _parts(value, ",")))
    for name in sorted(names):
        if name != "*" and not is_host_name(name):
            raise ValueError(f"{name!r} is not a host name or address without a port; write an IPv6 address as [::1]")
    return names


def _origins(value: str | Iterable[str]) -> frozenset[str]:
    """Returns the origins of an option, as `_parts` does. Raises ValueError if one is neither `*` nor an origin."""
    origins = frozenset(map(str, _parts(value, ",")))
    for origin in sorted(origins):
        if origin != "*" and not is_origin(origin):
            raise ValueError(f"{origin!r} is not an origin such as https://app.example.com or http://localhost:5173")
    return origins


def _directories(value: str | Iterable[str | Path]) -> tuple[str, ...]:
    """Returns the directories in a list, as absolute paths. In a text, os.pathsep separates the directories.

    Raises ValueError if a directory does not exist.
    """
    paths = tuple(os.path.abspath(path) for path in _parts(value, os.pathsep))
    for path in paths:
        if not os.path.isdir(path):
            raise ValueError(f"the directory {path} does not exist")
    return paths


class Settings(BaseModel):
    """The settings of one server. They are immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path = Field(description=BUNDLE_HELP)
    host: str = Field(default="127.0.0.1", description="address of the public listener; 0.0.0.0: all addresses")
    port: int = Field(default=8000, ge=0, le=65535, description="port of the public listener; 0: any free port")
    grpc_port: int | None = Field(
        default=None, ge=0, le=65535, description="port of gRPC; 0: any free port; default: no gRPC"
    )
    admin_host: str = Field(
        default="127.0.0.1",
        description="address of the operators' listener; an address beyond loopback needs a credential",
    )
    admin_port: int | None = Field(
        default=None, ge=0, le=65535, description="port of the operators' listener; 0: any free port; default: port + 1"
    )
    store: str | None = Field(
        default=None,
        description="database URL of the operator's settings, such as postgresql+psycopg://…; default: a file in "
        "state_dir",
    )
    state_dir: Path = Field(
        default_factory=default_state_directory,
        description="directory of the operator's settings and token; default: the state directory of the user",
    )
    token_dir: Path | None = Field(
        default=None,
        description="directory whose token files, NAME.token, are added to the tokens of the bundle; read again on a "
        "reload; default: none",
    )
    max_tokens: int = Field(
        default=2000,
        ge=1,
        description="maximum of token files in token_dir, and of tokens that operators add; with more files, the "
        "server does not start",
    )
    public_metrics: bool | None = Field(
        default=None,
        description="serve GET /metrics on the public listener without a token; default: only if host is a loopback "
        "address",
    )
    job_input_roots: Annotated[tuple[Path, ...], BeforeValidator(_directories)] = Field(
        default=(), description="directories, separated by :, that batch jobs may read; default: no jobs"
    )
    job_output_roots: Annotated[tuple[Path, ...], BeforeValidator(_directories)] = Field(
        default=(), description="directories, separated by :, that batch jobs may write to; default: no jobs"
    )
    max_jobs: int = Field(
        default=1000, ge=1, description="maximum of batch jobs that have not ended; a further one gets 429"
    )
    max_job_images: int = Field(
        default=10_000_000, ge=1, description="maximum of images in a batch job; a larger job fails"
    )
    job_retention_days: float = Field(
        default=30,
        gt=0,
        allow_inf_nan=False,
        description="days after which the record of an ended job is deleted; its output stays",
    )
    job_shares_engine: bool = Field(
        default=False,
        description="run jobs on the engine of the server, as on a GPU; saves the memory of a second engine, but a job "
        "takes less of the time that requests leave",
    )
    job_run_ms: float = Field(
        default=5,
        gt=0,
        allow_inf_nan=False,
        description="target duration of an engine run for a job that shares the engine while requests arrive; a run "
        "has at least one image",
    )
    job_decode_processes: int = Field(
        default_factory=lambda: max(1, min(4, available_cpus() // 2)),
        ge=1,
        description="processes that decode images of a job that shares the engine, at the lowest priority; default: "
        "half the CPUs, at most 4",
    )
    engine: Literal["auto"] | EngineName = Field(
        default="auto", description="runtime of the backbone; auto: the fastest on this machine"
    )
    precision: Precision | None = Field(default=None, description="precision of the backbone; default: the fastest")
    default_beta: Annotated[float | None, BeforeValidator(_beta_or_none)] = Field(
        default=None,
        description="β of a request without one; default: the default β of the bundle",
    )
    calibration: bool = Field(
        default=True,
        description="divide the logits by the temperature of their β, if the bundle has temperatures; false: "
        "probabilities are the softmax of the logits",
    )
    max_batch: int = Field(
        default=32, ge=1, le=1024, description="maximum of rows in one engine run: one for each image and β"
    )
    max_requests: int = Field(default=256, ge=1, description="maximum of concurrent requests; a further one gets 429")
    max_waiting_images: int = Field(
        default=8192,
        ge=1,
        description="maximum of rows that wait for a batch (an image at one β); a further one gets 429",
    )
    max_queue_ms: int | None = Field(
        default=None,
        ge=1,
        description="maximum of the expected time of a request; a slower one gets 429 immediately; default: 1000, or "
        "the time of 3 × max_batch images if it is longer on this machine",
    )
    timeout_ms: int = Field(
        default=10_000,
        ge=1,
        description="deadline of a request, and the maximum of its timeout_ms parameter; an image that is not in a "
        "batch by then gets 504",
    )
    max_body_memory: int = Field(
        default=512 * 2**20,
        ge=1,
        description="maximum of bytes in all bodies being received; a request beyond it gets 429",
    )
    disagreement_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of images that also run in the other mode, to count how often the modes disagree",
    )
    max_image_bytes: int = Field(
        default=ImageLimits().max_image_bytes, ge=1, description="maximum of bytes in an image; a larger one gets 413"
    )
    max_image_pixels: int = Field(
        default=ImageLimits().max_image_pixels,
        ge=1,
        le=PILLOW_MAX_PIXELS,
        description="maximum of width × height of an image; a larger one gets 413",
    )
    max_request_pixels: int = Field(
        default=128_000_000, ge=1, description="maximum of pixels in all images of a request; a larger request gets 413"
    )
    max_decode_pixels: int = Field(
        default=256_000_000,
        ge=1,
        description="maximum of pixels in all images that are decoded or wait for decoding; a request beyond it gets "
        "429, unless no other image waits; images of disproportionate work for their bytes may use half of it",
    )
    max_decode_memory: int = Field(
        default=2**30,
        ge=1,
        description="maximum of bytes that large images need while they are decoded, estimated from their headers; "
        "further images wait; a single image is decoded whatever its size; one image of disproportionate work is not "
        "counted",
    )
    max_jpeg_scans: int = Field(
        default=ImageLimits().max_jpeg_scans,
        ge=1,
        description="maximum of scans in a progressive JPEG; one with more gets 413",
    )
    max_image_parts: int = Field(
        default=ImageLimits().max_image_parts,
        ge=1,
        description="maximum of segments before the pixels of a JPEG, or of chunks in a PNG; an image with more "
        "gets 413",
    )
    max_images_per_request: int = Field(default=64, ge=1, le=4096, description="maximum of images in a request")
    max_request_bytes: int = Field(
        default=32 * 2**20,
        ge=1,
        le=2**31 - 1,
        description="maximum of bytes in a form or JSON body; a larger one gets 413",
    )
    max_sweep_betas: int = Field(default=101, ge=2, le=1001, description="maximum of β in a sweep")
    max_top_k: int = Field(default=1000, ge=DEFAULT_TOP_K, description="maximum of top_k; a larger one gets 422")
    allowed_hosts: Annotated[frozenset[str] | None, BeforeValidator(_names)] = Field(
        default=None,
        description="allowed names in the Host header, separated by commas, without ports; *: any; default: "
        "localhost, 127.0.0.1 and [::1] if host is a loopback address, else any",
    )
    cors_origins: Annotated[frozenset[str], BeforeValidator(_origins)] = Field(
        default=frozenset(),
        description="origins whose pages may call this server from a browser, separated by commas, such as "
        "https://app.example.com; *: any; default: none",
    )
    max_connections: int = Field(
        default=1024, ge=1, description="maximum of connections to a process; a further one gets 503"
    )
    head_timeout_s: float = Field(
        default=10, gt=0, allow_inf_nan=False, description="seconds for the head of a request; a slower one gets 408"
    )
    body_timeout_s: float = Field(
        default=30, gt=0, allow_inf_nan=False, description="seconds for the body of a request; a slower one gets 408"
    )
    min_body_rate: int = Field(
        default=1024, ge=0, description="minimum rate of a body in bytes/s, after its first 2 s; a slower one gets 408"
    )
    send_timeout_s: float = Field(
        default=30,
        gt=0,
        allow_inf_nan=False,
        description="seconds for a client to read its response; then its connection is closed",
    )
    keep_alive_s: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="seconds that an idle connection stays open; must exceed the idle timeout of the load balancer, "
        "often 60",
    )
    refusal_delay_ms: int = Field(
        default=200,
        ge=0,
        le=1000,
        description="delay of the refusal (429, 503) to a connection that repeats its request before Retry-After; 0: "
        "none",
    )
    max_delayed_refusals: int = Field(
        default=256,
        ge=0,
        description="maximum of refusals that a process delays at a time; a further one is sent immediately",
    )
    drain_delay_s: float = Field(
        default=0,
        ge=0,
        le=3600,
        description="seconds after SIGTERM in which /readyz responds 503 and requests are still accepted, so that "
        "the load balancer can react; under Kubernetes 5 to 10",
    )
    drain_timeout_s: int = Field(default=30, ge=1, description="seconds for accepted requests to end after SIGTERM")
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="processes, each with its own engine; they divide threads and max_requests",
    )
    threads: int = Field(
        default_factory=available_cpus, ge=1, description="CPU threads of the engine; default: one per CPU"
    )
    decode_threads: int = Field(
        default_factory=lambda: min(8, available_cpus()),
        ge=1,
        description="threads that decode small images; half as many processes of lower priority decode large "
        "images, and one decodes images of disproportionate work; default: one per CPU, at most 8",
    )
    streams: int | None = Field(
        default=None,
        ge=1,
        description="concurrent engine runs, which divide the threads; on a CPU with more than one stream, a single "
        "image gets all threads; default: 2, or 1 with a single thread",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern="^https?://",
        description="OpenTelemetry endpoint for traces, such as http://localhost:4318; default: no traces",
    )
    cache_dir: Path = Field(
        default_factory=default_cache_directory,
        description="directory of compiled models and of timings of this machine; default: the cache directory of "
        "the user",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level that is logged"
    )

    @field_validator("grpc_port")
    @classmethod
    def _has_grpc(cls, grpc_port: int | None) -> int | None:
        if grpc_port is not None and find_spec("grpc_health") is None:
            raise ValueError("gRPC is not installed: remove the option, or pip install 'tureen[grpc]'")
        return grpc_port

    @field_validator("job_output_roots")
    @classmethod
    def _has_pyarrow(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        if roots and find_spec("pyarrow") is None:
            raise ValueError("jobs need pyarrow: remove the option, or pip install 'tureen[batch]'")
        return roots

    @field_validator("otlp_endpoint")
    @classmethod
    def _has_opentelemetry(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not _is_installed("opentelemetry.exporter.otlp.proto.http"):
            raise ValueError("OpenTelemetry is not installed: remove the option, or pip install 'tureen[otel]'")
        return endpoint

    @field_validator("streams")
    @classmethod
    def _has_threads(cls, streams: int | None, info: ValidationInfo) -> int | None:
        threads = info.data.get("threads")
        if streams is not None and threads is not None and streams > threads:
            raise ValueError(f"{streams} streams need {streams} threads, and there are {threads}: give fewer streams")
        return streams

    @property
    def connection_limits(self) -> ConnectionLimits:
        return ConnectionLimits(
            hosts=trusted_hosts(self.allowed_hosts, self.host),
            cors_origins=self.cors_origins,
            head_timeout_s=self.head_timeout_s,
            body_timeout_s=self.body_timeout_s,
            min_body_rate=self.min_body_rate,
            send_timeout_s=self.send_timeout_s,
            max_connections=self.max_connections,
            refusal_delay_s=self.refusal_delay_ms / 1000,
            max_delayed_refusals=self.max_delayed_refusals,
        )

    @property
    def decode_processes(self) -> int:
        """The number of processes that decode large images: half of decode_threads, but at least 1.

        With a process on every CPU, small images would be several times slower.
        """
        return max(1, self.decode_threads // 2)

    @property
    def takes_jobs(self) -> bool:
        return bool(self.job_input_roots and self.job_output_roots)

    @property
    def has_public_metrics(self) -> bool:
        return is_loopback(self.host) if self.public_metrics is None else self.public_metrics

    @property
    def body_limits(self) -> BodyLimits:
        return BodyLimits(self.max_image_bytes, self.max_request_bytes, self.max_images_per_request)

    @property
    def engine_options(self) -> EngineOptions:
        streams = self.streams or min(2, self.threads)
        return EngineOptions(threads=self.threads, streams=streams, max_batch=self.max_batch, cache=self.cache_dir)

    @property
    def limits(self) -> ImageLimits:
        return ImageLimits(
            max_image_bytes=self.max_image_bytes,
            max_image_pixels=self.max_image_pixels,
            max_jpeg_scans=self.max_jpeg_scans,
            max_image_parts=self.max_image_parts,
        )


def grpc_address(settings: Settings) -> str:
    """Returns the address of the gRPC listener as HOST:PORT, with an IPv6 address in brackets."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.grpc_port}"
