# The worker's images: `cpu` with the Triton of a wheel, `gpu` on Triton's own image. Both hold the
# model `digits`, trained here. Context: the repository.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# Needed by target gpu alone: an image with Triton in /opt/tritonserver and Python 3.11 or 3.12.
ARG TRITON_IMAGE=scratch

# Sources and the one wheel that does not depend on the base.
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /opt/src
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m pip install --constraint constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY services/proa services/proa
COPY kernels/proa_kernels kernels/proa_kernels
COPY chaos/proa_chaos chaos/proa_chaos
RUN python3 -m pip wheel --no-deps --no-build-isolation --wheel-dir /opt/wheels .

# torch first: it is the largest by far and changes least. TORCH_INDEX: an index of CPU builds;
# without it, the CUDA build comes with gigabytes of libraries that nothing here uses.
FROM ${PYTHON_IMAGE} AS cpu-builder
ARG TORCH_INDEX=
WORKDIR /opt/src
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN python3 -m venv --without-pip /opt/venv
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m pip --python /opt/venv/bin/python install --no-deps \
    ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep ^torch== constraints.txt)"
COPY --from=wheel /opt/wheels /opt/wheels
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m pip --python /opt/venv/bin/python install --constraint constraints.txt \
    "$(echo /opt/wheels/proa-*.whl)[cluster,worker]"
RUN python3 -m pip --python /opt/venv/bin/python check

# Not part of any image: training needs more packages than serving.
FROM cpu-builder AS digits
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m pip --python /opt/venv/bin/python install --constraint constraints.txt \
    "$(echo /opt/wheels/proa-*.whl)[train]"
RUN /opt/venv/bin/proa train model --data digits --out /opt/digits

FROM ${PYTHON_IMAGE} AS cpu
COPY --from=cpu-builder /opt/venv /opt/venv
COPY --from=digits /opt/digits/digits.yaml /opt/digits/digits.pt2 /opt/digits/digits-parity-k2.pt2 \
    /opt/proa/models/digits/
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/proa
USER 65532:65532
ENTRYPOINT ["proa-service"]

# Triton's Python stub is built for the python3 of its image, so that one makes the environment.
FROM ${TRITON_IMAGE} AS gpu-builder
ARG TORCH_INDEX=
USER 0:0
RUN test -x /opt/tritonserver/bin/tritonserver || { echo "set TRITON_IMAGE"; exit 1; }
WORKDIR /opt/src
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN python3 -m venv --without-pip /opt/venv
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m pip --python /opt/venv/bin/python install --no-deps \
    ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep ^torch== constraints.txt)"
COPY --from=wheel /opt/wheels /opt/wheels
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m pip --python /opt/venv/bin/python install --constraint constraints.txt \
    "$(echo /opt/wheels/proa-*.whl)[cluster]" "$(grep ^torch== constraints.txt)"
RUN python3 -m pip --python /opt/venv/bin/python check

FROM ${TRITON_IMAGE} AS gpu
COPY --from=gpu-builder /opt/venv /opt/venv
COPY --from=digits /opt/digits/digits.yaml /opt/digits/digits.pt2 /opt/digits/digits-parity-k2.pt2 \
    /opt/proa/models/digits/
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
ENV PROA_WORKER_TRITON=/opt/tritonserver
WORKDIR /opt/proa
USER 65532:65532
ENTRYPOINT ["proa-service"]
