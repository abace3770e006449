# ONNX Runtime and OpenVINO on a processor: no PyTorch, no card. Not tested.
#
#   docker build -f examples/docker/cpu.Dockerfile -t reidkit:cpu .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" reidkit:cpu verify people.reid
FROM python:3.12-slim

COPY pyproject.toml constraints.txt README.md LICENSE /reidkit/
COPY src /reidkit/src
RUN pip install --no-cache-dir --constraint /reidkit/constraints.txt '/reidkit[onnx,openvino,report]'

# Whoever runs it has no home folder here.
ENV REIDKIT_CACHE=/tmp/reidkit MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
ENTRYPOINT ["reid"]
