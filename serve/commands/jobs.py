"""`tureen jobs`: batch jobs on a running server's engine, submitted, looked at and ended from a terminal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from serve.commands.admin_client import AdminClient, RefusedError
from serve.commands.options import beta_argument, betas_argument
from serve.commands.terminal import listener_options

LOOK_S = 1.0
PATIENCE_S = 120.0
EXIT_NOT_SUCCEEDED = 1
ENDED = ("succeeded", "partially_succeeded", "failed", "cancelled")
GIVEN = ("beta", "betas", "top_k", "format", "shard_rows", "max_error_rate")


def jobs(arguments: list[str]) -> int:
    """`tureen jobs`: 0, or 1 where a watched job did not succeed; raises AdminError."""
    options = _parser().parse_args(arguments)
    client = AdminClient(options.url, options.token, options.state_dir)
    run = {"submit": _submit, "list": _list, "show": _show, "watch": _watch, "errors": _errors, "results": _results}
    if options.command in run:
        status: int = run[options.command](client, options)
        return status
    return _told(client.job_action(options.id, options.command), options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tureen jobs",
        description="Batch jobs on the engine of a running service, behind every request. Paths are the server's.",
        epilog="example: tureen jobs submit /data/photos /data/results/monday --beta 0.7 --watch",
    )
    common = listener_options()
    commands = parser.add_subparsers(dest="command", required=True)
    submit = commands.add_parser("submit", parents=[common], help="queue a job")
    submit.add_argument("input", help="a folder, a .tar or .zip, or a manifest; an absolute path on the server")
    submit.add_argument("output", help="a new directory; an absolute path on the server")
    beta = submit.add_mutually_exclusive_group()
    beta.add_argument(
        "--beta", type=beta_argument, help="0 to 1, clean or robust; default: the one in force when submitted"
    )
    beta.add_argument(
        "--betas", type=betas_argument, metavar="0:1:0.25", help="a row at each of these, from one decoding"
    )
    submit.add_argument("--top-k", type=int, help="classes in a row")
    submit.add_argument("--format", choices=("parquet", "jsonl", "csv"), help="of the shards (default: parquet)")
    submit.add_argument("--shard-rows", type=int, help="rows in a shard, about")
    submit.add_argument("--max-error-rate", type=float, help="stop beyond this share of errors (default: never)")
    submit.add_argument("--watch", action="store_true", help="and wait for its end, as `tureen jobs watch` does")
    listed = commands.add_parser("list", parents=[common], help="the newest jobs")
    listed.add_argument("--limit", type=int, default=20, help="how many (default: %(default)s)")
    listed.add_argument("--state", help="those in this state alone")
    for name, text in (
        ("show", "one job"),
        ("watch", "one job until its end; the exit status is 1 where it did not succeed"),
        ("cancel", "end a job; what is done is kept"),
        ("pause", "have a job wait until it is resumed"),
        ("resume", "go on with a job that waits or failed; of a partially succeeded one, with what failed"),
    ):
        commands.add_parser(name, parents=[common], help=text).add_argument("id")
    errors = commands.add_parser("errors", parents=[common], help="the rows of a job that are errors")
    errors.add_argument("id")
    errors.add_argument("--limit", type=int, default=100, help="how many (default: %(default)s)")
    results = commands.add_parser("results", parents=[common], help="the files that a job has written")
    results.add_argument("id")
    results.add_argument("--to", type=Path, metavar="DIRECTORY", help="copy them here")
    return parser


def _submit(client: AdminClient, options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in GIVEN if getattr(options, name) is not None}
    job = client.submit_job({"input": options.input, "output": options.output, **given})
    if options.watch:
        print(job["id"], file=sys.stderr)
        options.id = job["id"]
        return _watch(client, options)
    return _told(job, options)


def _list(client: AdminClient, options: argparse.Namespace) -> int:
    found = client.jobs(options.limit, options.state)
    if options.json:
        print(json.dumps({"jobs": found}))
    else:
        for job in found:
            print(line_of(job))
    return 0


def _show(client: AdminClient, options: argparse.Namespace) -> int:
    return _told(client.job(options.id), options)


def _watch(client: AdminClient, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    job = client.job(options.id)
    with tqdm(total=job["images"], initial=job["done"], desc=job["id"], unit="image", disable=None) as bar:
        while job["state"] not in ENDED:
            time.sleep(LOOK_S)
            job = _patiently(client, options.id)
            bar.total = job["images"]
            bar.set_postfix_str(f"{job['state']}, {job['failed']} failed", refresh=False)
            bar.update(max(0, job["done"] - bar.n))
    _told(job, options)
    return 0 if job["state"] == "succeeded" else EXIT_NOT_SUCCEEDED


def _patiently(client: AdminClient, job_id: str) -> dict[str, Any]:
    """The job, also over a restart of its server, which it survives; raises RefusedError after PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return client.job(job_id)
        except RefusedError as error:
            if error.code != "unreachable" or time.monotonic() > end:
                raise
            time.sleep(LOOK_S)


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


def _told(job: dict[str, Any], options: argparse.Namespace) -> int:
    print(json.dumps(job) if options.json else shown(job))
    return 0


def line_of(job: dict[str, Any]) -> str:
    """A job in a line."""
    state = job["state"] if job["wanted"] is None else f"{job['state']}, to be {job['wanted']}"
    images = "?" if job["images"] is None else f"{job['images']:,}"
    return f"{job['id']}  {state:<19}  {job['done']:,}/{images}, {job['failed']:,} failed  {job['request']['output']}"


def shown(job: dict[str, Any]) -> str:
    """A job, for people."""
    request = job["request"]
    betas = request["betas"] or [job["default_beta"] if request["beta"] is None else request["beta"]]
    lines = [
        line_of(job),
        f"  input   {request['input']}",
        f"  β       {', '.join('none' if beta is None else f'{beta:g}' for beta in betas)}",
        f"  who     {job['who']}",
        *(f"  {state.replace('_', ' ')} since {at[:19]}Z" for state, at in sorted(job["times"].items(), key=_at)),
    ]
    if job["error"] is not None:
        lines.append(f"  error   {job['error']}")
    return "\n".join(lines)


def _at(item: tuple[str, str]) -> str:
    return item[1]
