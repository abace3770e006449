"""`.wts` against bytes written by hand and by the originals' loop; and everything that is no `.wts`."""

import json
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reidkit.errors import ConfigError, InputError, ModelError, OutputError
from reidkit.wts import description_path, read_wts, write_wts

WEIGHT = np.array([[1.0, -2.0, 0.5], [0.0, -0.0, 3.0]], np.float32)
BY_HAND = b"2\nconv.weight 6 3f800000 c0000000 3f000000 00000000 80000000 40400000\nbn.num_batches_tracked 1 4479c000\n"


def as_the_originals_write(tensors, separator="{} {}"):
    """tensorrtx's and FastRT's format, one value after the other; some of tensorrtx's scripts put two spaces first."""
    lines = [f"{len(tensors)}\n"]
    for name, array in tensors.items():
        flat = array.reshape(-1)
        lines.append(separator.format(name, len(flat)))
        lines.extend(" " + struct.pack(">f", float(value)).hex() for value in flat)
        lines.append("\n")
    return "".join(lines).encode()


@pytest.fixture
def tensors():
    random = np.random.default_rng(0)
    return {
        "backbone.conv1.weight": random.standard_normal((8, 3, 7, 7), np.float32),
        "backbone.bn1.num_batches_tracked": np.array(12345),
        "backbone.bn1.running_var": random.random(8, np.float32),
        "heads.pool_layer.p": np.array([3.0], np.float32),
        "half": random.standard_normal((2, 5)).astype(np.float16),
        "exact": np.array([[0.5, -1e-30 * 0, 2.0**100]]),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
    }


def put(tmp_path, content) -> Path:
    path = tmp_path / "x.wts"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path) -> str:
    with pytest.raises(ModelError) as caught:
        read_wts(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_bytes_are_the_ones_worked_out_by_hand(tmp_path):
    write_wts(tmp_path / "x.wts", {"conv.weight": WEIGHT, "bn.num_batches_tracked": np.array(999)})
    assert (tmp_path / "x.wts").read_bytes() == BY_HAND


def test_the_bytes_are_the_ones_that_the_originals_write(tmp_path, tensors):
    write_wts(tmp_path / "x.wts", tensors)
    assert (tmp_path / "x.wts").read_bytes() == as_the_originals_write(tensors)


def test_the_layout_in_memory_does_not_matter(tmp_path):
    swapped = {"t": WEIGHT.T, "s": np.broadcast_to(WEIGHT[:1], (2, 3)), "b": WEIGHT.astype(">f4")}
    write_wts(tmp_path / "x.wts", swapped)
    assert (tmp_path / "x.wts").read_bytes() == as_the_originals_write(swapped)


def test_a_tensor_larger_than_a_piece(tmp_path):
    values = np.random.default_rng(1).standard_normal(600_001).astype(np.float32)
    write_wts(tmp_path / "x.wts", {"a": values, "b": WEIGHT})
    assert (tmp_path / "x.wts").read_bytes() == as_the_originals_write({"a": values, "b": WEIGHT})
    back = read_wts(tmp_path / "x.wts").tensors
    np.testing.assert_array_equal(back["a"], values)
    np.testing.assert_array_equal(back["b"], WEIGHT)


def test_reading_needs_about_one_tensor_above_the_result(tmp_path):
    values = {name: np.ones(1_000_000, np.float32) for name in "abcde"}
    write_wts(tmp_path / "x.wts", values)
    tracemalloc.start()
    read_wts(tmp_path / "x.wts")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 4e6 + 9e6  # the text has 45 MB


def test_everything_comes_back(tmp_path, tensors):
    facts = {"architecture": {"family": "resnet", "depth": 18}, "input": (256, 128), "task": "person", "note": None}
    write_wts(tmp_path / "x.wts", tensors, facts=facts)
    back = read_wts(tmp_path / "x.wts")
    assert back.shaped
    assert back.facts == {**facts, "input": [256, 128]}
    assert list(back.tensors) == list(tensors)
    for name, array in tensors.items():
        assert back.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(back.tensors[name], array, strict=True)


def test_the_description_says_shapes_dtypes_and_hash(tmp_path):
    write_wts(tmp_path / "x.wts", {"conv.weight": WEIGHT, "bn.num_batches_tracked": np.array(999)})
    assert json.loads((tmp_path / "x.wts.json").read_bytes()) == {
        "schema": 1,
        "sha256": "b69c1d73b5d2cd79c9054dc4672be2f9c76d6a89c82a13e81e6a4c6c48a3fda5",
        "facts": None,
        "tensors": {
            "conv.weight": {"shape": [2, 3], "dtype": "float32"},
            "bn.num_batches_tracked": {"shape": [], "dtype": "int64"},
        },
    }


def test_without_the_description_the_arrays_are_flat(tmp_path, tensors):
    write_wts(tmp_path / "x.wts", tensors, facts={"task": "person"})
    description_path(tmp_path / "x.wts").unlink()
    back = read_wts(tmp_path / "x.wts")
    assert not back.shaped
    assert back.facts is None
    for name, array in tensors.items():
        np.testing.assert_array_equal(back.tensors[name], array.reshape(-1).astype(np.float32), strict=True)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_every_bit_of_every_word_comes_back(tmp_path, bits):
    special = [0x7FC00001, 0x7F800001, 0xFFFFFFFF, 0x80000000, 0x7F800000, 0xFF800000, 1, 0x80000001]
    values = np.array(bits + special, np.uint32)
    path = tmp_path / "x.wts"
    write_wts(path, {"a": values.view(np.float32)}, overwrite=True)
    np.testing.assert_array_equal(read_wts(path).tensors["a"].view(np.uint32), values)
    assert path.read_text() == f"1\na {len(values)} {' '.join(f'{word:08x}' for word in values.tolist())}\n"
    # And as other programs may print them: upper case, no leading zeros, more space, another line end.
    description_path(path).unlink()
    path.write_text(f"1\r\na {len(values)}  {'   '.join(f'{word:X}' for word in values.tolist())} \r\n", newline="")
    np.testing.assert_array_equal(read_wts(path).tensors["a"].view(np.uint32), values)


@pytest.mark.parametrize(
    "text",
    [
        "2\na 2 3f800000 40000000\nb 1 c0000000\n",
        "2\na 2 3f800000 40000000\nb 1 c0000000",
        "2\na 2  3f800000 40000000\nb 1  c0000000\n",
        "2\r\na 2 3F800000 40000000\r\nb 1 C0000000\r\n\r\n",
        " 2 \na 2\t3f800000\t40000000 \nb 1 c0000000 ",
    ],
)
def test_what_other_programs_write_is_read(text, tmp_path):
    tensors = read_wts(put(tmp_path, text)).tensors
    assert {name: values.tolist() for name, values in tensors.items()} == {"a": [1.0, 2.0], "b": [-2.0]}


def test_two_spaces_before_the_words_as_in_some_scripts_of_tensorrtx(tmp_path):
    values = {
        "a": np.random.default_rng(2).standard_normal(300_000).astype(np.float32),
        "none": np.zeros(0, np.float32),
    }
    back = read_wts(put(tmp_path, as_the_originals_write(values, "{} {} "))).tensors
    assert {name: array.tolist() for name, array in back.items()} == {n: a.tolist() for n, a in values.items()}


@pytest.mark.parametrize("length", range(1, len(BY_HAND) - 1))
def test_cut_anywhere_it_is_refused(length, tmp_path):
    """The one cut that loses nothing is the one that takes only the last line's end."""
    refusal(put(tmp_path, BY_HAND[:length]))


def test_the_whole_file_and_the_one_without_its_last_line_end_are_read(tmp_path):
    for content in (BY_HAND, BY_HAND[:-1]):
        assert read_wts(put(tmp_path, content)).tensors["bn.num_batches_tracked"].tolist() == [999.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "x.wts is empty"),
        ("hello\n", "x.wts is not a .wts file\n  got: b'hello\\n'\n  expected: line 1 to be the number of tensors"),
        ("-2\na 1 3f800000\n", "is not a .wts file\n  got: b'-2\\n'"),
        ("0\n", "is not a .wts file\n  got: b'0\\n'"),
        ("1.5\na 1 3f800000\n", "is not a .wts file\n  got: b'1.5\\n'"),
        ("\n1\na 1 3f800000\n", "is not a .wts file\n  got: b'\\n'"),
        ("9" * 30 + "\n", "is not a .wts file\n  got: b'9999"),
        ("999999999999\na 1 3f800000\n", "line 1: says 999,999,999,999 tensors\n  got: 13 bytes after it"),
        (
            "3\na 1 3f800000\nb 1 3f800000\n",
            "line 4: the file ends here\n  got: 2 tensors\n  expected: 3, as line 1 says",
        ),
        (
            "1\na 1 3f800000\nb 1 3f800000\n",
            "line 3: more follows\n  got: b'b 1 3f800000\\n'\n  expected: 1 tensors, as",
        ),
        ("2\na 1 3f800000\na 1 40000000\n", "line 3: a is there already\n  expected: every name once"),
        (
            "1\na 3 3f800000 40000000\n",
            "line 2: (a) says 3 values\n  got: 2 and the file ends\n  expected: 3 words after it\n  to do: copy",
        ),
        ("2\na 3 3f800000 40000000\nb 1 3f800000\n", "line 2: (a) says 3 values\n  got: 2\n"),
        ("2\na 1 3f800000 40000000\nb 1 3f800000\n", "line 2: (a) says 1 values\n  got: 2\n"),
        (
            "1\na 99999999999999 3f800000\n",
            "line 2: (a) says 99,999,999,999,999 values\n  got: 9 bytes left in the file",
        ),
        (
            "1\na -1 3f800000\n",
            "line 2: no tensor stands here\n  got: b'a -1 3f800000\\n'\n  expected: NAME COUNT WORD",
        ),
        ("1\nabc\n", "line 2: no tensor stands here\n  got: b'abc\\n'"),
        ("2\na 1 3f800000\n\nb 1 3f800000\n", "line 3: no tensor stands here\n  got: b'\\n'"),
        ("1\na x 3f800000\n", "line 2: no tensor stands here"),
        (b"1\n\xff\xfe 1 3f800000\n", "line 2: no tensor stands here\n  got: b'\\xff\\xfe 1 3f800000\\n'"),
        (b"1\na\x1b[2J 1 3f800000\n", "line 2: no tensor stands here\n  got: b'a\\x1b[2J 1 3f800000\\n'"),
        (
            "1\na 2 3f800000 4000000g\n",
            "(a): value 2 is no word of a .wts file\n  got: b'4000000g'\n  expected: at most",
        ),
        ("1\na 2 3f8000000 4000000\n", "(a): value 1 is no word of a .wts file\n  got: b'3f8000000'"),
        ("1\na 2 0x3f8000 40000000\n", "(a): value 1 is no word of a .wts file\n  got: b'0x3f8000'"),
        ("1\na 2 3f800000 -4000000\n", "(a): value 2 is no word of a .wts file"),
        (b"1\na 2 3f800000 \xe2\x82\xac00000\n", "(a): value 2 is no word of a .wts file"),
        ("1\na 2 3f800000 4000", "(a) may be cut in its last word\n  got: '4000' and no end of the line"),
        (bytes(range(255, -1, -1)) * 16, "is not a .wts file"),
        (b"1\na 600000 " + b"0" * 1_400_000 + b"\n", "(a): value 1 is no word of a .wts file\n  got: b'00000000"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_wts_is_refused_by_line_and_name(content, message, tmp_path):
    assert message in refusal(put(tmp_path, content))


def test_a_word_that_is_wrong_deep_in_a_large_tensor_is_named(tmp_path):
    words = ["3f800000"] * 400_000
    words[300_000] = "3f80000z"
    message = refusal(put(tmp_path, f"1\na 400000 {' '.join(words)}\n"))
    assert "line 2: (a): value 300,001 is no word of a .wts file\n  got: b'3f80000z'" in message


def test_numbers_from_the_file_reserve_nothing(tmp_path):
    path = put(tmp_path, "1\na 99999999999999 3f800000\n")
    tracemalloc.start()
    refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_a_missing_file_and_a_folder(tmp_path):
    assert "No such file: " in refusal(tmp_path / "none.wts")
    assert "  got: a folder" in refusal(tmp_path)


@pytest.mark.parametrize("change", [lambda b: b.replace(b"3f8", b"3f9"), lambda b: b + b"\n"])
def test_a_changed_file_is_refused(change, tmp_path):
    path = tmp_path / "x.wts"
    write_wts(path, {"a": WEIGHT})
    path.write_bytes(change(path.read_bytes()))
    message = refusal(path)
    assert re.search(
        r"is not the file that x\.wts\.json was written for\n  got: sha256 \w{16}…\n  expected: sha", message
    )
    assert "take the JSON away to read flat arrays" in message
    description_path(path).unlink()
    assert read_wts(path).tensors["a"].shape == (6,)


def test_the_description_of_another_file_is_refused(tmp_path):
    write_wts(tmp_path / "x.wts", {"a": WEIGHT})
    write_wts(tmp_path / "y.wts", {"a": WEIGHT + 1})
    description_path(tmp_path / "y.wts").replace(description_path(tmp_path / "x.wts"))
    assert "is not the file that x.wts.json was written for" in refusal(tmp_path / "x.wts")


def entry(**values):
    return lambda whole: whole["tensors"].update(a=values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entry(shape=[10**12, 10**12], dtype="float32"), "the shape of a does not fit\n  got: [1000000000000, 1000000"),
        (entry(shape=[10**4000, 0], dtype="float32"), "the shape of a does not fit"),
        (entry(shape=[6] * 10**5, dtype="float32"), "the shape of a does not fit"),
        (entry(shape=[2, 4], dtype="float32"), "the shape of a does not fit\n  got: [2, 4] for 6 values"),
        (entry(shape=[-1, 6], dtype="float32"), "the shape of a does not fit\n  got: [-1, 6] for 6 values"),
        (entry(shape=[2.0, 3], dtype="float32"), "the shape of a does not fit"),
        (entry(shape="6", dtype="float32"), "the shape of a does not fit"),
        (entry(dtype="float32"), "the shape of a does not fit\n  got: None for 6 values"),
        (entry(shape=[6], dtype="object"), "a has no dtype that .wts can hold\n  got: 'object'"),
        (entry(shape=[6], dtype=["float32"]), "a has no dtype that .wts can hold"),
        (entry(shape=[6]), "a has no dtype that .wts can hold\n  got: None"),
        (entry(shape=[6], dtype="int64"), "the values of a are not int64"),
        (entry(shape=[6], dtype="bool"), "the values of a are not bool"),
        (lambda whole: whole["tensors"].update(a=[1]), "a has no dtype that .wts can hold"),
        (lambda whole: whole["tensors"].update(b={}), "describes other tensors than the weights have\n  got: 'b'"),
        (lambda whole: whole["tensors"].clear(), "describes other tensors than the weights have\n  got: 'a', 'empty'"),
        (lambda whole: whole.update(tensors=[]), "does not describe weights\n  got: tensors: list"),
        (lambda whole: whole.update(facts=[]), "does not describe weights\n  got: facts: list"),
        (lambda whole: whole.pop("facts"), "does not describe weights\n  got: facts: nothing"),
        (lambda whole: whole.update(sha256=1), "does not describe weights\n  got: sha256: int"),
        (
            lambda whole: whole.update(schema=2),
            "has a schema this reidkit cannot read\n  got: 2\n  expected: 1\n  to do: u",
        ),
        (
            lambda whole: whole.update(schema=True),
            'does not describe weights\n  expected: an object with a number "sch',
        ),
        (lambda whole: whole.pop("schema"), "does not describe weights"),
        (
            lambda whole: whole["tensors"].update(empty={"shape": [0] + [1 << 47] * 9, "dtype": "float32"}),
            "the shape of empty does not fit",
        ),
    ],
)
def test_a_hostile_description_is_refused(change, message, tmp_path):
    path = tmp_path / "x.wts"
    write_wts(path, {"a": WEIGHT, "empty": WEIGHT[:0]})
    whole = json.loads(description_path(path).read_bytes())
    change(whole)
    description_path(path).write_text(json.dumps(whole))
    assert message in refusal_of_description(path)


def refusal_of_description(path) -> str:
    message = refusal(path)
    assert f"{path}.json" in message
    return message


@pytest.mark.parametrize("content", ["", "[1]", "null", "[" * 100_000, '{"schema":', '{"schema": ' + "9" * 5000 + "}"])
def test_a_description_that_is_none_is_refused(content, tmp_path):
    path = tmp_path / "x.wts"
    write_wts(path, {"a": WEIGHT})
    description_path(path).write_text(content)
    message = refusal_of_description(path)
    assert "cannot be read" in message or "does not describe weights" in message
    assert read_wts(path.rename(tmp_path / "y.wts")).tensors["a"].shape == (6,)


def test_a_folder_in_place_of_the_description(tmp_path):
    path = put(tmp_path, BY_HAND)
    description_path(path).mkdir()
    assert "x.wts.json cannot be read" in refusal_of_description(path)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a\tb", "a\u00a0b", "a\x00b", "\ud800"])
def test_names_that_would_break_a_line_are_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"cannot stand in a \.wts file\n  expected: printable, without white space"):
        write_wts(tmp_path / "x.wts", {name: WEIGHT})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([1j]), "complex128"),
        (np.array(["1"]), "<U1"),
        (np.array([None]), "object"),
        (np.zeros(1, [("a", "f4")]), r"\[\('a', '<f4'\)\]"),
        (np.zeros(1, "M8[s]"), "datetime64"),
    ],
)
def test_what_is_not_numeric_is_refused(array, dtype, tmp_path):
    with pytest.raises(InputError, match=f"^a cannot be written as .wts\n  got: dtype {dtype}"):
        write_wts(tmp_path / "x.wts", {"a": array})


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.array([0.5, 0.1, 0.2]), "float64, 2 of 3 values would change, the first 0.1"),
        (np.array([1e300]), "float64, 1 of 1 values would change, the first 1e+300"),
        (np.array([1e-300]), "float64, 1 of 1 values would change, the first 1e-300"),
        (np.array(2**24 + 1), "int64, 1 of 1 values would change, the first 16777217"),
        (np.array([1, -(2**63)]), "int64, 1 of 2 values would change, the first -9223372036854775808"),
        (np.array([2**64 - 1], np.uint64), "uint64, 1 of 1 values would change, the first 18446744073709551615"),
    ],
)
def test_values_that_float32_cannot_hold_are_refused(array, got, tmp_path):
    with pytest.raises(InputError) as caught:
        write_wts(tmp_path / "x.wts", {"fine": WEIGHT, "bad": array})
    assert "bad has values that float32, all that .wts knows, cannot hold" in str(caught.value)
    assert f"  got: {got}\n" in str(caught.value)
    assert "convert it to float32 first, knowing that this rounds" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_float64_that_float32_holds_is_written(tmp_path):
    values = np.array([0.5, np.inf, -0.0, np.nan, 2.0**-149])
    write_wts(tmp_path / "x.wts", {"a": values, "b": np.array([2**24, -(2**24)])})
    back = read_wts(tmp_path / "x.wts").tensors
    np.testing.assert_array_equal(back["a"].view(np.uint64), values.view(np.uint64))
    assert back["b"].tolist() == [2**24, -(2**24)]


def test_no_tensors_are_refused(tmp_path):
    with pytest.raises(InputError, match="There are no tensors to write"):
        write_wts(tmp_path / "x.wts", {})


@pytest.mark.parametrize("facts", [{"a": float("nan")}, {"a": object()}, {"a": np.float32(1)}])
def test_facts_that_json_cannot_say_are_refused(facts, tmp_path):
    with pytest.raises(ConfigError, match="The facts hold what JSON cannot say"):
        write_wts(tmp_path / "x.wts", {"a": WEIGHT}, facts=facts)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_only_when_told(tmp_path):
    path = tmp_path / "x.wts"
    write_wts(path, {"a": WEIGHT})
    with pytest.raises(OutputError, match=r"x\.wts already exists"):
        write_wts(path, {"a": WEIGHT + 1})
    np.testing.assert_array_equal(read_wts(path).tensors["a"], WEIGHT)
    write_wts(path, {"a": WEIGHT + 1}, overwrite=True)
    np.testing.assert_array_equal(read_wts(path).tensors["a"], WEIGHT + 1)
    path.unlink()
    with pytest.raises(OutputError, match=r"x\.wts\.json already exists"):
        write_wts(path, {"a": WEIGHT})


def test_when_writing_fails_the_old_files_stay(tmp_path):
    path = tmp_path / "x.wts"
    write_wts(path, {"a": WEIGHT})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InputError):
        write_wts(path, {"a": WEIGHT + 1, "bad": np.array([0.1])}, overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
