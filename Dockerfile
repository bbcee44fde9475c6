# The server, without torch, with a user other than root. The bundle is mounted at /bundle.
#
#   docker build -t tureen .
#   docker run --rm --stop-timeout 40 -p 8000:8000 -v "$PWD/digits-bundle:/bundle:ro" tureen
#
# A tag can change. For the same base in every build, pass its digest. `docker buildx imagetools inspect python:3.11-slim`
# prints it:
#
#   docker build --build-arg BASE=python:3.11-slim@sha256:... -t tureen .
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
RUN pip install --no-cache-dir build
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY tureen tureen
COPY serve serve
COPY training training
COPY export export
RUN python -m build --wheel --outdir /wheels

FROM ${BASE}
ARG EXTRAS=serve,batch,grpc,postgres,cpu,openvino
# The dependencies come before the sources: a changed source file leaves this layer in the cache.
WORKDIR /dependencies
COPY pyproject.toml constraints.txt ./
RUN python -c "import sys, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = project['optional-dependencies']; print(*project['dependencies'], *(line for extra in sys.argv[1].split(',') for line in extras[extra]), sep='\n')" "$EXTRAS" > requirements.txt \
    && pip install --no-cache-dir -c constraints.txt -r requirements.txt
# An arbitrary uid is a member of group 0, as OpenShift runs it, and writes to these directories without a volume.
RUN useradd --system --uid 10001 --gid 0 --home-dir /home/tureen tureen \
    && install --directory --owner 10001 --group 0 --mode 0770 /home/tureen /var/cache/tureen /var/lib/tureen
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir -c constraints.txt "tureen[$EXTRAS] @ file://$(ls /wheels/*.whl)"
WORKDIR /
USER 10001:0
ENV HOME=/home/tureen TUREEN_BUNDLE=/bundle TUREEN_HOST=0.0.0.0 TUREEN_PORT=8000 TUREEN_CACHE_DIR=/var/cache/tureen TUREEN_STATE_DIR=/var/lib/tureen
EXPOSE 8000
# The operator's settings. The operators' listener is on the loopback of the container: docker exec … tureen beta get
VOLUME /var/lib/tureen
# The health check reads TUREEN_PORT: to change the port, set the variable, not the option --port.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['TUREEN_PORT'] + '/healthz', timeout=2)"]
CMD ["tureen", "serve"]
