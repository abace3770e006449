"""Pedestrians drawn by program: a data set that anyone may have, in Market-1501's layout, within seconds.

`identity` says who somebody is, `pose` how they walk, `figure`, `head` and `cloth` draw them with the brush of
`solids`; `scene`, `material`, `furniture` and `occluder` are the street, `camera` the picture taken; `crop` puts one
together, `dataset` all of them.
"""

from reidkit.data.synth.dataset import synthesize

__all__ = ["synthesize"]
