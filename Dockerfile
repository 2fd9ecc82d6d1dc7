# The recorder's image: built from the locked versions with their hashes, run as an unprivileged user.
# tests/e2e/test_image_steps.py runs these steps without Docker.

FROM python:3.13-slim-bookworm AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# By themselves, so that a change of the source does not install the dependencies again.
COPY requirements.lock ./
RUN python -m venv /opt/tickvault \
 && /opt/tickvault/bin/python -m pip install --require-hashes --requirement requirements.lock
COPY . .
RUN /opt/tickvault/bin/python -m pip install --no-deps --no-build-isolation .

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="tickvault" \
      org.opencontainers.image.description="Records a broker's live market data feed and loses none of it." \
      org.opencontainers.image.licenses="Apache-2.0"
# The number is fixed, so that a folder of the host can be given to it. New volumes take over owner and mode.
RUN groupadd --gid 10001 tickvault \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin tickvault \
 && install --directory --owner=10001 --group=10001 --mode=0700 /data \
 && install --directory --owner=10001 --group=10001 --mode=0755 /run/tickvault
COPY --from=builder /opt/tickvault /opt/tickvault
COPY deploy/healthcheck.py deploy/make_secrets.py /opt/tickvault/deploy/
# Loopback of the container: a published port reaches nothing until TICKVAULT_HTTP and TICKVAULT_HTTP_TOKEN say so.
ENV PATH="/opt/tickvault/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    TICKVAULT_DATA_DIR=/data \
    TICKVAULT_HTTP=127.0.0.1:8000
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "/opt/tickvault/deploy/healthcheck.py"]
# No init process: tickvault starts no children and handles SIGTERM itself.
ENTRYPOINT ["tickvault"]
CMD ["run"]
