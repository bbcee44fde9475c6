"""Writes a change of the operator's settings, and builds the response with the settings after it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from serve.admin.expected_accuracy import expected_accuracy
from serve.admin.operations import AdminOperations
from serve.control.credential_store import Credential
from serve.control.revision_store import Revision
from serve.control.settings_state import SettingsState
from serve.control.worker_state import WorkerState
from serve.errors import IfMatchRequiredError, StaleRevisionError
from serve.http.client_identity import only_value

_ETAG = re.compile(r'"([0-9]{1,18})"')


async def write_settings(
    operations: AdminOperations,
    request: Request,
    operator: Credential,
    action: str,
    reason: str,
    after: Callable[[SettingsState], SettingsState],
    *,
    dry_run: bool = False,
    token_files: Mapping[str, bytes] = MappingProxyType({}),
) -> Response:
    """Changes the settings, and returns the response with the new settings. If-Match must name the revision in force.

    action, reason: for the history. after: computes the changed settings from those in force. dry_run: if True, does
    not store the change. token_files: contents of the added token files by SHA-256, which the token cache already has.
    Raises IfMatchRequiredError if the header is absent or invalid, StaleRevisionError if the header names another
    revision than the one in force, ControlStoreError if the store is unreachable, and the errors of `after`.
    """
    head = await revision_to_change(operations, request)
    state = after(head.state)
    before = expected_accuracy(operations.manifest, operations.default_beta(head.state))
    if dry_run:
        return settings_response(operations, head, state, dry_run=True, before=before)
    row = await operations.replica.append(
        head, state, who=operator.name, action=action, reason=reason, token_files=token_files
    )
    await operations.wait_until_applied(row.revision)
    return settings_response(operations, row, before=before)


async def revision_to_change(operations: AdminOperations, request: Request) -> Revision:
    """Returns the revision in force, which the header If-Match of the request names.

    Raises IfMatchRequiredError if the header is absent or invalid, StaleRevisionError if the header names another
    revision, and ControlStoreError if the store is unreachable.
    """
    match = _ETAG.fullmatch(only_value("If-Match", request.headers.getlist("if-match")) or "")
    if match is None:
        raise IfMatchRequiredError
    head = operations.replica.head
    if int(match[1]) != head.revision:
        await operations.replica.refresh()  # another server may have changed the settings
        operations.replica.raise_if_unreachable()
        head = operations.replica.head
        if int(match[1]) != head.revision:
            raise StaleRevisionError(head.revision)
    return head


def settings_response(
    operations: AdminOperations, row: Revision, state: SettingsState | None = None, **more: Any
) -> Response:
    """Returns the JSON response with settings, the accuracy expected at the default β, and the state of each worker.

    row: the revision in force, with the settings to show. state: settings of a dry run, to show instead. more: further
    keys of the JSON object.
    """
    state = state or row.state
    manifest, beta = operations.manifest, operations.default_beta(state)
    unreachable = operations.replica.unreachable_since
    content = {
        "revision": row.revision,
        **public_settings(state),
        "default_beta": beta,
        "default_strength": None if beta is None else manifest.strength.strength_at(beta),
        "default_beta_source": operations.default_beta_source(state),
        "changed": {name: getattr(row, name) for name in ("at", "who", "action", "reason")} if row.revision else None,
        "model": {"name": manifest.name, "version": manifest.version},
        "expected": expected_accuracy(manifest, beta),
        "workers": [_worker(state) for state in operations.workers()],
        "store": {
            "is_reachable": unreachable is None,
            "unreachable_since": None if unreachable is None else unreachable.isoformat(),
        },
        **more,
    }
    return JSONResponse(content, headers={"ETag": f'"{row.revision}"', "Cache-Control": "no-store"})


def public_settings(state: SettingsState) -> dict[str, Any]:
    """Returns the settings as a JSON object.

    It has the name and policy of each API key, but no hash of a key. It has the number of tokens in place of the
    tokens, because there may be thousands.
    """
    content = state.model_dump(mode="json", exclude={"api_keys", "tokens"})
    return {**content, "tokens": len(state.tokens), "keys": [key.model_dump() for key in state.api_keys.values()]}


def _worker(state: WorkerState) -> dict[str, Any]:
    """Returns the JSON object of a worker. It has no names of tokens but the parked ones, as there may be thousands."""
    return {name: value for name, value in asdict(state).items() if name != "own_tokens"}
