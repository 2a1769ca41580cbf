# monai-ext on a CPU, from a wheel alone:
#   docker build -t monai-ext .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD":/data monai-ext synthesise T1.nii.gz T2.nii.gz --target FLAIR -o out
# PIP_OPTIONS is for pip: --index-url with torch's builds for CPUs makes the image some gigabytes smaller.
FROM python:3.11-slim AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.11-slim
# The operators' kernels are compiled where they run, for the processor that is there; any g++ of this Debian does it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/constraints.txt
ARG PIP_OPTIONS=""
# shellcheck disable=SC2086
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt ${PIP_OPTIONS} torch
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /tmp/constraints.txt "$(echo /wheels/monai_ext-*.whl)[dicom]"
ENV HOME=/tmp
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["monai-ext"]
CMD ["--help"]
