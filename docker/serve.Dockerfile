# A server for bundles, with the TensorFlow and ScaNN that belong together.
#
#   docker build -f docker/serve.Dockerfile -t retriever .
#   docker run -p 8501:8501 -p 8500:8500 \
#     --mount type=bind,source=/srv/bundles,target=/bundles,readonly \
#     retriever --bundle /bundles/live
#
# Mount the folder around the bundle: of a bundle that is mounted itself, the
# container never sees the next one. For another --host, which is given here,
# replace the --entrypoint. See docs/serving.md.
FROM python:3.11-slim-bookworm

WORKDIR /app
COPY docker/serve.lock .
RUN python -m pip install --no-cache-dir --disable-pip-version-check \
  --require-hashes --requirement serve.lock
COPY xir_tfrs xir_tfrs
COPY export export

RUN useradd --system server
USER server
EXPOSE 8500 8501
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8501/healthz', timeout=5)"]
ENTRYPOINT ["python", "-m", "export.serve", "--host", "0.0.0.0"]
CMD ["--bundle", "/bundles/live"]
