"""The routes of the operator's listener. Every one asks for a bearer token; a change also for the revision it is on.

Who may do what is asked of by the routes themselves, never by looking at a path.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import tureen
from serve.admin.auth import Operator, authenticate, read_json_body, refuse_unknown_parameters
from serve.admin.expected_accuracy import expected_accuracy
from serve.admin.job_routes import add_job_routes
from serve.admin.operations import AdminOperations
from serve.api.console.console_routes import add_console
from serve.control.change import Reason, add_key, apply_change, cancel_plan, parse_change, roll_back
from serve.control.credential_store import Credential, digest, make_secret
from serve.control.revision_diff import describe_changes
from serve.control.revision_store import Revision
from serve.control.settings_state import FrozenModel, KeyPolicy, SettingsState
from serve.errors import (
    AdminListenerError,
    ControlStoreError,
    IfMatchRequiredError,
    InvalidChangeError,
    InvalidParameterError,
    StaleRevisionError,
)
from serve.http.client_identity import only_value
from serve.http.problems import INTERNAL, headers_of, http_kind, kind_of, problem_response
from serve.http.request_log import RequestLogMiddleware, access_fields
from tureen.errors import TureenError

MAX_HISTORY = 1000
MAX_WAIT_S = 60
MAX_REVISION = 2**31 - 1
V = TypeVar("V", bound=FrozenModel)
# What these say themselves is for the log: it names paths, addresses and a database's own words.
_OPERATORS_OWN: dict[type[TureenError], str] = {
    ControlStoreError: "the store of the operator's settings cannot be used now, and nothing can be changed until it "
    "can: the server's log has the reason; what was last known stays in force",
    AdminListenerError: "others can reach this address, and no credential was made for them: the server's log says how",
}
_ETAG = re.compile(r'"([0-9]{1,18})"')


class RollbackRequest(FrozenModel):
    """Back to the settings of an earlier revision."""

    revision: Annotated[int, Query(strict=True, ge=0, le=MAX_REVISION)]
    reason: Reason


class KeyRequest(FrozenModel):
    """An API key for a policy."""

    policy: str
    reason: Reason


def create_admin_app(desk: AdminOperations) -> FastAPI:
    """The application of one desk."""
    app = FastAPI(
        title="Tureen, for operators",
        version=tureen.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.desk = desk
    app.add_middleware(RequestLogMiddleware, metrics=desk.metrics)
    app.add_exception_handler(TureenError, _problem)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _query_problem)

    router = APIRouter(dependencies=[Depends(authenticate), Depends(refuse_unknown_parameters)])

    @router.get("/admin/me")
    async def me(who: Annotated[Credential, Depends(authenticate)]) -> dict[str, str]:
        return {"name": who.name, "role": who.role}

    @router.get("/admin/beta")
    async def beta(
        after: Annotated[int | None, Query(ge=0)] = None, wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0
    ) -> Response:
        if after is not None:
            await desk.plane.wait_beyond(after, wait_s)
        return _state(desk, desk.plane.head)

    @router.put("/admin/beta")
    async def change(request: Request, who: Operator, dry_run: bool = False) -> Response:
        wanted = parse_change(await read_json_body(request))
        in_force = desk.effective(desk.plane.state)

        def after(state: SettingsState) -> SettingsState:
            if in_force is None:
                desk.refuse_beta(wanted)
            return apply_change(state, wanted, who=who.name, now=datetime.now(UTC), in_force=in_force or 0.0)

        return await _write(desk, request, who, "set", wanted.reason, after, dry_run=dry_run)

    @router.post("/admin/beta/rollback")
    async def rollback(request: Request, who: Operator, dry_run: bool = False) -> Response:
        wanted = _parsed(RollbackRequest, await read_json_body(request), "a revision and a reason")
        earlier = (await asyncio.to_thread(desk.store.revision, wanted.revision)).state
        return await _write(
            desk,
            request,
            who,
            f"rollback to {wanted.revision}",
            wanted.reason,
            lambda state: roll_back(state, earlier),
            dry_run=dry_run,
        )

    @router.delete("/admin/beta/pending/{plan_id}")
    async def cancel(request: Request, plan_id: str, who: Operator, reason: Annotated[Reason, Query()]) -> Response:
        return await _write(desk, request, who, "cancel", reason, lambda state: cancel_plan(state, plan_id))

    @router.get("/admin/beta/history")
    async def history(
        limit: Annotated[int, Query(ge=1, le=MAX_HISTORY)] = 50,
        before: Annotated[int | None, Query(ge=1, le=MAX_REVISION)] = None,
    ) -> JSONResponse:
        desk.plane.check()
        rows = await asyncio.to_thread(desk.store.history, limit, before)
        sides = [(_public(SettingsState.model_validate_json(row.before)), _public(row.state)) for row in rows]
        shown = [
            {**asdict(row), "before": before, "after": after, "changes": list(describe_changes(before, after))}
            for row, (before, after) in zip(rows, sides, strict=True)
        ]
        more = rows[-1].revision if rows and rows[-1].revision > 1 else None
        return JSONResponse({"revisions": shown, "next_before": more})

    @router.get("/admin/beta/history/verify")
    async def verify() -> dict[str, int]:
        desk.plane.check()
        return {"verified": await asyncio.to_thread(desk.store.verify)}

    @router.put("/admin/keys/{name}")
    async def make_key(request: Request, name: str, who: Operator) -> Response:
        wanted = _parsed(KeyRequest, await read_json_body(request), "a policy and a reason")
        secret = make_secret("tureen_key_")
        try:
            key = KeyPolicy(name=name, policy=wanted.policy)
        except ValueError:
            raise InvalidChangeError("a key's name and policy are of a-z, 0-9, - and _") from None
        answer = await _write(
            desk, request, who, "make key", wanted.reason, lambda state: add_key(state, digest(secret), key)
        )
        return JSONResponse(
            {"name": name, "policy": key.policy, "key": secret}, headers={"ETag": answer.headers["etag"]}
        )

    @router.delete("/admin/keys/{name}")
    async def remove_key(request: Request, name: str, who: Operator, reason: Annotated[Reason, Query()]) -> Response:
        return await _write(desk, request, who, "remove key", reason, lambda state: remove_key(state, name))

    @router.get("/metrics")
    async def metrics() -> Response:
        body, media_type = desk.metrics.render()
        return Response(body, media_type=media_type)

    add_job_routes(router, desk)
    app.include_router(router)
    add_console(app, desk.shown, is_operators=True)
    return app


async def _write(
    desk: AdminOperations,
    request: Request,
    who: Credential,
    action: str,
    reason: str,
    after: Callable[[SettingsState], SettingsState],
    *,
    dry_run: bool = False,
) -> Response:
    """Make the change on the revision that If-Match names; raises IfMatchRequiredError, StaleRevisionError and more."""
    match = _ETAG.fullmatch(only_value("If-Match", request.headers.getlist("if-match")) or "")
    if match is None:
        raise IfMatchRequiredError
    head = desk.plane.head
    if int(match[1]) != head.revision:
        await desk.plane.refresh()  # a change elsewhere may not have come here yet
        desk.plane.check()
        head = desk.plane.head
        if int(match[1]) != head.revision:
            raise StaleRevisionError(head.revision)
    state = after(head.state)
    before = expected_accuracy(desk.manifest, desk.effective(head.state))
    if dry_run:
        return _state(desk, head, state, dry_run=True, before=before)
    row = await desk.plane.append(head, state, who=who.name, action=action, reason=reason)
    await desk.followed(row.revision)
    return _state(desk, row, before=before)


def _state(desk: AdminOperations, row: Revision, state: SettingsState | None = None, **more: Any) -> Response:
    """What is in force as of that revision, or would be, as clients see it."""
    state = state or row.state
    manifest, beta = desk.manifest, desk.effective(state)
    unreachable = desk.plane.unreachable_since
    content = {
        "revision": row.revision,
        **_public(state),
        "default_beta": beta,
        "default_beta_source": desk.own_source if state.default_beta is None else "operator",
        "changed": {name: getattr(row, name) for name in ("at", "who", "action", "reason")} if row.revision else None,
        "model": {"name": manifest.name, "version": manifest.version},
        "expected": expected_accuracy(manifest, beta),
        "workers": [asdict(worker) for worker in desk.workers()],
        "store": {
            "is_reachable": unreachable is None,
            "unreachable_since": None if unreachable is None else unreachable.isoformat(),
        },
        **more,
    }
    return JSONResponse(content, headers={"ETag": f'"{row.revision}"', "Cache-Control": "no-store"})


def _public(state: SettingsState) -> dict[str, Any]:
    """The settings without the hashes of API keys."""
    content = state.model_dump(mode="json", exclude={"api_keys"})
    return {**content, "keys": [key.model_dump() for key in state.api_keys.values()]}


def _parsed(model: type[V], document: Any, what: str) -> V:
    try:
        return model.model_validate(document)
    except ValueError:
        raise InvalidChangeError(f"the body is no JSON object of {what}") from None


async def _problem(request: Request, error: Exception) -> JSONResponse:
    kind = kind_of(error)
    if kind is INTERNAL:
        raise error
    access_fields(request.scope)["code"] = kind.code
    detail = next((text for cls, text in _OPERATORS_OWN.items() if isinstance(error, cls)), str(error))
    return problem_response(kind, detail, headers_of(error))


async def _http_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = http_kind(error.status_code)
    access_fields(request.scope)["code"] = kind.code
    return problem_response(kind, kind.title, dict(error.headers or {}))


async def _query_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    name = str(error.errors()[0]["loc"][-1])[:40]
    return await _problem(request, InvalidParameterError(f"the parameter {name} is not what it may be"))
