"""What is minimised: losses as functions of a batch, each with its source, and the criterion that adds them up.

Axes, here and in every file: `n` crops of the batch, `dim` embedding width, `identities` classes.
All of it runs in float32 whatever the autocast type, with fixed shapes, and never looks at a value on the host: it can
be captured in a CUDA graph.
"""
