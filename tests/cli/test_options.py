"""Options that several commands share."""

import pytest

from reidkit.cli.options import parse_precision, parse_precisions
from reidkit.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("fp32", "float32"),
        ("float32", "float32"),
        ("tf32", "tf32"),
        ("FP16", "float16"),
        ("float16", "float16"),
        ("bf16", "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("int8", "int8"),
        (None, None),
    ],
)
def test_precisions_by_their_short_and_long_names(text, precision):
    assert parse_precision(text) == precision


@pytest.mark.parametrize("text", ["fp61", "half", ""])
def test_a_precision_that_there_is_not(text):
    with pytest.raises(ConfigError, match=rf"Unknown precision '{text}'\n  expected: one of fp32, fp16, bf16, float32"):
        parse_precision(text)


def test_several_precisions_each_once_and_none_is_what_there_is():
    assert parse_precisions(["fp16", "fp32", "float16"]) == ["float16", "float32"]
    assert parse_precisions(None) == parse_precisions([]) == [None]
