"""`tureen jobs`: submits, shows and stops the batch jobs of a running server."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from serve.commands.admin_client import AdminClient, RefusedError
from serve.commands.options import listener_options
from tureen.arguments import beta_argument, betas_argument, strength_argument

POLL_S = 1.0
RECONNECT_S = 120.0  # how long `watch` tries to reach a server that restarts
EXIT_NOT_SUCCEEDED = 1
ENDED = ("succeeded", "partially_succeeded", "failed", "cancelled")
REQUEST_OPTIONS = ("beta", "betas", "strength", "mix", "top_k", "format", "shard_rows", "max_error_rate")


def jobs(arguments: list[str]) -> int:
    """Runs `tureen jobs`. arguments: those after `tureen jobs`. Returns 0, or 1 if a watched job did not succeed.

    Raises RefusedError if the server refuses a request or is unreachable.
    """
    options = _parser().parse_args(arguments)
    client = AdminClient(options.url, options.token, options.state_dir)
    run = {"submit": _submit, "list": _list, "show": _show, "watch": _watch, "errors": _errors, "results": _results}
    if options.command in run:
        status: int = run[options.command](client, options)
        return status
    return _print_job(client.job_action(options.id, options.command), options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tureen jobs",
        description="Batch jobs on the engine of a running server. Requests come first. Paths are paths on the server.",
        epilog="example: tureen jobs submit /data/photos /data/results/monday --beta 0.7 --watch",
    )
    common = listener_options()
    commands = parser.add_subparsers(dest="command", required=True)
    submit = commands.add_parser("submit", parents=[common], help="queue a job")
    submit.add_argument("input", help="a folder, a .tar or .zip, or a manifest; an absolute path on the server")
    submit.add_argument("output", help="a new directory; an absolute path on the server")
    beta = submit.add_mutually_exclusive_group()
    beta.add_argument(
        "--beta",
        type=beta_argument,
        help="0 to 1, clean or robust (default: that of the server at submission)",
    )
    beta.add_argument(
        "--strength",
        type=lambda text: strength_argument(text).value,
        help="0 (clean mode) to 1 (robust mode), which the served model maps to β",
    )
    beta.add_argument(
        "--betas",
        type=betas_argument,
        metavar="0:1:0.25",
        help="classify each image at each of these β, with one decoding",
    )
    beta.add_argument("--mix", help="weights of tokens, such as fog:0.7,robust:0.3, in place of β")
    submit.add_argument(  # --token is the bearer token
        "--token-name", dest="class_token", metavar="NAME",
        help="token in place of the clean one, alone or mixed by --beta or --strength",
    )  # fmt: skip
    submit.add_argument("--top-k", type=int, help="classes per row")
    submit.add_argument(
        "--format", choices=("parquet", "jsonl", "csv"), help="file format of the shards (default: parquet)"
    )
    submit.add_argument("--shard-rows", type=int, help="approximate rows per shard")
    submit.add_argument(
        "--max-error-rate", type=float, help="stop the job above this share of errors, 0 to 1 (default: never)"
    )
    submit.add_argument("--watch", action="store_true", help="wait until the job ends, as `tureen jobs watch` does")
    listed = commands.add_parser("list", parents=[common], help="list the newest jobs")
    listed.add_argument("--limit", type=int, default=20, help="number of jobs (default: %(default)s)")
    listed.add_argument("--state", help="only jobs in this state")
    for name, text in (
        ("show", "show one job"),
        ("watch", "wait until a job ends; the exit status is 1 if it did not succeed"),
        ("cancel", "cancel a job; its finished shards stay"),
        ("pause", "pause a job until it is resumed"),
        ("resume", "continue a paused or failed job, or retry the failed images of a partially succeeded job"),
    ):
        commands.add_parser(name, parents=[common], help=text).add_argument("id")
    errors = commands.add_parser("errors", parents=[common], help="list the rows of a job that have an error")
    errors.add_argument("id")
    errors.add_argument("--limit", type=int, default=100, help="number of rows (default: %(default)s)")
    results = commands.add_parser("results", parents=[common], help="list the files that a job has written")
    results.add_argument("id")
    results.add_argument("--to", type=Path, metavar="DIRECTORY", help="copy the files to this directory")
    return parser


def _submit(client: AdminClient, options: argparse.Namespace) -> int:
    request = {name: getattr(options, name) for name in REQUEST_OPTIONS if getattr(options, name) is not None}
    if options.class_token is not None:
        request["token"] = options.class_token
    job = client.submit_job({"input": options.input, "output": options.output, **request})
    if options.watch:
        print(job["id"], file=sys.stderr)
        options.id = job["id"]
        return _watch(client, options)
    return _print_job(job, options)


def _list(client: AdminClient, options: argparse.Namespace) -> int:
    found = client.jobs(options.limit, options.state)
    if options.json:
        print(json.dumps({"jobs": found}))
    else:
        for job in found:
            print(format_job_line(job))
    return 0


def _show(client: AdminClient, options: argparse.Namespace) -> int:
    return _print_job(client.job(options.id), options)


def _watch(client: AdminClient, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    job = client.job(options.id)
    with tqdm(total=job["images"], initial=job["done"], desc=job["id"], unit="image", disable=None) as bar:
        while job["state"] not in ENDED:
            time.sleep(POLL_S)
            job = _job_with_retries(client, options.id)
            bar.total = job["images"]
            bar.set_postfix_str(f"{job['state']}, {job['failed']} failed", refresh=False)
            bar.update(max(0, job["done"] - bar.n))
    _print_job(job, options)
    return 0 if job["state"] == "succeeded" else EXIT_NOT_SUCCEEDED


def _job_with_retries(client: AdminClient, job_id: str) -> dict[str, Any]:
    """Returns the JSON object of a job. Retries while the server is unreachable.

    A job survives a restart of the server. Raises RefusedError if the server refuses the request, or is unreachable for
    RECONNECT_S seconds.
    """
    end = time.monotonic() + RECONNECT_S
    while True:
        try:
            return client.job(job_id)
        except RefusedError as error:
            if error.code != "unreachable" or time.monotonic() > end:
                raise
            time.sleep(POLL_S)


def _errors(client: AdminClient, options: argparse.Namespace) -> int:
    found = client.job_errors(options.id, options.limit)
    if options.json:
        print(json.dumps({"errors": found}))
    else:
        for row in found:
            print(f"{row['error_code']}  {row['path']!r}: {row['error']}")
    return 0


def _results(client: AdminClient, options: argparse.Namespace) -> int:
    found = [file for file in client.job_results(options.id) if Path(file["name"]).name == file["name"]]
    if options.to is not None:
        options.to.mkdir(parents=True, exist_ok=True)
        for file in found:
            client.save_job_result(options.id, file["name"], options.to / file["name"])
    if options.json:
        print(json.dumps({"files": found}))
    else:
        for file in found:
            print(f"{file['bytes']:>14,}  {file['name']}")
    return 0


def _print_job(job: dict[str, Any], options: argparse.Namespace) -> int:
    print(json.dumps(job) if options.json else format_job(job))
    return 0


def format_job_line(job: dict[str, Any]) -> str:
    """Returns the id, state, progress and output directory of a job as one line of text. job: its JSON object."""
    state = job["state"] if job["wanted"] is None else f"{job['state']}, to be {job['wanted']}"
    images = "?" if job["images"] is None else f"{job['images']:,}"
    return f"{job['id']}  {state:<19}  {job['done']:,}/{images}, {job['failed']:,} failed  {job['request']['output']}"


def format_job(job: dict[str, Any]) -> str:
    """Returns a job as several lines of text: `format_job_line`, then input, β, operator, times and error.

    job: the JSON object of the job.
    """
    request = job["request"]
    betas = request["betas"] or [job["default_beta"] if request["beta"] is None else request["beta"]]
    states = sorted(job["times"].items(), key=lambda state_and_time: state_and_time[1])
    lines = [
        format_job_line(job),
        f"  input   {request['input']}",
        f"  β       {', '.join('none' if beta is None else f'{beta:g}' for beta in betas)}",
        f"  who     {job['who']}",
        *(f"  {state.replace('_', ' ')} since {at[:19]}Z" for state, at in states),
    ]
    if job["error"] is not None:
        lines.append(f"  error   {job['error']}")
    return "\n".join(lines)
