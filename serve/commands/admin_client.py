"""Asks a running server's operator listener. Knows the contract of its routes and nothing of terminals."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from serve.admin.operations import TOKEN_FILE
from serve.errors import AdminError
from tureen.atomic_file import atomic_file
from tureen.machine import default_state_directory

TIMEOUT_S = 10.0
TOKEN_VARIABLE = "TUREEN_ADMIN_TOKEN"  # noqa: S105 - a name


class RefusedError(AdminError):
    """The server answered with an error. code: as in its body."""

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        super().__init__(detail)


class AdminClient:
    """One server's settings, by its operator listener."""

    def __init__(self, url: str, token: str | None = None, state_dir: Path | None = None) -> None:
        """token: else TUREEN_ADMIN_TOKEN, else what a server left in state_dir; raises AdminError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise RefusedError("wrong_url", "that is no URL of a listener: give one such as http://127.0.0.1:8001")
        self._url = url.rstrip("/")
        self._token = token or os.environ.get(TOKEN_VARIABLE) or _token_of(state_dir or default_state_directory())
        if not (self._token.isascii() and self._token.isprintable() and " " not in self._token):
            raise RefusedError("wrong_token", "the token has spaces, line ends or letters that no token has")

    def state(self, after: int | None = None, wait_s: float = 0) -> dict[str, Any]:
        """What is in force; with after, once a later revision is, or wait_s have passed."""
        query = "" if after is None else "?" + urlencode({"after": after, "wait_s": wait_s})
        return self._ask("GET", f"/admin/beta{query}", timeout_s=TIMEOUT_S + wait_s)

    def change(self, revision: int, change: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """What is in force after the change on that revision, or would be; raises RefusedError."""
        return self._ask("PUT", f"/admin/beta{'?dry_run=true' if dry_run else ''}", change, revision)

    def rollback(self, revision: int, to: int, reason: str, *, dry_run: bool = False) -> dict[str, Any]:
        """What is in force after going back to an earlier revision's settings, or would be."""
        path = f"/admin/beta/rollback{'?dry_run=true' if dry_run else ''}"
        return self._ask("POST", path, {"revision": to, "reason": reason}, revision)

    def cancel(self, revision: int, plan_id: str, reason: str) -> dict[str, Any]:
        """What is in force without what was planned under that id."""
        path = f"/admin/beta/pending/{quote(plan_id, safe='')}?{urlencode({'reason': reason})}"
        return self._ask("DELETE", path, None, revision)

    def history(self, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """The newest revisions, the newest first, of those before one where it is given."""
        query = urlencode({"limit": limit} | ({} if before is None else {"before": before}))
        revisions: list[dict[str, Any]] = self._ask("GET", f"/admin/beta/history?{query}")["revisions"]
        return revisions

    def verify(self) -> int:
        """How many revisions the server has checked, all sound; raises RefusedError."""
        verified: int = self._ask("GET", "/admin/beta/history/verify")["verified"]
        return verified

    def submit_job(self, request: dict[str, Any]) -> dict[str, Any]:
        """The job, queued; raises RefusedError."""
        return self._ask("POST", "/jobs", request)

    def jobs(self, limit: int, state: str | None = None) -> list[dict[str, Any]]:
        """The newest jobs, the newest first."""
        query = urlencode({"limit": limit} | ({} if state is None else {"state": state}))
        found: list[dict[str, Any]] = self._ask("GET", f"/jobs?{query}")["jobs"]
        return found

    def job(self, job_id: str) -> dict[str, Any]:
        """One job, and how far it is."""
        return self._ask("GET", _path_of(job_id))

    def job_action(self, job_id: str, action: str) -> dict[str, Any]:
        """The job once it was asked to cancel, pause or resume; one that runs follows within a second."""
        return self._ask("POST", f"{_path_of(job_id)}/{action}")

    def job_errors(self, job_id: str, limit: int) -> list[dict[str, Any]]:
        """The first rows that are errors."""
        found: list[dict[str, Any]] = self._ask("GET", f"{_path_of(job_id)}/errors?limit={limit}")["errors"]
        return found

    def job_results(self, job_id: str) -> list[dict[str, Any]]:
        """Name and bytes of each file that the job has written so far."""
        found: list[dict[str, Any]] = self._ask("GET", f"{_path_of(job_id)}/results")["files"]
        return found

    def save_job_result(self, job_id: str, name: str, file: Path) -> None:
        """Copy one of them here, whole or not at all."""
        with (
            self._answer("GET", f"{_path_of(job_id)}/results/{quote(name, safe='')}") as answer,
            atomic_file(file) as new,
        ):
            shutil.copyfileobj(answer, new)
            if new.tell() != int(answer.headers["Content-Length"]):  # which http.client does not look at
                raise RefusedError("incomplete", f"{name} came to {new.tell():,} bytes and no further: try again")

    def _ask(
        self, method: str, path: str, body: Any = None, revision: int | None = None, timeout_s: float = TIMEOUT_S
    ) -> dict[str, Any]:
        with self._answer(method, path, body, revision, timeout_s) as answer:
            try:
                content: dict[str, Any] = json.load(answer)
            except (OSError, ValueError) as error:
                raise self._unreachable(error) from None
            return content

    def _answer(
        self, method: str, path: str, body: Any = None, revision: int | None = None, timeout_s: float = TIMEOUT_S
    ) -> HTTPResponse:
        headers = {"Authorization": f"Bearer {self._token}"}
        if revision is not None:
            headers["If-Match"] = f'"{revision}"'
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers, method=method)  # noqa: S310 - see __init__
        try:
            answer: HTTPResponse = urllib.request.urlopen(request, timeout=timeout_s)  # noqa: S310
            return answer
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(error.code, error.read()) from None
        except (OSError, ValueError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> RefusedError:
        reason = getattr(error, "reason", error)
        return RefusedError("unreachable", f"no operator listener answers at {self._url}: {reason}")


def _path_of(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _refused(status: int, body: bytes) -> RefusedError:
    try:
        problem = json.loads(body)
        if status == 404 and problem["code"] == "not_found":
            return RefusedError(
                "not_found", "this is a server, and not its operators' listener: is this the right port?"
            )
        return RefusedError(problem["code"], problem["detail"])
    except (ValueError, KeyError, TypeError):
        return RefusedError("unknown", f"the answer is a {status} that is none of Tureen's: is this the right port?")


def _token_of(directory: Path) -> str:
    try:
        return (directory / TOKEN_FILE).read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        raise RefusedError(
            "no_token",
            f"no token: give --token, set {TOKEN_VARIABLE}, or run where {directory / TOKEN_FILE} can be read",
        ) from None
