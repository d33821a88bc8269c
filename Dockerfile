# syntax=docker/dockerfile:1
#
# Two images from one file:
#
#   docker build --target operator -t rekindle/operator:0.1.0 .
#   docker build --target runtime  -t rekindle/runtime:0.1 .
#
# The runtime with CUDA, either with the wheels that bring CUDA along:
#
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/TAG      (cu130, for example)
#
# or on an image that has torch already, whose build of it then stays:
#
#   --build-arg BASE=pytorch/pytorch:TAG --build-arg TORCH=
#
# Both run as user 65532 and write to mounted volumes and /tmp only. Dependencies come in a layer
# of their own, which a change of our code does not touch: that layer is 900 MB in the runtime, the
# one with our code below 1 MB.

ARG PYTHON=3.12
ARG BASE=python:${PYTHON}-slim


FROM python:${PYTHON}-slim AS build
ARG HATCHLING=1.33.0
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install "hatchling==${HATCHLING}"
WORKDIR /src
COPY pyproject.toml constraints.txt ./
WORKDIR /requirements
# The releases that are tested. Torch and what it brings are left to the runtime's base or index.
RUN grep -vE '^(torch|triton|nvidia-.*|cuda-.*)==' /src/constraints.txt > constraints.txt
RUN python -c 'import tomllib; \
    project = tomllib.load(open("/src/pyproject.toml", "rb"))["project"]; \
    extras = project["optional-dependencies"]; \
    [print(*project["dependencies"], *extras[extra], sep="\n", file=open(extra + ".txt", "w")) \
     for extra in ("operator", "runtime")]'
WORKDIR /src
COPY README.md LICENSE ./
COPY crds crds
COPY operator operator
COPY runtime runtime
RUN hatchling build -t wheel -d /wheel


FROM python:${PYTHON}-slim AS operator
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# A name for the number: getpass and torch ask for it.
RUN groupadd --gid 65532 rekindle && useradd --no-log-init --uid 65532 --gid 65532 rekindle
RUN --mount=type=bind,from=build,source=/requirements,target=/requirements \
    pip install -c /requirements/constraints.txt -r /requirements/operator.txt
RUN --mount=type=bind,from=build,source=/wheel,target=/wheel \
    pip install --no-deps /wheel/*.whl && pip check && python -c "import rekindle_operator.__main__"
USER 65532:65532
WORKDIR /tmp
EXPOSE 8430 8431
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "rekindle_operator"]
# Last, because they differ for each build.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="rekindle-operator" \
      org.opencontainers.image.description="Control plane of Rekindle: PyTorch training on spot capacity" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"


FROM ${BASE} AS runtime
# The last setting is for bases whose Python belongs to the distribution.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_BREAK_SYSTEM_PACKAGES=1
RUN groupadd --gid 65532 rekindle && useradd --no-log-init --create-home --uid 65532 --gid 65532 rekindle
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN test -z "${TORCH}" || pip install --index-url "${TORCH_INDEX}" "torch==${TORCH}"
# scikit-learn brings the digits that the examples train on.
RUN --mount=type=bind,from=build,source=/requirements,target=/requirements \
    pip install -c /requirements/constraints.txt -r /requirements/runtime.txt scikit-learn
RUN --mount=type=bind,from=build,source=/wheel,target=/wheel \
    pip install --no-deps /wheel/*.whl && python -c "import rekindle.launch, torch, boto3, sklearn"
COPY runtime/examples /opt/rekindle/examples
USER 65532:65532
WORKDIR /opt/rekindle/examples
EXPOSE 9430
STOPSIGNAL SIGTERM
# PID 1 of every training pod; the arguments of the container are the script and its own.
ENTRYPOINT ["python", "-m", "rekindle.launch"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="rekindle-runtime" \
      org.opencontainers.image.description="Data plane of Rekindle: PyTorch, the trainer and its launcher" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
