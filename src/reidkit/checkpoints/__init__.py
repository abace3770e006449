"""Anyone's weights, brought to canonical names: exactly, or not at all."""
