"""A client of the operators' listener of a running server. Knows the routes of the listener, but no terminal."""

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

from serve.control.state_directory import TOKEN_FILE
from serve.errors import AdminError
from tureen.atomic_file import atomic_file
from tureen.machine import default_state_directory

TIMEOUT_S = 10.0
TOKEN_VARIABLE = "TUREEN_ADMIN_TOKEN"  # noqa: S105 - a name


class RefusedError(AdminError):
    """The server refused the request or is unreachable, or the arguments of the client are invalid.

    code: the code of the server's error response, or a code of this client such as `unreachable`.
    """

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        super().__init__(detail)


class AdminClient:
    """A client of one operators' listener. Every method raises RefusedError if the server refuses or is unreachable."""

    def __init__(self, url: str, token: str | None = None, state_dir: Path | None = None) -> None:
        """url: of the listener. token: the bearer token.

        If `token` is None, uses the token in TUREEN_ADMIN_TOKEN, or else in the token file of `state_dir`. Raises
        RefusedError if the URL is invalid, or if there is no valid token.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise RefusedError(
                "wrong_url", "--url is not the URL of a listener: give one such as http://127.0.0.1:8001"
            )
        self._url = url.rstrip("/")
        self._token = token or os.environ.get(TOKEN_VARIABLE) or _read_token(state_dir or default_state_directory())
        if not (self._token.isascii() and self._token.isprintable() and " " not in self._token):
            raise RefusedError("wrong_token", "the token has spaces, line ends or characters that are not ASCII")

    def state(self, after: int | None = None, wait_s: float = 0) -> dict[str, Any]:
        """Returns the settings in force: the JSON object that GET /admin/beta returns.

        after: a revision number; the server waits for a later revision, at most wait_s seconds. None: no wait.
        """
        query = "" if after is None else "?" + urlencode({"after": after, "wait_s": wait_s})
        return self._request_json("GET", f"/admin/beta{query}", timeout_s=TIMEOUT_S + wait_s)

    def change(self, revision: int, change: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """Changes the settings, and returns the new settings as `state` does.

        revision: number of the revision in force; the server refuses the change if another revision is in force.
        change: the JSON body of PUT /admin/beta. dry_run: returns the new settings without storing them.
        """
        return self._request_json("PUT", f"/admin/beta{'?dry_run=true' if dry_run else ''}", change, revision)

    def rollback(self, revision: int, to: int, reason: str, *, dry_run: bool = False) -> dict[str, Any]:
        """Restores the settings of the revision `to`, and returns them as `state` does.

        revision: number of the revision in force, as in `change`. dry_run: returns the settings without storing them.
        """
        path = f"/admin/beta/rollback{'?dry_run=true' if dry_run else ''}"
        return self._request_json("POST", path, {"revision": to, "reason": reason}, revision)

    def cancel(self, revision: int, plan_id: str, reason: str) -> dict[str, Any]:
        """Cancels the planned changes with this id, and returns the settings as `state` does.

        revision: number of the revision in force, as in `change`.
        """
        path = f"/admin/beta/pending/{quote(plan_id, safe='')}?{urlencode({'reason': reason})}"
        return self._request_json("DELETE", path, None, revision)

    def tokens(self) -> list[dict[str, Any]]:
        """Returns the tokens that operators added, as JSON objects sorted by name."""
        found: list[dict[str, Any]] = self._request_json("GET", "/admin/tokens")["tokens"]
        return found

    def token(self, name: str) -> dict[str, Any]:
        """Returns one token that operators added, as a JSON object."""
        return self._request_json("GET", f"/admin/tokens/{quote(name, safe='')}")

    def add_token(
        self, revision: int, name: str, content: bytes, reason: str, *, may_replace: bool, dry_run: bool = False
    ) -> dict[str, Any]:
        """Adds a token to the service, and returns the settings as `state` does.

        revision: number of the revision in force, as in `change`. content: the token file. may_replace: whether another
        token may have the name; it is then replaced. dry_run: checks everything, and adds nothing.
        """
        query = {"reason": reason, "replace": str(may_replace).lower(), "dry_run": str(dry_run).lower()}
        return self._request_json("PUT", f"/admin/tokens/{quote(name, safe='')}?{urlencode(query)}", content, revision)

    def remove_token(self, revision: int, name: str, reason: str) -> dict[str, Any]:
        """Removes a token from the service, and returns the settings as `state` does.

        revision: number of the revision in force, as in `change`.
        """
        path = f"/admin/tokens/{quote(name, safe='')}?{urlencode({'reason': reason})}"
        return self._request_json("DELETE", path, None, revision)

    def history(self, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """Returns at most `limit` revisions, newest first. before: returns only revisions with lower numbers."""
        query = urlencode({"limit": limit} | ({} if before is None else {"before": before}))
        revisions: list[dict[str, Any]] = self._request_json("GET", f"/admin/beta/history?{query}")["revisions"]
        return revisions

    def verify(self) -> int:
        """Makes the server verify the hashes of the settings' history. Returns the number of verified revisions.

        Raises RefusedError if a revision is missing or was changed.
        """
        verified: int = self._request_json("GET", "/admin/beta/history/verify")["verified"]
        return verified

    def submit_job(self, request: dict[str, Any]) -> dict[str, Any]:
        """Submits a batch job, and returns the JSON object of the job. request: the JSON body of POST /jobs."""
        return self._request_json("POST", "/jobs", request)

    def jobs(self, limit: int, state: str | None = None) -> list[dict[str, Any]]:
        """Returns at most `limit` jobs, newest first, as JSON objects. state: returns only jobs in this state."""
        query = urlencode({"limit": limit} | ({} if state is None else {"state": state}))
        found: list[dict[str, Any]] = self._request_json("GET", f"/jobs?{query}")["jobs"]
        return found

    def job(self, job_id: str) -> dict[str, Any]:
        """Returns the JSON object of one job, with its state and progress."""
        return self._request_json("GET", _path_of(job_id))

    def job_action(self, job_id: str, action: str) -> dict[str, Any]:
        """Applies an action to a job, and returns the JSON object of the job. action: "cancel", "pause" or "resume".

        A running job that is cancelled or paused stops within two seconds.
        """
        return self._request_json("POST", f"{_path_of(job_id)}/{action}")

    def job_errors(self, job_id: str, limit: int) -> list[dict[str, Any]]:
        """Returns at most `limit` rows of a job's results that have an error."""
        found: list[dict[str, Any]] = self._request_json("GET", f"{_path_of(job_id)}/errors?limit={limit}")["errors"]
        return found

    def job_results(self, job_id: str) -> list[dict[str, Any]]:
        """Returns the name and the size in bytes of each file that the job has written."""
        found: list[dict[str, Any]] = self._request_json("GET", f"{_path_of(job_id)}/results")["files"]
        return found

    def save_job_result(self, job_id: str, name: str, file: Path) -> None:
        """Downloads the result file `name` of a job to the path `file`. Creates no file if the download fails."""
        with (
            self._request("GET", f"{_path_of(job_id)}/results/{quote(name, safe='')}") as response,
            atomic_file(file) as output,
        ):
            shutil.copyfileobj(response, output)
            if output.tell() != int(response.headers["Content-Length"]):  # http.client does not check it
                raise RefusedError(
                    "incomplete", f"the download of {name} stopped after {output.tell():,} bytes: try again"
                )

    def _request_json(
        self, method: str, path: str, body: Any = None, revision: int | None = None, timeout_s: float = TIMEOUT_S
    ) -> dict[str, Any]:
        with self._request(method, path, body, revision, timeout_s) as response:
            try:
                content: dict[str, Any] = json.load(response)
            except (OSError, ValueError) as error:
                raise self._unreachable(error) from None
            return content

    def _request(
        self, method: str, path: str, body: Any = None, revision: int | None = None, timeout_s: float = TIMEOUT_S
    ) -> HTTPResponse:
        headers = {"Authorization": f"Bearer {self._token}"}
        if revision is not None:
            headers["If-Match"] = f'"{revision}"'
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers, method=method)  # noqa: S310 - see __init__
        try:
            response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout_s)  # noqa: S310
            return response
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(error.code, error.read()) from None
        except (OSError, ValueError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> RefusedError:
        reason = getattr(error, "reason", error)
        return RefusedError("unreachable", f"no operators' listener responds at {self._url}: {reason}")


def _path_of(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _refused(status: int, body: bytes) -> RefusedError:
    try:
        problem = json.loads(body)
        if status == 404 and problem["code"] == "not_found":
            return RefusedError(
                "not_found", "this port is the public listener of the server: give the port of the operators' listener"
            )
        return RefusedError(problem["code"], problem["detail"])
    except (ValueError, KeyError, TypeError):
        return RefusedError("unknown", f"the response {status} is not from Tureen: check the port")


def _read_token(directory: Path) -> str:
    try:
        return (directory / TOKEN_FILE).read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        raise RefusedError(
            "no_token",
            f"no token: give --token, set {TOKEN_VARIABLE}, or run this where {directory / TOKEN_FILE} is readable",
        ) from None
