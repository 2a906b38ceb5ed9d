# The image of workers, relays and commands. Build: docker build -t millstream .
# Nothing is installed that deploy/image/*.lock does not name with its hash; `make lock` writes both files.
ARG PYTHON=3.11.15

# python-lzf comes as source: this stage has the compiler.
FROM python:${PYTHON}-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY deploy/image/build.lock deploy/image/requirements.lock ./
RUN pip install --require-hashes -r build.lock \
    && pip wheel --no-deps --no-build-isolation --require-hashes -r requirements.lock -w /wheels
COPY pyproject.toml README.md ./
COPY millstream millstream
COPY schemas schemas
COPY sources sources
COPY sinks sinks
COPY tables tables
COPY streams streams
RUN pip wheel --no-deps --no-build-isolation . -w /wheels \
    && python -m venv --without-pip /opt/millstream \
    && pip --python /opt/millstream/bin/python install --no-deps --no-index /wheels/*.whl

FROM python:${PYTHON}-slim-bookworm
LABEL org.opencontainers.image.title="millstream" \
      org.opencontainers.image.description="Kafka into Parquet, ClickHouse and Postgres, exactly once"
# A fixed number, so that volumes and `runAsUser` can name it.
RUN groupadd --gid 10001 millstream \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/millstream --shell /usr/sbin/nologin millstream \
    && install -d -o 10001 -g 10001 /var/lib/millstream /srv/dumps
COPY --from=build /opt/millstream /opt/millstream
# Bytecode is compiled above: nothing is written outside the data directory and /tmp, so / may be read-only.
ENV PATH=/opt/millstream/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MILLSTREAM_DATA_DIR=/var/lib/millstream \
    MILLSTREAM_LOG_FORMAT=json \
    MILLSTREAM_WEB_BIND=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/millstream
EXPOSE 6066
# Whether the worker's event loop turns. Whether it may be given work is /readyz, for whoever schedules.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('MILLSTREAM_WEB_PORT', 6066)}/livez\", timeout=4)"]
CMD ["faust", "-A", "streams", "worker"]
