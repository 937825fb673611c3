"""Admin routes: conversation mappings."""

from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, jsonify, request

from opendify import errors
from opendify.api.middleware.auth import Authorizer
from opendify.api.request_body import json_body
from opendify.conversations.admin import ConversationAdmin

DEFAULT_MAX_AGE_DAYS = 30
DEFAULT_LIMIT = 100
MAX_LISTED = 10_000


def add_admin_routes(app: Flask, admin: ConversationAdmin, authorizer: Authorizer) -> None:
    """Counts and cleanup are open if no keys are set; single mappings never are."""

    @app.get("/v1/conversation/mappings")
    def mappings() -> Response:
        is_listing = "limit" in request.args or "chat_id" in request.args
        authorizer.require_admin(always=is_listing)
        if not is_listing:
            return jsonify(admin.summary())
        found = admin.list_mappings(_limit(), request.args.get("chat_id"))
        return jsonify(admin.summary() | {"mappings": found})

    @app.delete("/v1/conversation/mappings/<conversation_id>")
    def remove_mapping(conversation_id: str) -> Response:
        authorizer.require_admin(always=True)
        return jsonify(admin.remove(conversation_id, _flag("dify")))

    @app.post("/v1/conversation/cleanup")
    def cleanup() -> Response:
        authorizer.require_admin()
        return jsonify(admin.cleanup(_max_age_days(json_body(may_be_empty=True))))


def _limit() -> int:
    value = request.args.get("limit", str(DEFAULT_LIMIT))
    is_number = value.isascii() and value.isdigit() and len(value) < 10
    if not is_number or not 1 <= int(value) <= MAX_LISTED:
        raise errors.InvalidRequest(
            f"'limit' must be a whole number from 1 to {MAX_LISTED}.", param="limit"
        )
    return int(value)


def _flag(name: str) -> bool:
    value = request.args.get(name, "false")
    if value not in ("true", "false"):
        raise errors.InvalidRequest(f"'{name}' must be true or false.", param=name)
    return value == "true"


def _max_age_days(body: Mapping[str, Any]) -> float:
    days = body.get("max_age_days", DEFAULT_MAX_AGE_DAYS)
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 <= days <= 36500:
        raise errors.InvalidRequest(
            "'max_age_days' must be a number of days from 0 to 36500.", param="max_age_days"
        )
    return days
