# The ingestion service. `docker build -t binance-ingestion .`; without a Docker engine: `make image`.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /app
COPY requirements.txt ./
# Without pip in the environment: what installs packages stays in this stage. Wheels only: nothing is compiled here.
RUN python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install \
        --no-cache-dir --disable-pip-version-check --only-binary=:all: --requirement requirements.txt
COPY main.py setup_kafka.py consumer_example.py monitoring.py dead_letters.py ./
COPY config/ config/
COPY src/ src/
# The bytecode is made here: the service itself may write nothing.
RUN python -m compileall -q --invalidation-mode unchecked-hash . \
    && rm requirements.txt

FROM ${PYTHON_IMAGE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="binance-ingestion" \
      org.opencontainers.image.description="Binance market data into Apache Kafka: complete, fast, accounted for" \
      org.opencontainers.image.version="1.0.0" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MONITORING_HOST=0.0.0.0
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# The one place that may be written to.
RUN mkdir data && chown 10001:10001 data
VOLUME ["/app/data"]
# A number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# A spool of several gigabytes is read once before the service answers, hence the long start period; it ends with the
# first good answer.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-IS", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:%s/health' % (os.environ.get('MONITORING_PORT') or 8000), timeout=4)"]
CMD ["python", "main.py"]
