# TensorRT-RTX: builds with or without a card, runs on RTX cards. Not tested.
#
#   docker build -f examples/docker/tensorrt-rtx.Dockerfile -t reidkit:tensorrt-rtx .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" reidkit:tensorrt-rtx \
#       build people.reid --runtime tensorrt-rtx --precision fp16
#
# To run engines, the host needs its driver and the NVIDIA Container Toolkit.
FROM python:3.12-slim

COPY pyproject.toml README.md LICENSE /reidkit/
COPY src /reidkit/src
RUN pip install --no-cache-dir --extra-index-url https://pypi.nvidia.com '/reidkit[onnx,tensorrt-rtx]'

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility REIDKIT_CACHE=/tmp/reidkit
WORKDIR /work
ENTRYPOINT ["reid"]
