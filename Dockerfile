# syntax=docker/dockerfile:1
# The service with its bundled models: no compiler, no tests and no pip cache in the final stage.
#
#   docker build -t vouch .
#   docker run --rm -p 8000:8000 --read-only --tmpfs /tmp \
#       -v "$PWD/keys:/run/secrets/vouch-keys:ro" -e VOUCH_API_KEYS_FILE=/run/secrets/vouch-keys vouch

ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# PyTorch's index of CPU builds; empty: only pip's usual index, whose Linux build of torch brings CUDA along.
# For CUDA: https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras, such as [remote], and further packages, such as s3fs; none by default.
ARG EXTRAS=
ARG MORE=
WORKDIR /src
RUN python3 -m venv /opt/vouch
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt pyproject.toml README.md LICENSE ./
# The dependencies are a layer of their own: a change of ours does not fetch torch again.
RUN mkdir service && touch service/__init__.py \
    && /opt/vouch/bin/pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} ".${EXTRAS}" ${MORE} \
    && /opt/vouch/bin/pip uninstall -y vouch-service && rm -rf service build vouch_service.egg-info
COPY setup.py .
COPY service service
# Tests of libraries, and the headers and test programs of torch, are for who builds against them.
RUN /opt/vouch/bin/pip install --no-deps . && /opt/vouch/bin/pip uninstall -y pip setuptools \
    && find /opt/vouch/lib -type d -name tests -prune -exec rm -rf {} + \
    && rm -rf /opt/vouch/lib/python3*/site-packages/torch/include /opt/vouch/lib/python3*/site-packages/torch/test

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="vouch" \
    org.opencontainers.image.description="A service that vouches for data" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 vouch && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin vouch
COPY --from=build /opt/vouch /opt/vouch
COPY --chown=10001:10001 model_store /model_store
ENV PATH=/opt/vouch/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    VOUCH_HOST=0.0.0.0 VOUCH_PORT=8000 VOUCH_STORE=/model_store VOUCH_STORE_CACHE=/tmp/vouch
USER 10001:10001
VOLUME /model_store
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['VOUCH_PORT']}/readyz\", timeout=2)"]
ENTRYPOINT ["vouch"]
CMD ["serve"]
