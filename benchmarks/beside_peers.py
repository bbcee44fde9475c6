"""Compares Tureen with LitServe, BentoML, Ray Serve and MLServer, on the same graph, engine, decoder and images.

    python -m benchmarks.beside_peers                                    # installs the peers; takes an hour
    python -m benchmarks.beside_peers --peers litserve --models small
    python -m benchmarks.beside_peers --settings best.json               # searches once, and keeps the best settings

Installs each peer into a separate virtual environment in the user's cache directory. Measures each peer with its
default settings, and with the best settings that a search finds. Tureen has its default settings. A response that is
not of status 200 is a failure, for each server.

All servers run during the measurement, and are suspended while another one is measured. Figures are medians over the
rounds, and ratios are medians of the ratios in each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load import NO_RESPONSE, ClosedLoopResult, Connection
from benchmarks.machine import describe_machine
from benchmarks.peers.catalog import PEERS, Peer, media_type
from benchmarks.peers.environments import PeerInstallError, ensure_environment
from benchmarks.peers.search import BestSettings, Settings, Trial, find_best_settings
from benchmarks.saturation import CONNECTIONS, run_closed_loop
from benchmarks.server_process import Server, run_tureen
from benchmarks.targets import format_figure, median, ratio, report_target
from benchmarks.throughput import encode_png
from benchmarks.workload import classify_requests, engine_options, load_photographs, make_random_bundle
from tureen.bundle.bundle import Bundle, load_bundle
from tureen.bundle.examples import find_bundle
from tureen.engines import open_engine

MODELS = {"small": "signs, 32 × 32", "photographs": "ViT-Ti/16, 224 × 224"}
CHECKED_IMAGES = 8
TOLERANCE = 0.02  # of the probability of the top label; batches of other sizes add numbers in another order
WARM_UP_S = 1.0
ATTEMPTS = 10  # to get a response from a server that has just started
TRIAL_ROUNDS = 2  # other work on the machine only slows a server, so the better round counts
TRIAL_S = 2.0
US = "Tureen"


@dataclass(frozen=True)
class Model:
    """A bundle, the engine that Tureen chooses for it, and the images that all servers classify."""

    bundle: Bundle
    engine: tuple[str, str]  # name and precision
    images: list[bytes]


@dataclass(frozen=True, eq=False)
class Subject:
    """A running server that is measured with some number of connections."""

    name: str
    settings: str  # "default" or "best"
    connections: int
    server: Server
    requests: list[bytes]


@dataclass
class Rounds:
    """The measurements of a Subject, one for each round."""

    loads: list[ClosedLoopResult] = field(default_factory=list)
    server_cpu_s: list[float] = field(default_factory=list)  # warm-up included

    @property
    def failed(self) -> int:
        """Requests without a response of status 200, in all rounds."""
        return sum(load.failed for load in self.loads)

    @property
    def cpu_ms(self) -> list[float]:
        """Core-milliseconds of the server for each successful response, by round; NaN without one."""
        # The CPU time includes that of the warm-up, a tenth of the time, and so does this count of responses.
        counts = [1.1 * load.succeeded for load in self.loads]
        return [1000 * cpu_s / n if n else math.nan for cpu_s, n in zip(self.server_cpu_s, counts, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=",".join(PEERS), help="peers, separated by commas (default: %(default)s)")
    parser.add_argument("--models", default=",".join(MODELS), help="separated by commas (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="seconds of load in each round (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="number of rounds, of which the median counts (default: %(default)s)"
    )
    parser.add_argument(
        "--settings",
        type=Path,
        help="JSON file of the best settings; the command searches for those that the file lacks, and adds them",
    )
    options = parser.parse_args()
    names, models = names_of(parser, options.peers, PEERS), names_of(parser, options.models, MODELS)
    print(describe_machine())
    try:
        pythons = {name: ensure_environment(name, PEERS[name].environment) for name in names}
    except PeerInstallError as error:
        sys.exit(f"beside_peers: {error}")
    for name in models:
        with open_model(name) as model:
            compare(name, model, pythons, options)


def names_of(parser: argparse.ArgumentParser, value: str, known: Sequence[str] | dict[str, Any]) -> list[str]:
    """Returns the names in the value of an option. Ends the program with an error for an unknown one."""
    names = value.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no {', '.join(unknown)}: choose from {', '.join(known)}")
    return names


@contextmanager
def open_model(name: str) -> Iterator[Model]:
    """Yields a model of MODELS. The bundle exists during the `with` block."""
    with tempfile.TemporaryDirectory() as directory:
        if name == "small":
            bundle = load_bundle(find_bundle("signs"))
            images = [encode_png(pixels) for pixels in bundle.golden.pixels]
        else:
            images = load_photographs()
            bundle = make_random_bundle(Path(directory) / "bundle", images)
        engine = open_engine(bundle, options=engine_options())
        engine.close()
        yield Model(bundle, (engine.name, engine.precision), images)


def compare(name: str, model: Model, pythons: dict[str, Path], options: argparse.Namespace) -> None:
    """Searches for the best settings of each peer, measures all servers in turn, and prints the figures."""
    print(f"\n{name}: {MODELS[name]}, {' '.join(model.engine)}, {len(model.images)} images", flush=True)
    best = {peer: best_settings(name, peer, pythons[peer], model, options.settings) for peer in pythons}
    with ExitStack() as stack:
        subjects = start_servers(stack, model, pythons, best)
        results = measure(subjects, options.seconds, options.rounds)
    for connections in (CONNECTIONS, 1):
        print_table(connections, {s: r for s, r in results.items() if s.connections == connections})
    for peer in pythons:
        report_peer(PEERS[peer], name, results)


def best_settings(model_name: str, name: str, python: Path, model: Model, file: Path | None) -> BestSettings:
    """Returns the best settings of a peer from the file. If the file lacks them, searches, and adds them to the file.

    file: None to search without keeping the result.
    """
    known = json.loads(file.read_text()) if file is not None and file.exists() else {}
    key = f"{name} {PEERS[name].environment.version}, {model_name}"
    if key not in known:
        print(f"  {PEERS[name].name}: search for its best settings", flush=True)
        peer = PEERS[name]
        best = find_best_settings(
            peer.defaults, peer.start, peer.choices, lambda settings: measure_trial(peer, python, model, settings)
        )
        known[key] = asdict(best)
        if file is not None:
            file.write_text(json.dumps(known, indent=2) + "\n")
    best = BestSettings(**known[key])
    print(f"  {PEERS[name].name}, best at {CONNECTIONS} connections: {describe(best.throughput)}")
    print(f"  {PEERS[name].name}, best at one connection: {describe(best.latency)}", flush=True)
    return best


def measure_trial(peer: Peer, python: Path, model: Model, settings: Settings) -> Trial:
    """Returns the best of TRIAL_ROUNDS short rounds with these settings."""
    requests = [peer.request(image) for image in model.images]
    with peer.run(python, model.bundle, model.engine, settings) as server:
        run_closed_loop(server, requests, CONNECTIONS, WARM_UP_S)
        busy = [run_closed_loop(server, requests, CONNECTIONS, TRIAL_S) for _ in range(TRIAL_ROUNDS)]
        alone = [run_closed_loop(server, requests, 1, TRIAL_S) for _ in range(TRIAL_ROUNDS)]
    latencies = [load.percentile_ms(50) for load in alone if load.succeeded]
    trial = Trial(max(load.rate for load in busy), min(latencies, default=math.nan))
    print(f"    {trial.rate:7.1f}/s, p50 at one {trial.p50_ms:6.2f} ms   {describe(settings)}", flush=True)
    return trial


def describe(settings: Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def start_servers(
    stack: ExitStack, model: Model, pythons: dict[str, Path], best: dict[str, BestSettings]
) -> list[Subject]:
    """Starts Tureen, and each peer with its default and its best settings. Returns what is measured.

    Suspends each server when it is warm. The stack resumes and stops the servers. Raises RuntimeError if a peer
    classifies an image otherwise than Tureen.
    """
    ours = classify_requests(model.images, media_type=media_type(model.images[0]))
    state = stack.enter_context(tempfile.TemporaryDirectory())
    flags = ("--engine", model.engine[0], "--precision", model.engine[1], "--state-dir", state)
    tureen = stack.enter_context(run_tureen(model.bundle.path, *flags))
    run_closed_loop(tureen, ours, CONNECTIONS, WARM_UP_S)
    expected = [json.loads(body)["predictions"][0] for body in responses(tureen, ours[:CHECKED_IMAGES])]
    subjects = [Subject(US, "default", connections, tureen, ours) for connections in (CONNECTIONS, 1)]
    suspend(tureen)
    stack.callback(resume, tureen)
    for name, python in pythons.items():
        peer = PEERS[name]
        requests = [peer.request(image) for image in model.images]
        running: dict[str, Server] = {}
        for kind, connections, settings in (
            ("default", CONNECTIONS, peer.defaults),
            ("best", CONNECTIONS, best[name].throughput),
            ("default", 1, peer.defaults),
            ("best", 1, best[name].latency),
        ):
            if (key := describe(settings)) not in running:
                server = stack.enter_context(peer.run(python, model.bundle, model.engine, settings))
                bodies = responses(server, requests[:CHECKED_IMAGES])
                check_answers(peer, [peer.response(json.loads(body)) for body in bodies], expected)
                run_closed_loop(server, requests, CONNECTIONS, WARM_UP_S)
                suspend(server)
                stack.callback(resume, server)
                running[key] = server
            subjects.append(Subject(peer.name, kind, connections, running[key], requests))
    return subjects


def responses(server: Server, requests: Sequence[bytes]) -> list[bytes]:
    """Sends the requests one after the other. Returns the bodies. Raises RuntimeError for a status other than 200.

    Repeats a request without a response, at most ATTEMPTS times: HAProxy, which Ray Serve can use, closes connections
    when it reads its configuration again after the start.
    """

    async def body(request: bytes) -> bytes:
        for _ in range(ATTEMPTS):
            connection = await Connection.open(server.port)
            response = await connection.request(request)
            connection.close()
            if response.status == 200:
                return response.body
            if response.status != NO_RESPONSE:
                break
            await asyncio.sleep(1)
        raise RuntimeError(f"a server responded with status {response.status}: {response.body[:500]!r}")

    async def send() -> list[bytes]:
        return [await body(request) for request in requests]

    return asyncio.run(send())


def check_answers(peer: Peer, answers: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Raises RuntimeError if a top label differs, or if its probability differs by more than TOLERANCE.

    answers: responses of the Classifier. expected: the top predictions of Tureen.
    """
    for index, (answer, prediction) in enumerate(zip(answers, expected, strict=True)):
        top = answer["predictions"][0]
        if top["label"] != prediction["label"] or abs(top["probability"] - prediction["probability"]) > TOLERANCE:
            raise RuntimeError(f"image {index}: {peer.name} answers {top}, and {US} answers {prediction}")


def measure(subjects: list[Subject], seconds: float, rounds: int) -> dict[Subject, Rounds]:
    """Measures all subjects in each round, in reversed order in every second round. All are suspended before."""
    results = {subject: Rounds() for subject in subjects}
    for turn in range(rounds):
        for subject in reversed(subjects) if turn % 2 else subjects:
            resume(subject.server)
            cpu_s = subject.server.usage().cpu_s
            load = run_closed_loop(subject.server, subject.requests, subject.connections, seconds)
            results[subject].server_cpu_s.append(subject.server.usage().cpu_s - cpu_s)
            results[subject].loads.append(load)
            suspend(subject.server)
        print(f"  round {turn + 1} of {rounds}", flush=True)
    return results


def suspend(server: Server) -> None:
    """Suspends all processes of a server, so that it takes no CPU from the one that is measured."""
    for process in server.processes():
        with suppress(psutil.NoSuchProcess):
            process.suspend()


def resume(server: Server) -> None:
    """Resumes all processes of a suspended server."""
    for process in server.processes():
        with suppress(psutil.NoSuchProcess):
            process.resume()


def print_table(connections: int, results: dict[Subject, Rounds]) -> None:
    """Prints a row for each subject. The last two columns are the figures of Tureen as ratios to those of the row."""
    ours = next(rounds for subject, rounds in results.items() if subject.name == US)
    print(f"\n  {connections} connection{'s' if connections > 1 else ''}")
    print("  server     settings  images/s  p50, ms  p99, ms  failed  core-ms  our rate / its  our p50 / its")
    for subject, rounds in results.items():
        figures = [
            format_figure(median(load.rate for load in rounds.loads), "8.1f"),
            format_figure(median(load.percentile_ms(50) for load in rounds.loads), "7.2f"),
            format_figure(median(load.percentile_ms(99) for load in rounds.loads), "7.2f"),
            f"{rounds.failed:6d}",
            format_figure(median(rounds.cpu_ms), "7.2f"),
            format_figure(rate_ratio(ours, rounds), "14.2f"),
            format_figure(p50_ratio(ours, rounds), "13.2f"),
        ]
        print(f"  {subject.name:<10} {subject.settings:<8}  {'  '.join(figures)}", flush=True)


def report_peer(peer: Peer, model: str, results: dict[Subject, Rounds]) -> None:
    """Prints the throughput and the p50 latency of Tureen as ratios to those of the peer at its best settings."""
    for connections in (CONNECTIONS, 1):
        found = {s.name: r for s, r in results.items() if s.connections == connections and s.settings == "best"}
        ours = next(r for s, r in results.items() if s.connections == connections and s.name == US)
        title = f"{model}, {connections}: Tureen / {peer.name} {peer.environment.version} at its best"
        if connections == 1:
            report_target(f"{title}, p50", "<", 1, p50_ratio(ours, found[peer.name]))
        else:
            report_target(f"{title}, rate", ">", 1, rate_ratio(ours, found[peer.name]))


def rate_ratio(ours: Rounds, theirs: Rounds) -> float:
    """Returns the median over the rounds of our responses per second / theirs."""
    return median(ratio(our.rate, their.rate) for our, their in zip(ours.loads, theirs.loads, strict=True))


def p50_ratio(ours: Rounds, theirs: Rounds) -> float:
    """Returns the median over the rounds of our p50 latency / theirs."""
    pairs = zip(ours.loads, theirs.loads, strict=True)
    return median(ratio(our.percentile_ms(50), their.percentile_ms(50)) for our, their in pairs)


if __name__ == "__main__":
    main()
