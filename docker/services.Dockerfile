# The image of frontend, encoder and decoder, of the store's agents and coordinator, of fetch and
# smoke. Context: the repository.
# Only what a Docker of today knows by itself: no frontend of another syntax is pulled.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
WORKDIR /opt/src
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m pip install --constraint constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY services/proa services/proa
COPY kernels/proa_kernels kernels/proa_kernels
COPY chaos/proa_chaos chaos/proa_chaos
# Everything becomes a wheel first, and is installed from there alone: nothing by the name of proa
# comes from an index. redis and hiredis are what the extra `store` has beside a server of its own,
# which pods have an image for.
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m pip wheel --constraint constraints.txt --no-build-isolation \
    --wheel-dir /opt/wheels '.[cluster]' hiredis redis
RUN python3 -m venv --without-pip /opt/venv
RUN python3 -m pip --python /opt/venv/bin/python install --no-index \
    --find-links /opt/wheels 'proa[cluster]' hiredis redis
RUN python3 -m pip --python /opt/venv/bin/python check

FROM ${PYTHON_IMAGE} AS services
COPY --from=builder /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/proa
USER 65532:65532
ENTRYPOINT ["proa-service"]
