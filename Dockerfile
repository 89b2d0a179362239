# qmimic on the CPU. From a clone:
#     docker build -t qmimic .
#     docker build --target runtime -t qmimic-runtime .      # deployed files alone: no torch, a tenth of the size
# pip's torch for x86 brings CUDA's libraries along, gigabytes that a CPU has no use for (and that a GPU needs, see
# docs/how-to/docker.md). PyTorch's own index of CPU builds, whose address its install page gives, does without:
#     docker build --build-arg INDEX=ADDRESS -t qmimic .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/qmimic
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src

FROM source AS runtime-build
RUN /opt/qmimic/bin/pip install -c constraints.txt '.[runtime]'

FROM source AS train-build
ARG INDEX=""
RUN /opt/qmimic/bin/pip install ${INDEX:+--extra-index-url "$INDEX"} -c constraints.txt '.[train,openvino]'

FROM python:${PYTHON}-slim AS base
ENV PATH=/opt/qmimic/bin:$PATH HOME=/tmp
RUN useradd --uid 1000 --no-create-home qmimic
USER qmimic
WORKDIR /data

FROM base AS runtime
COPY --from=runtime-build /opt/qmimic /opt/qmimic
ENTRYPOINT ["python", "-m", "qmimic.runtime"]
CMD ["--help"]

FROM base AS train
COPY --from=train-build /opt/qmimic /opt/qmimic
COPY recipes /opt/qmimic/recipes
ENTRYPOINT ["qmimic"]
CMD ["--help"]
