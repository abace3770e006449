"""Recipes, losses, sampling and the training loop, in PyTorch."""
