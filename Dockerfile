# The server: no torch, not root, the bundle mounted at /bundle.
#
#   docker build -t tureen .
#   docker run --rm --stop-timeout 40 -p 8000:8000 -v "$PWD/tureen-demo/bundle:/bundle:ro" tureen

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md CHANGELOG.md constraints.txt ./
COPY tureen tureen
COPY serve serve
COPY training training
COPY export export
RUN pip install --no-cache-dir build -c constraints.txt && python -m build --wheel --outdir /wheels

FROM python:3.11-slim
COPY --from=build /wheels /wheels
COPY constraints.txt /
RUN wheel=$(ls /wheels/*.whl) \
    && pip install --no-cache-dir -c /constraints.txt "tureen[serve,batch,grpc,postgres,cpu,openvino] @ file://$wheel" \
    && rm -r /wheels \
    && useradd --system --uid 10001 tureen \
    && install --directory --owner 10001 --mode 0700 /var/lib/tureen
USER 10001
ENV TUREEN_BUNDLE=/bundle TUREEN_HOST=0.0.0.0 TUREEN_PORT=8000 TUREEN_CACHE_DIR=/tmp/tureen TUREEN_STATE_DIR=/var/lib/tureen
EXPOSE 8000
# The operator's settings. Their listener stays on the container's loopback: docker exec … tureen beta get
VOLUME /var/lib/tureen
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["tureen", "serve"]
