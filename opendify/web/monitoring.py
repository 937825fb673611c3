"""The routes that machines watch the service by."""

from flask import Flask, Response, jsonify

from opendify.monitoring.metrics import CONTENT_TYPE, Metrics
from opendify.monitoring.readiness import Readiness
from opendify.web.access import Access


def add_monitoring_routes(
    app: Flask, readiness: Readiness, metrics: Metrics, access: Access
) -> None:
    """Where keys are set, only an operator's opens the metrics and the details of readiness."""

    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        condition = readiness.look()
        told = {"status": "ready" if condition.is_ready else "not ready"}
        response = jsonify(told | (condition.details() if access.sees_details() else {}))
        response.status_code = 200 if condition.is_ready else 503
        return response

    @app.get("/metrics")
    def all_metrics() -> Response:
        access.require_admin()
        return Response(metrics.exposition(readiness.readings()), content_type=CONTENT_TYPE)
