import math

import pytest

from conditions import as_installed
from reidkit.architecture import ResNetSpec
from reidkit.errors import ConfigError


def test_an_embedding_is_as_wide_as_the_last_stage():
    assert ResNetSpec().dim == 512


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"depth": 19}, "No ResNet of this depth\n  got: 19\n  expected: one of [18"),
        ({"last_stride": 0}, "The last stride cannot be this\n  got: 0\n  expected: 1 or 2"),
        ({"last_stride": 3}, "The last stride cannot be this\n  got: 3\n  expected: 1 or 2"),
        ({"gem_p": 0.0}, "GeM's exponent is out of range\n  got: 0.0\n  expected: above 0, at most 16"),
        ({"gem_p": 16.5}, "GeM's exponent is out of range\n  got: 16.5"),
        ({"gem_p": math.nan}, "GeM's exponent is out of range\n  got: nan"),
        ({"gem_p": math.inf}, "GeM's exponent is out of range\n  got: inf"),
    ],
)
def test_what_cannot_be_is_refused(options, text):
    with pytest.raises(ConfigError) as caught:
        ResNetSpec(**options)
    assert str(caught.value).startswith(text)


def test_the_limits_themselves_can_be():
    assert ResNetSpec(last_stride=2, gem_p=16.0).gem_p == 16.0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"ibn": "b"}, "Unknown kind of IBN 'b'"), ({"pooling": "mean"}, "Unknown pooling 'mean'")],
)
def test_an_option_that_is_not_there_is_refused(options, message):
    with as_installed(), pytest.raises(ConfigError, match=message):
        ResNetSpec(**options)
