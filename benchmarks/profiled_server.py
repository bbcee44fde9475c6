"""Runs `tureen serve` with a timer around each stage of a request. `profile_request` starts it.

    python benchmarks/profiled_server.py TIMES.json BUNDLE --port 9000

Writes the CPU time of each stage to TIMES.json at each SIGUSR1. Runs as a file, not as a module, so that it can
also run the server of another source tree (PYTHONPATH). A timer measures the CPU time of its thread, without that of
the timers inside it. So the times of all stages add up.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import signal
import sys
import threading
import time
import types
from collections import defaultdict
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

# The functions of each stage, as MODULE:NAME. A function that a source tree does not have is ignored.
STAGES = {
    "parse": ("serve.connection.http_connection:HttpConnection.data_received",),
    "middleware, routing": ("serve.http.request_log:RequestLogMiddleware.__call__",),
    "query": (
        "serve.api.query:QueryCache.parse",
        "serve.api.classify:client_identity_of",
    ),
    "body": ("serve.api.classify:receive_body", "serve.api.classify:parse_images"),
    "admission": (
        "serve.inference.service:Service.admit",
        "serve.inference.service:Service.refusal",
        "serve.inference.admitted_request:Admission.choose",
    ),
    "watch for a disconnect": (
        "serve.api.classify:cancel_on_disconnect",
        "serve.http.body_stream:_wait_for_disconnect",
    ),
    "decode": ("serve.inference.decode_process:DecodeOptions.pixels",),
    "decode hand-over": (
        "serve.inference.image_decoders:Decoders.decode",
        "serve.inference.image_decoders:_Threads._end",
        "serve.inference.image_decoders:_decode_all",
    ),
    "mix": ("tureen.soup:token_rows",),
    "batch hand-over": (
        "serve.inference.admitted_request:Admission.classify",
        "serve.inference.batcher:Batcher._run_queue",
        "serve.inference.batcher:Batcher._run_batch",
        "serve.inference.batcher:Batcher._end_run",
        "serve.inference.loaded_model:LoadedModel._run",
    ),
    "engine": (
        "tureen.engines.paired:PairedEngine.run",
        "tureen.engines.openvino_cpu:OpenVinoEngine.run",
        "tureen.engines.onnxruntime_cpu:OrtEngine.run",
    ),
    "softmax": ("serve.inference.loaded_model:row_outputs",),
    "JSON": (
        "serve.api.classify:served_model_fields",
        "serve.api.classify:image_result",
        "serve.api.classify:to_json",
        "serve.api.classify:_response",
    ),
    "send": ("uvicorn.protocols.http.httptools_impl:RequestResponseCycle.send",),
    "metrics": (
        "serve.http.request_log:record",
        "serve.telemetry.metrics:Metrics.observe_stages",
        "serve.inference.admission:Permits.export",
        "serve.telemetry.pending_updates:PendingUpdates.apply",
    ),
    "log": ("serve.http.request_log:log_event", "serve.telemetry.logs:BatchedHandler.flush"),
    "trace": ("serve.http.request_log:_trace",),
}

_spent: defaultdict[str, int] = defaultdict(int)  # nanoseconds of CPU time, by stage
_calls: defaultdict[str, int] = defaultdict(int)  # timers of each stage
_inner_calls: defaultdict[str, int] = defaultdict(int)  # timers that ran directly inside a timer of the stage
_open = threading.local()  # for each open stage of this thread: its name, and the nanoseconds of the stages inside it
_threads = {threading.get_native_id()}  # ids of the threads that ran a stage, and of the main thread


class Stage(AbstractContextManager[None]):
    """Adds the CPU time of the `with` block to a stage, without the time of stages inside the block."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        if not hasattr(_open, "inner"):
            _open.inner = []
            _threads.add(threading.get_native_id())
            _open.names = []
        _open.inner.append(0)
        _open.names.append(self._name)
        self._started = time.thread_time_ns()

    def __exit__(self, *_: object) -> None:
        elapsed = time.thread_time_ns() - self._started
        name = _open.names.pop()
        _spent[name] += elapsed - _open.inner.pop()
        _calls[name] += 1
        if _open.inner:
            _open.inner[-1] += elapsed
            _inner_calls[_open.names[-1]] += 1


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with a timer. Times each step of a coroutine, and the ends of a context manager."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run_in_steps(*args: Any, **kwargs: Any) -> Any:
            return await _steps(name, function(*args, **kwargs))

        return run_in_steps

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with Stage(name):
            result = function(*args, **kwargs)
        return _TimedContext(name, result) if isinstance(result, AbstractContextManager) else result

    return run


@types.coroutine
def _steps(name: str, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    step: Callable[[], Any] = functools.partial(work.send, None)
    while True:
        try:
            with Stage(name):
                awaited = step()
        except StopIteration as end:
            return end.value
        try:
            step = functools.partial(work.send, (yield awaited))
        except BaseException as error:  # noqa: BLE001 - a cancellation, for the coroutine
            step = functools.partial(work.throw, error)


class _TimedContext:
    def __init__(self, name: str, context: AbstractContextManager[Any]) -> None:
        self._name, self._context = name, context

    def __enter__(self) -> Any:
        with Stage(self._name):
            return self._context.__enter__()

    def __exit__(self, *error: Any) -> Any:
        with Stage(self._name):
            return self._context.__exit__(*error)


def place_timers() -> list[str]:
    """Places the timers of STAGES. Returns the functions that this source tree does not have."""
    missing: list[str] = []
    for stage, functions in STAGES.items():
        for function in functions:
            module, _, path = function.partition(":")
            *owners, name = path.split(".")
            try:
                owner = functools.reduce(getattr, owners, importlib.import_module(module))
                setattr(owner, name, timed(stage, getattr(owner, name)))
            except (ImportError, AttributeError):
                missing.append(function)
    return missing


def timer_ns() -> tuple[float, float]:
    """Returns the CPU time of one timer in nanoseconds: the part that it measures, and the part around it."""
    name, count = "warm-up", 10_000
    started = time.thread_time_ns()
    for _ in range(count):
        with Stage(name):
            pass
    elapsed = time.thread_time_ns() - started
    inside = _spent.pop(name)
    return inside / count, (elapsed - inside) / count


def main() -> None:
    path, *arguments = sys.argv[1:]
    place_timers()
    inside_ns, around_ns = timer_ns()
    _calls.clear()

    def write(*_: object) -> None:
        times: dict[str, Any] = {
            "spent_ns": _spent,
            "calls": _calls,
            "inner_calls": _inner_calls,
            "threads": sorted(_threads),
        }
        times |= {"timer_inside_ns": inside_ns, "timer_around_ns": around_ns}
        Path(path).with_suffix(".part").write_text(json.dumps(times))
        Path(path).with_suffix(".part").rename(path)

    signal.signal(signal.SIGUSR1, write)
    from tureen.cli import main as run_tureen

    sys.argv = ["tureen", "serve", *arguments]
    sys.exit(run_tureen())


if __name__ == "__main__":
    main()
