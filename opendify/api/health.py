"""The routes that machines watch the service by."""

from flask import Flask, Response, jsonify, request

from opendify import errors
from opendify.api.middleware.auth import Authorizer
from opendify.observability.metrics import CONTENT_TYPE, Metrics
from opendify.observability.readiness import PARTS, Readiness


def add_monitoring_routes(
    app: Flask, readiness: Readiness, metrics: Metrics, access: Authorizer
) -> None:
    """Where keys are set, only an operator's opens the metrics and the details of readiness."""

    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        besides = _excluded()
        condition = readiness.check()
        is_ready = condition.is_ready(besides)
        told = {"status": "ready" if is_ready else "not ready"}
        response = jsonify(told | (condition.details() if access.can_see_details() else {}))
        response.status_code = 200 if is_ready else 503
        return response

    @app.get("/metrics")
    def all_metrics() -> Response:
        access.require_admin()
        return Response(metrics.exposition(readiness.readings()), content_type=CONTENT_TYPE)


def _excluded() -> list[str]:
    """What the caller does not ask about, named as Kubernetes' own servers have it."""
    names = request.args.getlist("exclude")
    if not set(names) <= set(PARTS):
        raise errors.InvalidRequest(
            f"'exclude' must be one of {', '.join(PARTS)}.", param="exclude"
        )
    return names
