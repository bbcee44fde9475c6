"""The routes under /admin: read and change the operator's settings, and read their history.

Each route requires a bearer token. A change also requires the header If-Match with the number of the revision in force.
Each route declares the role that it requires; no rule depends on a path.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from serve.admin.auth import Operator, authenticate, read_json_body
from serve.admin.operations import AdminOperations
from serve.admin.settings_writes import public_settings, settings_response, write_settings
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
from serve.control.revision_diff import describe_changes, describe_token_changes
from serve.control.revision_store import Revision
from serve.control.settings_state import FrozenModel, KeyPolicy, SettingsState
from serve.errors import InvalidChangeError

MAX_HISTORY = 1000
MAX_WAIT_S = 60
MAX_REVISION = 2**31 - 1
V = TypeVar("V", bound=FrozenModel)


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
        return settings_response(operations, operations.replica.head)

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

        return await write_settings(operations, request, operator, "set", requested.reason, after, dry_run=dry_run)

    @router.post("/admin/beta/rollback")
    async def rollback(request: Request, operator: Operator, dry_run: bool = False) -> Response:
        requested = _parse(RollbackRequest, await read_json_body(request), "a revision and a reason")
        earlier = (await asyncio.to_thread(operations.store.revision, requested.revision)).state
        return await write_settings(
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
        return await write_settings(
            operations, request, operator, "cancel", reason, lambda state: cancel_plan(state, plan_id)
        )

    @router.get("/admin/beta/history")
    async def history(
        limit: Annotated[int, Query(ge=1, le=MAX_HISTORY)] = 50,
        before: Annotated[int | None, Query(ge=1, le=MAX_REVISION)] = None,
    ) -> JSONResponse:
        operations.replica.raise_if_unreachable()
        rows, revisions = await asyncio.to_thread(_read_history, operations, limit, before)
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
        response = await write_settings(
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
        return await write_settings(
            operations, request, operator, "remove key", reason, lambda state: remove_api_key(state, name)
        )


def _read_history(
    operations: AdminOperations, limit: int, before: int | None
) -> tuple[list[Revision], list[dict[str, Any]]]:
    rows = operations.store.history(limit, before)
    return rows, [_public_revision(row) for row in rows]


def _public_revision(row: Revision) -> dict[str, Any]:
    """Returns a revision as a JSON object, with the settings before and after it and its changes in words."""
    earlier, later = SettingsState.model_validate_json(row.before), row.state
    before, after = public_settings(earlier), public_settings(later)
    changes = [*describe_changes(before, after), *describe_token_changes(earlier.tokens, later.tokens)]
    return {**asdict(row), "before": before, "after": after, "changes": changes}


def _parse(model: type[V], document: Any, what: str) -> V:
    try:
        return model.model_validate(document)
    except ValueError:
        raise InvalidChangeError(f"the body must be a JSON object with {what}") from None
