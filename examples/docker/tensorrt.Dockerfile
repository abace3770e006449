# TensorRT 10 from NVIDIA's package index. The host needs its driver and the NVIDIA Container Toolkit. Not tested.
#
#   docker build -f examples/docker/tensorrt.Dockerfile -t reidkit:tensorrt .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" reidkit:tensorrt doctor
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" reidkit:tensorrt \
#       build people.reid --runtime tensorrt --precision fp16
#
# The wheels bring all of CUDA that TensorRT needs; the driver comes from the host. NVIDIA's own image
# (nvcr.io/nvidia/tensorrt) works as a base too: leave its TensorRT as it is, and install cuda-bindings of its CUDA.
FROM python:3.12-slim

# Another version: --build-arg TENSORRT='tensorrt>=11,<12'
ARG TENSORRT='tensorrt>=10,<11'

COPY pyproject.toml README.md LICENSE /reidkit/
COPY src /reidkit/src
RUN pip install --no-cache-dir --extra-index-url https://pypi.nvidia.com "$TENSORRT" '/reidkit[onnx,tensorrt]'

# What the toolkit puts in from the host, and a cache for whoever has no home folder here.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility REIDKIT_CACHE=/tmp/reidkit
WORKDIR /work
ENTRYPOINT ["reid"]
