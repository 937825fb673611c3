# By its digest where the published image is built; by its tag an offline machine has it.
ARG BASE_IMAGE=python:3.11-slim
FROM $BASE_IMAGE AS build

# A package index near you: --build-arg PIP_INDEX_URL=https://...
ARG PIP_INDEX_URL
COPY requirements.lock /tmp/requirements.lock
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/requirements.lock \
    && /opt/venv/bin/pip uninstall --yes --quiet pip setuptools


FROM $BASE_IMAGE

# A number, not a name: Kubernetes' runAsNonRoot can only judge numbers. A new named volume takes
# over the owner of the folder it is mounted on, so data/ and logs/ exist here.
RUN groupadd --gid 1000 opendify \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /app --shell /usr/sbin/nologin opendify \
    && install -d -o 1000 -g 1000 -m 0700 /app/data /app/logs

COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY main.py gunicorn_config.py start_production.sh ./
COPY opendify/ opendify/
RUN python -m compileall -q main.py opendify

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ENVIRONMENT=production \
    SERVER_HOST=0.0.0.0 \
    SERVER_PORT=5000

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="OpenDify" \
      org.opencontainers.image.description="An OpenAI-compatible proxy in front of Dify apps" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION

USER 1000:1000
EXPOSE 5000
STOPSIGNAL SIGTERM

# http.client knows no proxies. --env-file of `docker run` keeps quotes, hence the strip. The interval is
# short because `compose up --wait` waits for one; --start-interval is a parse error before Docker 25.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; port = os.environ.get('SERVER_PORT', '').strip('\\'\" ') or '5000'; link = http.client.HTTPConnection('127.0.0.1', int(port), timeout=4); link.request('GET', '/healthz'); sys.exit(link.getresponse().status != 200)"]

CMD ["gunicorn", "--config", "gunicorn_config.py", "main:app"]
