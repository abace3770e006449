"""From a trained PyTorch model to a bundle."""
