"""Routes for monitoring: liveness, readiness and metrics."""

from flask import Flask, Response, jsonify, request

from opendify import errors
from opendify.api.middleware.auth import Authorizer
from opendify.observability.metrics import CONTENT_TYPE, Metrics
from opendify.observability.readiness import PARTS, Readiness


def add_health_routes(
    app: Flask, readiness: Readiness, metrics: Metrics, authorizer: Authorizer
) -> None:
    """If keys are set, metrics and readiness details require an admin key."""

    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        excluded = _excluded()
        report = readiness.check()
        is_ready = report.is_ready(excluded)
        body = {"status": "ready" if is_ready else "not ready"}
        response = jsonify(body | (report.details() if authorizer.can_see_details() else {}))
        response.status_code = 200 if is_ready else 503
        return response

    @app.get("/metrics")
    def all_metrics() -> Response:
        authorizer.require_admin()
        return Response(metrics.exposition(readiness.readings()), content_type=CONTENT_TYPE)


def _excluded() -> list[str]:
    """The parts to leave out of the check; named ``exclude`` as in Kubernetes' own servers."""
    names = request.args.getlist("exclude")
    if not set(names) <= set(PARTS):
        raise errors.InvalidRequest(
            f"'exclude' must be one of {', '.join(PARTS)}.", param="exclude"
        )
    return names
