"""The routes under /admin: read and change the operator's settings, and read their history.

Each route requires a bearer token. A change also requires the header If-Match with the number of the revision in force.
Each route declares the role that it requires; no rule depends on a path.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from serve.admin.auth import Operator, authenticate, read_json_body
from serve.admin.expected_accuracy import expected_accuracy
from serve.admin.operations import AdminOperations
from serve.control.change import (
    Reason,
    add_api_key,
    apply_change,
    cancel_plan,
    parse_change,
    remove_api_key,
    roll_back,
)
from serve.control.credential_store import Credential, digest, make_secret
from serve.control.revision_diff import describe_changes
from serve.control.revision_store import Revision
from serve.control.settings_state import FrozenModel, KeyPolicy, SettingsState
from serve.errors import (
    IfMatchRequiredError,
    InvalidChangeError,
    StaleRevisionError,
)
from serve.http.client_identity import only_value

MAX_HISTORY = 1000
MAX_WAIT_S = 60
MAX_REVISION = 2**31 - 1
V = TypeVar("V", bound=FrozenModel)
_ETAG = re.compile(r'"([0-9]{1,18})"')


class RollbackRequest(FrozenModel):
    """The body of a rollback request. revision: the number of the revision whose settings are restored."""

    revision: Annotated[int, Query(strict=True, ge=0, le=MAX_REVISION)]
    reason: Reason


class KeyRequest(FrozenModel):
    """The body of a request for a new API key. policy: the policy that chooses β for requests with this key."""

    policy: str
    reason: Reason


def add_settings_routes(router: APIRouter, operations: AdminOperations) -> None:
    """Adds the routes under /admin to the router. Each route requires a bearer token."""

    @router.get("/admin/me")
    async def me(credential: Annotated[Credential, Depends(authenticate)]) -> dict[str, str]:
        return {"name": credential.name, "role": credential.role}

    @router.get("/admin/beta")
    async def beta(
        after: Annotated[int | None, Query(ge=0)] = None, wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0
    ) -> Response:
        if after is not None:
            await operations.replica.wait_for_revision_after(after, wait_s)
        return _state_response(operations, operations.replica.head)

    @router.put("/admin/beta")
    async def change(request: Request, operator: Operator, dry_run: bool = False) -> Response:
        requested = parse_change(await read_json_body(request))
        in_force = operations.default_beta(operations.replica.state)

        def after(state: SettingsState) -> SettingsState:
            if in_force is None:
                operations.refuse_beta(requested)
            return apply_change(
                state,
                requested,
                who=operator.name,
                now=datetime.now(UTC),
                in_force=in_force or 0.0,
                curve=operations.manifest.strength,
            )

        return await _write(operations, request, operator, "set", requested.reason, after, dry_run=dry_run)

    @router.post("/admin/beta/rollback")
    async def rollback(request: Request, operator: Operator, dry_run: bool = False) -> Response:
        requested = _parse(RollbackRequest, await read_json_body(request), "a revision and a reason")
        earlier = (await asyncio.to_thread(operations.store.revision, requested.revision)).state
        return await _write(
            operations,
            request,
            operator,
            f"rollback to {requested.revision}",
            requested.reason,
            lambda state: roll_back(state, earlier),
            dry_run=dry_run,
        )

    @router.delete("/admin/beta/pending/{plan_id}")
    async def cancel(
        request: Request, plan_id: str, operator: Operator, reason: Annotated[Reason, Query()]
    ) -> Response:
        return await _write(operations, request, operator, "cancel", reason, lambda state: cancel_plan(state, plan_id))

    @router.get("/admin/beta/history")
    async def history(
        limit: Annotated[int, Query(ge=1, le=MAX_HISTORY)] = 50,
        before: Annotated[int | None, Query(ge=1, le=MAX_REVISION)] = None,
    ) -> JSONResponse:
        operations.replica.raise_if_unreachable()
        rows = await asyncio.to_thread(operations.store.history, limit, before)
        states = [(_public(SettingsState.model_validate_json(row.before)), _public(row.state)) for row in rows]
        revisions = [
            {**asdict(row), "before": before, "after": after, "changes": list(describe_changes(before, after))}
            for row, (before, after) in zip(rows, states, strict=True)
        ]
        next_before = rows[-1].revision if rows and rows[-1].revision > 1 else None
        return JSONResponse({"revisions": revisions, "next_before": next_before})

    @router.get("/admin/beta/history/verify")
    async def verify() -> dict[str, int]:
        operations.replica.raise_if_unreachable()
        return {"verified": await asyncio.to_thread(operations.store.verify)}

    @router.put("/admin/keys/{name}")
    async def make_key(request: Request, name: str, operator: Operator) -> Response:
        requested = _parse(KeyRequest, await read_json_body(request), "a policy and a reason")
        secret = make_secret("tureen_key_")
        try:
            key = KeyPolicy(name=name, policy=requested.policy)
        except ValueError:
            raise InvalidChangeError("the name and policy of a key have the characters a-z, 0-9, - and _") from None
        response = await _write(
            operations,
            request,
            operator,
            "make key",
            requested.reason,
            lambda state: add_api_key(state, digest(secret), key),
        )
        return JSONResponse(
            {"name": name, "policy": key.policy, "key": secret}, headers={"ETag": response.headers["etag"]}
        )

    @router.delete("/admin/keys/{name}")
    async def remove_key(
        request: Request, name: str, operator: Operator, reason: Annotated[Reason, Query()]
    ) -> Response:
        return await _write(
            operations, request, operator, "remove key", reason, lambda state: remove_api_key(state, name)
        )


async def _write(
    operations: AdminOperations,
    request: Request,
    operator: Credential,
    action: str,
    reason: str,
    after: Callable[[SettingsState], SettingsState],
    *,
    dry_run: bool = False,
) -> Response:
    """Changes the settings, and returns the response with the new settings. If-Match must name the revision in force.

    action, reason: for the history. after: computes the changed settings from those in force. dry_run: if True, does
    not store the change.
    Raises IfMatchRequiredError if the header is absent or invalid, StaleRevisionError if the header names another
    revision than the one in force, ControlStoreError if the store is unreachable, and the errors of `after`.
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
    state = after(head.state)
    before = expected_accuracy(operations.manifest, operations.default_beta(head.state))
    if dry_run:
        return _state_response(operations, head, state, dry_run=True, before=before)
    row = await operations.replica.append(head, state, who=operator.name, action=action, reason=reason)
    await operations.wait_until_applied(row.revision)
    return _state_response(operations, row, before=before)


def _state_response(
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
        **_public(state),
        "default_beta": beta,
        "default_strength": None if beta is None else manifest.strength.strength_at(beta),
        "default_beta_source": operations.default_beta_source(state),
        "changed": {name: getattr(row, name) for name in ("at", "who", "action", "reason")} if row.revision else None,
        "model": {"name": manifest.name, "version": manifest.version},
        "expected": expected_accuracy(manifest, beta),
        "workers": [asdict(worker) for worker in operations.workers()],
        "store": {
            "is_reachable": unreachable is None,
            "unreachable_since": None if unreachable is None else unreachable.isoformat(),
        },
        **more,
    }
    return JSONResponse(content, headers={"ETag": f'"{row.revision}"', "Cache-Control": "no-store"})


def _public(state: SettingsState) -> dict[str, Any]:
    """Returns the settings as a JSON object. It has the name and policy of each API key, but no hash of a key."""
    content = state.model_dump(mode="json", exclude={"api_keys"})
    return {**content, "keys": [key.model_dump() for key in state.api_keys.values()]}


def _parse(model: type[V], document: Any, what: str) -> V:
    try:
        return model.model_validate(document)
    except ValueError:
        raise InvalidChangeError(f"the body must be a JSON object with {what}") from None
