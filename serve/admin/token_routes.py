"""The routes under /admin/tokens: add, list, show and remove the tokens of the operators.

The tokens are part of the settings. So their history is that of the settings, and a rollback restores them too. No
response contains the vector of a token.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from serve.admin.auth import Operator, read_body
from serve.admin.operations import AdminOperations
from serve.admin.settings_writes import revision_to_change, write_settings
from serve.control.change import Reason, add_token, remove_token
from serve.control.settings_state import SettingsState, tokens_of
from serve.errors import InvalidChangeError, UnknownOperatorTokenError
from tureen.bundle.token_file import MAX_TOKEN_BYTES, parse_token
from tureen.errors import TokenFileError

NO_BODY = "the body must be a token file, which `tureen adapt` writes"


def add_token_routes(router: APIRouter, operations: AdminOperations) -> None:
    """Adds the routes to the router. Each route requires a bearer token."""

    @router.get("/admin/tokens")
    async def tokens() -> dict[str, Any]:
        head = operations.replica.head
        described = await asyncio.to_thread(_describe_all, operations, head.state)
        return {"revision": head.revision, "tokens": described}

    @router.get("/admin/tokens/{name}")
    async def token(name: str) -> dict[str, Any]:
        head = operations.replica.head
        if name not in head.state.tokens:
            raise UnknownOperatorTokenError(name)
        described = await asyncio.to_thread(_describe, operations, head.state, name, _parked(operations))
        return {"revision": head.revision, **described}

    @router.put("/admin/tokens/{name}")
    async def put(
        request: Request,
        name: str,
        operator: Operator,
        reason: Annotated[Reason, Query()],
        replace: bool = False,
        dry_run: bool = False,
    ) -> Response:
        content = await read_body(request, MAX_TOKEN_BYTES)
        if not content:
            raise InvalidChangeError(NO_BODY)
        record = parse_token(content, "the body").record
        if record.name != name:
            raise InvalidChangeError(f"the token in the body has the name {record.name}, not {name[:63]}")
        sha256 = hashlib.sha256(content).hexdigest()

        def after(state: SettingsState) -> SettingsState:
            return add_token(state, name, sha256, limit=operations.max_tokens, may_replace=replace)

        after((await revision_to_change(operations, request)).state)  # before the engine runs
        await asyncio.to_thread(operations.token_cache.write, content)  # where the workers read it
        try:
            await operations.check_token(sha256)
            return await write_settings(
                operations,
                request,
                operator,
                "add token",
                reason,
                after,
                dry_run=dry_run,
                token_files={sha256: content},
            )
        finally:
            if sha256 not in operations.replica.state.tokens.values():
                await asyncio.to_thread(operations.token_cache.remove, sha256)

    @router.delete("/admin/tokens/{name}")
    async def delete(
        request: Request, name: str, operator: Operator, reason: Annotated[Reason, Query()], dry_run: bool = False
    ) -> Response:
        return await write_settings(
            operations,
            request,
            operator,
            "remove token",
            reason,
            lambda state: remove_token(state, name),
            dry_run=dry_run,
        )


def _describe_all(operations: AdminOperations, state: SettingsState) -> list[dict[str, Any]]:
    parked = _parked(operations)
    return [_describe(operations, state, name, parked) for name in sorted(state.tokens)]


def _describe(
    operations: AdminOperations, state: SettingsState, name: str, parked: Mapping[str, str]
) -> dict[str, Any]:
    """Returns a token as a JSON object: its use, and the record in its file. The record is null without a file."""
    sha256 = state.tokens[name]
    try:
        record = operations.token_cache.read(sha256).record.model_dump(mode="json")
    except TokenFileError:
        record = None
    return {
        "name": name,
        "sha256": sha256,
        "parked": parked.get(name),
        "policies": sorted(policy for policy, choice in state.policies.items() if name in tokens_of(choice)),
        "record": record,
    }


def _parked(operations: AdminOperations) -> dict[str, str]:
    """Returns why a process cannot use a token, by the name of the token."""
    return {name: reason for worker in operations.workers() for name, reason in worker.parked_tokens.items()}
