import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from conditions import as_installed
from reidkit.errors import ConfigError
from reidkit.types import (
    DISTRACTOR,
    SUBSETS,
    UNKNOWN_CAMERA,
    Crop,
    Embedder,
    EmbedderSpec,
    InputSpec,
    Split,
    no_progress,
)


def test_the_defaults_are_imagenet_in_rgb():
    spec = InputSpec(256, 128)
    assert (spec.resize, spec.color, spec.scale) == ("bicubic", "rgb", 255.0)
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("size", [(1, 1), (8192, 8192), (1, 8192)])
def test_sizes_that_can_be(size):
    assert (InputSpec(*size).height, InputSpec(*size).width) == size


@pytest.mark.parametrize("size", [(0, 128), (256, 0), (-256, 128), (8193, 128), (256, 8193)])
def test_sizes_that_cannot_be(size):
    with pytest.raises(ConfigError) as caught:
        InputSpec(*size)
    assert str(caught.value) == (
        f"The input size is out of range\n  got: {size[0]}x{size[1]} (height x width)\n"
        "  expected: 1 to 8192 pixels each"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.0},
        {"scale": -255.0},
        {"scale": math.inf},
        {"mean": (0.0, math.nan, 0.0)},
        {"std": (1.0, 0.0, 1.0)},
        {"std": (1.0, 1.0, -1.0)},
        {"std": (1.0, 1.0, math.inf)},
    ],
)
def test_normalisations_that_cannot_be(changes):
    with pytest.raises(ConfigError, match=r"normalisation cannot be used\n.*\n  expected: finite numbers"):
        InputSpec(256, 128, **changes)


def test_no_normalisation_can_be_written():
    assert InputSpec(8, 8, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).mean == (0.0, 0.0, 0.0)


def test_a_split_gives_its_subsets():
    train, query, gallery, junk = ((Crop(Path(f"{i}.jpg"), i, 0),) for i in range(4))
    split = Split("folder", Path("set"), train, query, gallery, junk)
    assert [split.subset(name) for name in SUBSETS] == [train, query, gallery]
    assert Split("folder", Path("set")).subset("query") == ()


def test_nouns_cannot_be_changed():
    spec = InputSpec(256, 128)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.height = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        Split("folder", Path("set")).pid_names[0] = "x"  # pyright: ignore[reportIndexIssue]


def test_special_labels_are_no_identity_and_no_camera():
    assert DISTRACTOR < 0
    assert UNKNOWN_CAMERA < 0


def test_an_embedder_is_what_has_a_spec_and_embeds():
    class Constant:
        spec = EmbedderSpec(InputSpec(4, 2), 3, True, None, "test", "float32", "cpu")

        def embed(self, crops: np.ndarray) -> np.ndarray:
            return np.ones((len(crops), 3), dtype=np.float32)

    assert isinstance(Constant(), Embedder)
    assert not isinstance(object(), Embedder)


def test_no_progress_shows_nothing(capsys):
    no_progress(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"color": "BGR"}, "Unknown color order 'BGR'\n  expected: one of rgb, bgr"),
        ({"mean": (0.5,)}, "The input normalisation cannot be used"),
    ],
)
def test_an_input_that_would_be_misread_is_refused(options, message):
    with as_installed(), pytest.raises(ConfigError, match=message):
        InputSpec(8, 4, **options)
