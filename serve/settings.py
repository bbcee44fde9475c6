"""The server's settings: each one a flag, an environment variable and a line of help, from one definition."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from serve.limits import BodyLimits, ConnectionLimits, is_host_name, is_loopback, is_origin, trusted_hosts
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
    except ModuleNotFoundError:  # of the package it is in
        return False


def _names(value: str | Iterable[str] | None) -> Iterable[str] | None:
    """A list with commas as the names in it."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
    for name in names:
        if name != "*" and not is_host_name(name):
            raise ValueError(f"{name!r} is no name or address without a port; write an IPv6 address as [::1]")
    return names


def _origins(value: str | Iterable[str]) -> Iterable[str]:
    """A list with commas as the origins in it."""
    origins = [origin.strip() for origin in value.split(",")] if isinstance(value, str) else list(value)
    for origin in origins:
        if origin != "*" and not is_origin(origin):
            raise ValueError(f"{origin!r} is not an origin such as https://app.example.com or http://localhost:5173")
    return origins


def _directories(value: str | Iterable[str | Path]) -> list[str]:
    """Directories that there are, as absolute paths."""
    paths = [os.path.abspath(path) for path in (value.split(os.pathsep) if isinstance(value, str) else value)]
    for path in paths:
        if not os.path.isdir(path):
            raise ValueError(f"there is no directory {path}")
    return paths


class Settings(BaseModel):
    """Everything that decides how a server runs; frozen, built at the edge, passed down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path = Field(description="directory that `tureen export` wrote")
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 for any free one")
    grpc_port: int | None = Field(
        default=None, ge=0, le=65535, description="port for gRPC, 0 for any free one; default: no gRPC"
    )
    admin_host: str = Field(
        default="127.0.0.1", description="address that operators reach; loopback alone needs no care"
    )
    admin_port: int | None = Field(
        default=None, ge=0, le=65535, description="port that operators reach, 0 for any free one; default: port + 1"
    )
    store: str | None = Field(
        default=None,
        description="URL of the operator's settings, such as postgresql+psycopg://…; default: a file in state_dir",
    )
    state_dir: Path = Field(
        default_factory=default_state_directory,
        description="keeps the operator's settings and token; default: the user's state",
    )
    public_metrics: bool | None = Field(
        default=None,
        description="answer GET /metrics without a token on the public listener too; default: where the host is a "
        "loopback address",
    )
    job_input_roots: Annotated[tuple[Path, ...], BeforeValidator(_directories)] = Field(
        default=(), description="directories, separated by :, whose files batch jobs may read; default: no jobs"
    )
    job_output_roots: Annotated[tuple[Path, ...], BeforeValidator(_directories)] = Field(
        default=(), description="directories, separated by :, that batch jobs may write below; default: no jobs"
    )
    max_jobs: int = Field(default=1000, ge=1, description="batch jobs that have not ended; one more is answered 429")
    max_job_images: int = Field(default=10_000_000, ge=1, description="a batch job of more images fails")
    job_retention_days: float = Field(
        default=30, gt=0, allow_inf_nan=False, description="after which a job that ended is forgotten, its output kept"
    )
    job_run_ms: float = Field(
        default=5,
        gt=0,
        allow_inf_nan=False,
        description="how long a run of the engine for a job takes, about, while requests come; one image at least",
    )
    job_decode_processes: int = Field(
        default_factory=lambda: max(1, min(4, available_cpus() // 2)),
        ge=1,
        description="processes that decode a job's images, at the lowest priority; default: half the CPUs, at most 4",
    )
    engine: Literal["auto"] | EngineName = Field(
        default="auto", description="what runs the backbone; auto: the fastest that this machine has"
    )
    precision: Precision | None = Field(default=None, description="default: whichever is fastest")
    default_beta: Annotated[float | None, BeforeValidator(_beta_or_none)] = Field(
        default=None,
        description="β of a request that names none; default: the bundle's",
    )
    max_batch: int = Field(default=32, ge=1, le=1024, description="images in one run of the engine, at most")
    max_requests: int = Field(default=256, ge=1, description="requests at a time; one more is answered 429")
    max_waiting_images: int = Field(
        default=8192, ge=1, description="rows that wait for a batch, an image at one β each; one more is answered 429"
    )
    max_queue_ms: int = Field(
        default=1000,
        ge=1,
        description="a request that would be answered later than this, by what was measured, is answered 429 at once",
    )
    timeout_ms: int = Field(
        default=10_000,
        ge=1,
        description="time limit of a request that names none, and the longest it may name; not in a batch by then "
        "it is answered 504",
    )
    max_body_memory: int = Field(
        default=512 * 2**20, ge=1, description="bytes of all bodies being received; beyond it a request is answered 429"
    )
    disagreement_share: float = Field(
        default=0.0, ge=0, le=1, description="share of requests of which the other mode is asked too, as a signal"
    )
    max_image_bytes: int = Field(
        default=ImageLimits().max_image_bytes, ge=1, description="an image of more bytes is answered 413"
    )
    max_image_pixels: int = Field(
        default=ImageLimits().max_image_pixels,
        ge=1,
        le=PILLOW_MAX_PIXELS,
        description="an image of more width × height is answered 413",
    )
    max_request_pixels: int = Field(
        default=128_000_000, ge=1, description="images of more pixels together in one request are answered 413"
    )
    max_decode_pixels: int = Field(
        default=256_000_000,
        ge=1,
        description="pixels of all images that are decoded or wait for it; a request beyond it is answered 429, "
        "unless no other has any; at most half for images of more work than their bytes justify",
    )
    max_decode_memory: int = Field(
        default=2**30,
        ge=1,
        description="bytes that large images being decoded hold, by their headers; others wait, and one at a time "
        "is decoded whatever it holds; one more, of more work than its bytes justify, is decoded beside them",
    )
    max_jpeg_scans: int = Field(
        default=ImageLimits().max_jpeg_scans, ge=1, description="a progressive JPEG of more scans is answered 413"
    )
    max_image_parts: int = Field(
        default=ImageLimits().max_image_parts,
        ge=1,
        description="a JPEG of more segments before its pixels, or a PNG of more chunks, is answered 413",
    )
    jpeg_scaling: bool = Field(
        default=False,
        description="decode a large JPEG at a fraction of its size: a little faster, and other pixels than accuracy "
        "was measured on",
    )
    max_images_per_request: int = Field(default=64, ge=1, le=4096, description="images in one request, at most")
    max_request_bytes: int = Field(
        default=32 * 2**20, ge=1, le=2**31 - 1, description="a form or JSON of more bytes is answered 413"
    )
    max_sweep_betas: int = Field(default=101, ge=2, le=1001, description="β in one sweep, at most")
    max_top_k: int = Field(default=1000, ge=DEFAULT_TOP_K, description="a larger top_k is answered 422")
    allowed_hosts: Annotated[frozenset[str] | None, BeforeValidator(_names)] = Field(
        default=None,
        description="names, separated by commas, that a request's Host may be, without port, or * for any; default: "
        "localhost, 127.0.0.1 and [::1] where the host is one of these, else any",
    )
    cors_origins: Annotated[frozenset[str], BeforeValidator(_origins)] = Field(
        default=frozenset(),
        description="origins, separated by commas, whose pages a browser lets call this server, such as "
        "https://app.example.com, or * for any; default: none",
    )
    max_connections: int = Field(
        default=1024, ge=1, description="connections to a process at a time; one more is answered 503"
    )
    head_timeout_s: float = Field(
        default=10, gt=0, allow_inf_nan=False, description="a request whose head is not here by then is answered 408"
    )
    body_timeout_s: float = Field(
        default=30, gt=0, allow_inf_nan=False, description="a request whose body is not here by then is answered 408"
    )
    min_body_rate: int = Field(
        default=1024, ge=0, description="bytes/s; a body that comes more slowly after 2 s is answered 408"
    )
    send_timeout_s: float = Field(
        default=30, gt=0, allow_inf_nan=False, description="a client that has not taken its answer by then is let go"
    )
    keep_alive_s: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="seconds that a connection without a request stays open; more than the load balancer's own limit, "
        "which is 60 with most",
    )
    drain_delay_s: float = Field(
        default=0,
        ge=0,
        le=3600,
        description="seconds at SIGTERM in which /readyz says 503 and requests are still taken, "
        "for a load balancer that needs as long to hear of it; under Kubernetes 5 to 10",
    )
    drain_timeout_s: int = Field(default=30, ge=1, description="seconds that accepted requests have at SIGTERM")
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="processes, each with its engine, among which threads and max_requests are divided",
    )
    threads: int = Field(default_factory=available_cpus, ge=1, description="CPU threads of the engine; default: all")
    decode_threads: int = Field(
        default_factory=lambda: min(8, available_cpus()),
        ge=1,
        description="small images decoded at a time; half as many large ones, in processes of a lower priority, and "
        "one image of more work than its bytes justify; default: CPUs, at most 8",
    )
    streams: int | None = Field(
        default=None,
        ge=1,
        description="batches run at a time, among which the threads are divided; on a CPU an image that comes alone "
        "has all threads nevertheless, unless it is 1; default: 2 where there are as many threads",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern="^https?://",
        description="where traces are sent, such as http://localhost:4318; default: nowhere",
    )
    cache_dir: Path = Field(
        default_factory=default_cache_directory,
        description="keeps compiled models and this machine's timings; default: the user's cache",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")

    @field_validator("grpc_port")
    @classmethod
    def _has_grpc(cls, grpc_port: int | None) -> int | None:
        if grpc_port is not None and find_spec("grpc_health") is None:
            raise ValueError("gRPC is not installed: leave the option out, or pip install 'tureen[grpc]'")
        return grpc_port

    @field_validator("job_output_roots")
    @classmethod
    def _has_pyarrow(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        if roots and find_spec("pyarrow") is None:
            raise ValueError("jobs need pyarrow: leave the option out, or pip install 'tureen[batch]'")
        return roots

    @field_validator("otlp_endpoint")
    @classmethod
    def _has_opentelemetry(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not _is_installed("opentelemetry.exporter.otlp.proto.http"):
            raise ValueError("OpenTelemetry is not installed: leave the option out, or pip install 'tureen[otel]'")
        return endpoint

    @field_validator("streams")
    @classmethod
    def _has_threads(cls, streams: int | None, info: ValidationInfo) -> int | None:
        threads = info.data.get("threads")
        if streams is not None and threads is not None and streams > threads:
            raise ValueError(f"{streams} streams need as many threads, and there are {threads}: lower it")
        return streams

    @property
    def wire_limits(self) -> ConnectionLimits:
        return ConnectionLimits(
            hosts=trusted_hosts(self.allowed_hosts, self.host),
            cors_origins=self.cors_origins,
            head_timeout_s=self.head_timeout_s,
            body_timeout_s=self.body_timeout_s,
            min_body_rate=self.min_body_rate,
            send_timeout_s=self.send_timeout_s,
            max_connections=self.max_connections,
        )

    @property
    def decode_processes(self) -> int:
        """Of large images. Half as many as threads: with one on every CPU, small images take several times as long."""
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
    """The host and the port of gRPC, as gRPC writes them."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.grpc_port}"


def parse_settings(arguments: list[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from flags, else from TUREEN_… variables, else the defaults; exits with status 2 on a wrong value."""
    parser = argparse.ArgumentParser(
        prog="tureen serve",
        description="Serve a bundle over HTTP. Each option is also a variable: --max-batch is TUREEN_MAX_BATCH.",
        epilog="example: tureen serve digits-bundle --port 8000 --default-beta 0.3",
    )
    fields = Settings.model_fields
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = (
            ""
            if name == "bundle" or default is None or "default:" in (field.description or "")
            else f" (default: {default})"
        )
        text = f"{field.description}{shown}".replace("%", "%%")
        if name == "bundle":
            parser.add_argument(name, nargs="?", metavar="BUNDLE", help=text)
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar=name.upper(), help=text)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    variables = {name: environment[v] for name in fields if (v := f"TUREEN_{name.upper()}") in environment}
    try:
        return Settings.model_validate({**variables, **given})
    except ValidationError as error:
        for wrong in error.errors():
            name = str(wrong["loc"][0])
            flag = "BUNDLE" if name == "bundle" else f"--{name.replace('_', '-')}"
            print(
                f"tureen serve: {flag} (TUREEN_{name.upper()}): {wrong['msg'].removeprefix('Value error, ')}",
                file=sys.stderr,
            )
        parser.exit(2, "tureen serve: see --help\n")
