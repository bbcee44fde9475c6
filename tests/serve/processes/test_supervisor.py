"""Several worker processes as one server: one port, one set of metrics, the dead replaced, none left behind."""

import contextlib
import http.client
import os
import signal
import socket
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.processes.supervisor import MAX_RESTART_DELAY_S, restart_delay_s, worker_settings
from serve.settings import Settings
from tests.patience import DEADLINE_S
from tests.ports import free_port
from tureen.bundle.examples import EXAMPLES

READ = "/v1"  # stands for no route: answered 404 by whichever worker


def settings(**changes):
    return Settings(bundle=EXAMPLES / "cifar10", **changes)


@pytest.mark.parametrize(
    ("workers", "threads", "streams", "share"), [(2, 8, 4, (4, 4)), (3, 8, 4, (2, 2)), (4, 2, 2, (1, 1))]
)
def test_threads_are_divided_and_not_multiplied(workers, threads, streams, share):
    divided = worker_settings(settings(workers=workers, threads=threads, streams=streams, max_requests=10))
    assert (divided.threads, divided.streams) == share
    assert divided.max_requests * workers >= 10
    assert divided.workers == 1


def test_a_worker_that_keeps_dying_is_started_ever_more_seldom():
    pauses = [restart_delay_s(deaths) for deaths in range(12)]
    assert pauses[:3] == [0, 0, 0.5]
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_RESTART_DELAY_S


def test_any_worker_serves_the_metrics_of_all_and_leaves_no_file(start_server, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    server = start_server("--workers", 2, TMPDIR=str(temporary))
    server.wait_until_ready(2)
    for _ in range(40):
        assert server.ask("GET", READ)[0] == 404
    counted = 'tureen_requests_total{method="GET",route="unmatched",status="404"}'
    server.wait_for(lambda: server.metric(counted) == 40, "all counted")  # each is once its answer is out
    assert {server.metric(counted) for _ in range(8)} == {40}
    assert server.metric("tureen_process_starts_total") == 2
    assert {line["worker"] for line in server.log("request")} == {0, 1}
    assert len(list(temporary.glob("tureen-*"))) == 1
    assert server.end() == 0
    assert list(temporary.glob("tureen-*")) == []
    assert [line for line in server.log() if line["level"] not in ("debug", "info")] == []


class Asking(threading.Thread):
    """Asks on one kept connection, made anew where it breaks; remembers the first answer's id of each that broke."""

    def __init__(self, port, until):
        super().__init__(daemon=True)
        self.port = port
        self.until = until
        self.statuses = set()
        self.broken = []

    def run(self):
        first = None  # not the last: who is killed may have answered without having logged it
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        while not self.until.is_set():
            try:
                connection.request("GET", READ)
                response = connection.getresponse()
                response.read()
                self.statuses.add(response.status)
                first = first or response.headers["x-request-id"]
            except (OSError, http.client.HTTPException):
                self.broken.append(first)
                first = None
                connection.close()
        connection.close()


def test_only_the_connections_of_a_killed_worker_break_and_it_is_replaced(start_server):
    server = start_server("--workers", 2)
    server.wait_until_ready(2)
    killed, survivor = server.worker_pids().items()
    until = threading.Event()
    clients = [Asking(server.port, until) for _ in range(8)]
    for client in clients:
        client.start()
    server.wait_for(lambda: len(server.log("request")) > 500, "under load")
    os.kill(killed[1], signal.SIGKILL)
    server.wait_for(lambda: len(server.log("worker started")) == 3, "started again")
    server.wait_until_ready(2)
    until.set()
    for client in clients:
        client.join(DEADLINE_S)
        assert client.statuses == {404}
    served_by = {line["request_id"]: line["worker"] for line in server.log("request")}
    broken = [first for client in clients for first in client.broken]
    assert {served_by[first] for first in broken} <= {killed[0]}
    assert len(broken) <= len(clients)
    (died,) = server.log("worker died")
    assert (died["worker"], died["pid"], died["signal"]) == (*killed, "SIGKILL")
    assert server.worker_pids()[survivor[0]] == survivor[1]
    assert server.metric("tureen_process_starts_total") == 3
    assert server.end() == 0


def test_while_a_worker_is_down_the_other_accepts_all_connections(start_server, example_bundle):
    server = start_server("--workers", 2, bundle=example_bundle)
    server.wait_until_ready(2)
    (example_bundle / "manifest.json").unlink()  # so that no other can take its place
    os.kill(server.worker_pids()[1], signal.SIGKILL)
    server.wait_for(lambda: len(server.log("worker died")) >= 3, "died again and again")
    for _ in range(20):
        assert server.ask("GET", "/readyz")[0] == 200
    assert server.metric("tureen_ready") == 1
    assert "restart_in_s" in server.log("worker died")[-1]
    assert server.end() == 0


def test_the_server_exits_with_the_reason_if_no_worker_becomes_ready(start_server, example_bundle, break_golden_rows):
    break_golden_rows(example_bundle)
    server = start_server("--workers", 2, bundle=example_bundle)
    assert server.process.wait(DEADLINE_S) == 1
    log = server.log_file.read_text()
    assert "does not reproduce the golden rows" in log
    assert "giving up: no worker became ready" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_every_worker_serves_grpc_on_one_port(start_server, host):
    server = start_server("--workers", 3, "--host", host, "--grpc-port", 0, "--log-level", "debug")
    server.host = host
    server.wait_until_ready(3)
    (port,) = {line["message"].rpartition(" ")[2] for line in server.log() if "gRPC listens on" in line["message"]}

    def every_worker_has_answered():
        # A separate connection each time, which the kernel gives to any of the workers.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", options) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
            assert check.status == check.SERVING
            server_ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
            assert server_ready(b"", timeout=DEADLINE_S) == b"\x08\x01"  # ready: true
        return {line["worker"] for line in server.log("request") if line["method"] == "RPC"} == {0, 1, 2}

    server.wait_for(every_worker_has_answered, "an answer of every worker over gRPC")
    assert server.log("worker died") == []
    assert server.end() == 0


def test_a_taken_grpc_port_ends_the_server_immediately_with_its_name(start_server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start_server("--workers", 2, "--grpc-port", port)
        assert server.process.wait(DEADLINE_S) == 1
    (error,) = [line["message"] for line in server.log() if line["level"] == "error"]
    assert f"127.0.0.1:{port}" in error


@pytest.mark.slow  # half a minute without an answer is what it takes
def test_a_stalled_worker_is_replaced(start_server):
    server = start_server("--workers", 2)
    server.wait_until_ready(2)
    os.kill(server.worker_pids()[0], signal.SIGSTOP)
    server.wait_for(lambda: len(server.log("worker started")) == 3, "replaced")
    (died,) = server.log("worker died")
    assert (died["worker"], died["signal"]) == (0, "SIGKILL")
    server.wait_until_ready(2)


def test_no_worker_outlives_its_supervisor(start_server):
    server = start_server("--workers", 2)
    server.wait_until_ready(2)
    pids = server.worker_pids().values()
    server.process.kill()
    deadline = time.monotonic() + DEADLINE_S
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(ConnectionRefusedError):
        server.ask("GET", "/healthz")


@pytest.mark.parametrize("state", ["while its workers start", "when they are ready"])
def test_after_the_supervisor_is_killed_a_server_can_start_on_its_ports_immediately(start_server, tmp_path, state):
    flags = ["--workers", 2, "--grpc-port", free_port()]
    server = start_server(*flags)
    if state == "when they are ready":
        server.wait_until_ready(2)
    else:
        server.wait_for(lambda: len(server.worker_pids()) == 2, "both workers started")
    pids = server.worker_pids().values()
    server.process.kill()
    server.process.wait(DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    following = start_server(*flags, "--port", server.port)
    following.port = server.port
    following.wait_until_ready(2)
    assert following.end() == 0


def is_running(pid):
    """Whether a thread of the process is there; the process may be a zombie, and another thread hold its sockets."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return len(threads) > 1 or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_signal_to_every_process_ends_them_as_one_to_the_supervisor_does(start_server):
    """As Ctrl-C on a terminal, and service managers, send it."""
    server = start_server("--workers", 2)
    server.wait_until_ready(2)
    for pid in server.worker_pids().values():
        os.kill(pid, signal.SIGINT)
    assert server.end(signal.SIGINT) == 0
    assert server.log("worker died") == []


def test_a_taken_port_is_an_error_with_several_processes_too(start_server):
    first = start_server("--workers", 2)
    first.wait_until_ready(2)
    second = start_server("--workers", 2, "--port", first.port)
    assert second.process.wait(DEADLINE_S) == 1
    assert "address already in use" in second.log_file.read_text().lower()
