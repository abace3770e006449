# TensorRT 8.6, as on JetPack 6.0, from NVIDIA's image. The host needs its driver and the NVIDIA Container Toolkit. Not tested:
# what was proven is TensorRT 8.6.0 with Python 3.10 on an H200, without this image.
#
#   docker build -f examples/docker/tensorrt-8.6.Dockerfile -t reidkit:tensorrt-8.6 .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" reidkit:tensorrt-8.6 \
#       build people.reid --runtime tensorrt --precision fp16
#
# 24.01 is of TensorRT 8.6.1, CUDA 12.3 and Python 3.10. Its TensorRT stays as it is, so there is no `reidkit[tensorrt]` here.
FROM nvcr.io/nvidia/tensorrt:24.01-py3

COPY pyproject.toml README.md LICENSE /reidkit/
COPY src /reidkit/src
RUN pip install --no-cache-dir '/reidkit[onnx]' 'cuda-bindings>=12.6,<13' filelock

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility REIDKIT_CACHE=/tmp/reidkit
WORKDIR /work
ENTRYPOINT ["reid"]
