# The HTTP service, without PyTorch: docker run -p 8080:8080 -v MODEL_FOLDER:/model:ro distrinews-server
#   docker build -f images/server.Dockerfile -t distrinews-server .      (make images builds all, with docker, podman or buildah)
# Behind a mirror: --build-arg BASE=..., --build-arg PIP_INDEX_URL=..., or a whole pip.conf: --secret id=pip,src=pip.conf
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS dependencies
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY images/server.txt /locks/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-deps --no-compile --require-hashes -r /locks/server.txt \
    && python -m compileall -q -j 0 -x '/tests?/|/testing/_internal/' --invalidation-mode unchecked-hash /opt/venv/lib \
    && echo /opt/distrinews > "$(/opt/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/distrinews.pth"

FROM ${BASE} AS package
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY images/build.txt /locks/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    python -m venv --without-pip /opt/venv && python -m venv --without-pip /build \
    && pip --python /build/bin/python install --no-deps --require-hashes -r /locks/build.txt
COPY pyproject.toml README.md LICENSE /source/
COPY trainer /source/trainer
COPY server /source/server
COPY pipelines /source/pipelines
COPY manifests /source/manifests
RUN pip --python /build/bin/python wheel --no-deps --no-build-isolation --wheel-dir /wheels /source \
    && pip --python /opt/venv/bin/python install --no-deps --no-compile --target /opt/distrinews /wheels/*.whl \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/distrinews

FROM ${BASE}
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=package /opt/distrinews /opt/distrinews
# The root file system may be read-only, and the user may have any number: what is written goes to /tmp.
ENV PATH=/opt/distrinews/bin:/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=distrinews \
    XDG_CACHE_HOME=/tmp/.cache \
    DISTRINEWS_HOST=0.0.0.0
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="distrinews-server" \
      org.opencontainers.image.description="Serves a text classifier over HTTP with ONNX Runtime or OpenVINO" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:0
WORKDIR /tmp
EXPOSE 8080 9080
STOPSIGNAL SIGTERM
ENTRYPOINT ["distrinews", "serve", "/model"]
