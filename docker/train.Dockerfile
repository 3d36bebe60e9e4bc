# Training on GPUs: every program of the project, with TensorFlow's CUDA.
#
#   docker build -f docker/train.Dockerfile -t training .
#   docker run --gpus all \
#     --mount type=bind,source=/srv/data,target=/data training \
#     pipelines.train --data /data/prepared --model_dir /data/run --task xir
#
# The host needs NVIDIA's driver and container toolkit; CUDA itself comes with
# the packages.
FROM python:3.11-slim-bookworm

WORKDIR /app
COPY setup.py pyproject.toml README.md ./
COPY xir_tfrs xir_tfrs
RUN python -m pip install --no-cache-dir --disable-pip-version-check \
  --editable '.[gpu,scann,data,plots,tune]'
COPY pipelines pipelines
COPY export export

ENTRYPOINT ["python", "-m"]
CMD ["pipelines.train", "--help"]
