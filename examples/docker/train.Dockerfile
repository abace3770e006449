# Training, importing checkpoints, exporting: PyTorch with CUDA. Not tested.
#
#   docker build -f examples/docker/train.Dockerfile -t reidkit:train .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" reidkit:train \
#       train --data people --recipe quick --out run --device cuda
#
# The host needs its driver and the NVIDIA Container Toolkit. Over several GPUs, processes speak through shared memory:
# add --shm-size 1g. torch.compile writes kernels with a C compiler, so there is one in the image.
FROM python:3.12-slim

RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE /reidkit/
COPY src /reidkit/src
RUN pip install --no-cache-dir --constraint /reidkit/constraints.txt '/reidkit[train,report,onnx]'

# Decoded crops and compiled kernels are kept in /cache: mount a folder there to keep them from run to run.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    REIDKIT_CACHE=/cache/reidkit TORCHINDUCTOR_CACHE_DIR=/cache/inductor TRITON_CACHE_DIR=/cache/triton \
    MPLCONFIGDIR=/tmp/matplotlib USER=reid
RUN mkdir -m 1777 /cache
WORKDIR /work
ENTRYPOINT ["reid"]
