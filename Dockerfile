# docker build -t gpu-conv .                            classifies pictures: docker run --rm gpu-conv
# docker build -t gpu-conv-test --target test .         runs the tests:      docker run --rm gpu-conv-test
# docs/container.md says more.

# Any Debian with python3 (3.11 or newer) and its venv module.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS wheel
COPY constraints.txt /
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir --constraint /constraints.txt hatchling
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY gpu_conv gpu_conv
COPY kernels kernels
RUN /venv/bin/hatchling build --target wheel --directory /wheel

FROM ${BASE} AS runtime
# "demo,emulator" leaves CuPy and 1.7 GB of CUDA libraries out: the image then has the CPU and the emulator.
ARG EXTRAS=demo,cuda13
# Whose kernels to compile, at batch 1: about 3 s of one processor for each. Another GPU compiles at its first call.
ARG ARCHS="sm_80 sm_90a"
ENV PATH=/opt/venv/bin:$PATH \
    GPU_CONV_CACHE=/var/cache/gpu_conv \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    useradd --uid 1000 --create-home gpu_conv \
    && install --directory --owner gpu_conv --mode 755 /var/cache/gpu_conv \
    && python3 -m venv /opt/venv \
    && pip install --no-cache-dir --constraint /constraints.txt "$(echo /wheel/*.whl)[$EXTRAS]"
USER gpu_conv
WORKDIR /home/gpu_conv
# Fills the cache with kernels, weights and labels; an image that cannot classify is not built.
RUN for arch in $ARCHS; do gpu-conv warmup mobilenet_v2 --arch $arch || exit; done && gpu-conv classify
HEALTHCHECK --interval=5m --timeout=1m CMD ["gpu-conv", "doctor", "--require", "cpu", "--require", "cache", "--require", "demo"]
ENTRYPOINT ["gpu-conv"]
CMD ["classify"]

FROM runtime AS test
USER root
WORKDIR /source
COPY --chown=gpu_conv . .
RUN chown gpu_conv . \
    && pip install --no-cache-dir --constraint constraints.txt hatchling \
    && pip install --no-cache-dir --constraint constraints.txt --no-build-isolation --editable '.[test]'
USER gpu_conv
# The other model that the tests ask for, so that they need no network either.
RUN gpu-conv classify --model efficientnet_lite0
# One BLAS thread: two of them on busy cores are many times slower than one.
ENV OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
ENTRYPOINT ["python", "-m", "pytest"]
CMD ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
