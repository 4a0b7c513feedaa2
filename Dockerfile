# One image for every service; the command picks it: run agent, run handlers, run cache, run archive.
FROM python:3.13.16-slim-trixie AS build

WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
# Built without isolation, because pip does not constrain what it fetches for an isolated build.
RUN pip install --constraint constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY agent agent
COPY archive archive
COPY cache cache
COPY handlers handlers
COPY schemas schemas
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist .
RUN python -m venv --without-pip /opt/resource-agent
RUN pip --python /opt/resource-agent/bin/python install --constraint constraints.txt dist/*.whl


FROM python:3.13.16-slim-trixie

# Libraries that GPUs of some makers need: deploy/gpu-amd.yml names AMD's.
ARG DEBIAN_PACKAGES=""
RUN test -z "$DEBIAN_PACKAGES" || { apt-get update \
    && apt-get install --yes --no-install-recommends $DEBIAN_PACKAGES \
    && rm -rf /var/lib/apt/lists/*; }

# The root file system is read-only: only /tmp and the state folder are written to.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin resource-agent \
    && install --directory --owner resource-agent --group resource-agent --mode 0700 \
        /var/lib/resource-agent
COPY --from=build /opt/resource-agent /opt/resource-agent
ENV PATH=/opt/resource-agent/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    RESOURCE_AGENT_STATE_DIR=/var/lib/resource-agent \
    RESOURCE_AGENT_LOG__FORMAT=json
USER resource-agent
WORKDIR /var/lib/resource-agent
ENTRYPOINT ["resource-agent"]
CMD ["--help"]
