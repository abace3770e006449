"""Backbones, pooling and neck: the known architectures, in PyTorch."""
