import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidkit.config import from_dict, load_toml, to_dict, with_overrides
from reidkit.errors import ConfigError, unknown_name

Speed = Literal["slow", "fast"]


@dataclass(frozen=True)
class Optim:
    lr: float = 0.1
    steps: tuple[int, ...] = ()
    speed: Speed = "slow"

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError("optim.lr is out of range", got=self.lr, expected="above 0")


@dataclass(frozen=True)
class Run:
    name: str
    seed: int = 0
    flip: bool = False
    depth: Literal[18, 50] = 18
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pair: tuple[int, str] = (0, "")
    margin: float | None = None
    out: Path = Path("runs")
    either: int | str = 0
    optim: Optim = field(default_factory=Optim)
    second: Optim | None = None
    stages: tuple[Optim, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    named: Mapping[str, Optim] = field(default_factory=dict)
    anything: Any = None


@dataclass(frozen=True)
class Square:
    shape: Literal["square"] = "square"
    side: float = 1.0


@dataclass(frozen=True)
class Circle:
    shape: Literal["circle"] = "circle"
    radius: float = 1.0


@dataclass(frozen=True)
class Drawing:
    figure: Square | Circle = field(default_factory=Square)
    second: Square | Circle | None = None


def refusal(values: Mapping[str, Any], kind: type = Run, where: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        from_dict(kind, {"name": "x", **values} if kind is Run else values, where=where)
    return str(caught.value)


class TestFromDict:
    def test_every_kind_of_value(self):
        run = from_dict(
            Run,
            {
                "name": "market",
                "seed": 7,
                "flip": True,
                "depth": 50,
                "mean": [0.5, 1, 2],
                "pair": [3, "x"],
                "margin": 0.3,
                "out": "some/where",
                "either": "word",
                "optim": {"lr": 1, "steps": [10, 20, 30], "speed": "fast"},
                "second": {"lr": 0.5},
                "stages": [{"lr": 2.0}, {}],
                "rates": {"head": 1, "body": 0.5},
                "named": {"a": {"speed": "fast"}},
                "anything": [{"deep": None}],
            },
        )
        assert run == Run(
            name="market",
            seed=7,
            flip=True,
            depth=50,
            mean=(0.5, 1.0, 2.0),
            pair=(3, "x"),
            margin=0.3,
            out=Path("some/where"),
            either="word",
            optim=Optim(1.0, (10, 20, 30), "fast"),
            second=Optim(0.5),
            stages=(Optim(2.0), Optim()),
            rates={"head": 1.0, "body": 0.5},
            named={"a": Optim(speed="fast")},
            anything=[{"deep": None}],
        )
        assert [type(x) for x in (*run.mean, run.optim.lr, run.rates["head"])] == [float] * 5

    def test_what_is_not_given_is_the_default(self):
        assert from_dict(Run, {"name": "x", "margin": None, "second": None}) == Run("x")

    def test_an_unknown_key_suggests_the_nearest_and_lists_all(self):
        assert refusal({"speeed": "fast"}, Optim) == (
            "Unknown key 'speeed'\n  expected: one of lr, steps, speed\n  to do: did you mean 'speed'?"
        )

    def test_an_unknown_key_far_from_all_suggests_none(self):
        assert refusal({"batch": 1}, Optim) == "Unknown key 'batch'\n  expected: one of lr, steps, speed"

    @pytest.mark.parametrize(
        ("values", "path"),
        [
            ({"optim": {"lrr": 1.0}}, "optim.lrr"),
            ({"second": {"lrr": 1.0}}, "second.lrr"),
            ({"stages": [{}, {"lrr": 1.0}]}, "stages[1].lrr"),
            ({"named": {"a": {"lrr": 1.0}}}, "named.a.lrr"),
        ],
    )
    def test_an_unknown_key_further_in_is_named_with_its_path(self, values, path):
        text = refusal(values)
        assert text.startswith(f"Unknown key '{path}'\n")
        assert text.endswith("did you mean 'lr'?")

    def test_a_missing_key_is_named_with_its_place(self):
        with pytest.raises(ConfigError, match=r"^Missing in the configuration: name\n  to do: add the missing keys$"):
            from_dict(Run, {})
        with pytest.raises(ConfigError, match=r"^Missing in run: name\n"):
            from_dict(Run, {"seed": 1}, where="run")

    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ({"seed": True}, "seed has the wrong type\n  got: True (bool)\n  expected: int"),
            ({"seed": 1.0}, "seed has the wrong type\n  got: 1.0 (float)\n  expected: int"),
            ({"seed": "1"}, "seed has the wrong type\n  got: '1' (str)\n  expected: int"),
            ({"seed": None}, "seed has the wrong type\n  got: None (NoneType)\n  expected: int"),
            ({"flip": 1}, "flip has the wrong type\n  got: 1 (int)\n  expected: bool"),
            ({"name": 3}, "name has the wrong type\n  got: 3 (int)\n  expected: str"),
            ({"out": 3}, "out has the wrong type\n  got: 3 (int)\n  expected: Path"),
            ({"margin": "big"}, "margin has the wrong type\n  got: 'big' (str)\n  expected: float"),
            ({"margin": False}, "margin has the wrong type\n  got: False (bool)\n  expected: float"),
            ({"either": 1.5}, "either has the wrong type\n  got: 1.5 (float)\n  expected: str"),
            ({"mean": [1.0, 2.0]}, "mean has the wrong type\n  got: [1.0, 2.0] (list)\n  expected: a list of 3"),
            ({"mean": 0.5}, "mean has the wrong type\n  got: 0.5 (float)\n  expected: a list"),
            ({"mean": "abc"}, "mean has the wrong type\n  got: 'abc' (str)\n  expected: a list"),
            ({"mean": [1, "2", 3]}, "mean[1] has the wrong type\n  got: '2' (str)\n  expected: float"),
            ({"pair": [1, 2]}, "pair[1] has the wrong type\n  got: 2 (int)\n  expected: str"),
            ({"optim": 3}, "optim has the wrong type\n  got: 3 (int)\n  expected: a table"),
            ({"second": []}, "second has the wrong type\n  got: [] (list)\n  expected: a table"),
            ({"optim": {"steps": [1, 2.5]}}, "optim.steps[1] has the wrong type\n  got: 2.5 (float)\n  expected: int"),
            ({"stages": [{}, {"lr": "x"}]}, "stages[1].lr has the wrong type\n  got: 'x' (str)\n  expected: float"),
            ({"rates": [1]}, "rates has the wrong type\n  got: [1] (list)\n  expected: a table"),
            ({"rates": {"head": "x"}}, "rates.head has the wrong type\n  got: 'x' (str)\n  expected: float"),
            ({"depth": 34}, "Unknown value of depth: '34'\n  expected: one of 18, 50"),
            ({"depth": "18"}, "Unknown value of depth: '18'\n  expected: one of 18, 50"),
            ({"optim": {"speed": True}}, "Unknown value of optim.speed: 'True'\n  expected: one of slow, fast"),
            ({"optim": {"lr": -1}}, "optim.lr is out of range\n  got: -1.0\n  expected: above 0"),
        ],
    )
    def test_a_wrong_value_is_named_with_its_path_and_type(self, values, text):
        assert refusal(values).startswith(text)

    def test_a_literal_suggests_the_nearest(self):
        assert refusal({"optim": {"speed": "fats"}}) == (
            "Unknown value of optim.speed: 'fats'\n  expected: one of slow, fast\n  to do: did you mean 'fast'?"
        )

    def test_a_boolean_is_no_number_in_a_literal(self):
        @dataclass(frozen=True)
        class Strided:
            stride: Literal[1, 2] = 1

        assert refusal({"stride": True}, Strided).startswith("Unknown value of stride: 'True'")

    def test_an_integer_too_large_for_a_float_is_a_wrong_type(self):
        assert refusal({"margin": 10**400}).endswith("(int)\n  expected: float")


NUMBERS = st.floats(allow_nan=False)
OPTIMS = st.builds(
    Optim,
    lr=st.floats(min_value=1e-6, allow_infinity=False),
    steps=st.lists(st.integers()).map(tuple),
    speed=st.sampled_from(["slow", "fast"]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Run,
        name=st.text(),
        seed=st.integers(),
        flip=st.booleans(),
        depth=st.sampled_from([18, 50]),
        mean=st.tuples(NUMBERS, NUMBERS, NUMBERS),
        pair=st.tuples(st.integers(), st.text()),
        margin=st.none() | NUMBERS,
        out=st.sampled_from([Path("a/b"), Path("/x"), Path()]),
        either=st.integers() | st.text(),
        optim=OPTIMS,
        second=st.none() | OPTIMS,
        stages=st.lists(OPTIMS, max_size=3).map(tuple),
        rates=st.dictionaries(st.text(), NUMBERS, max_size=3),
        named=st.dictionaries(st.text(), OPTIMS, max_size=2),
        anything=st.none() | st.booleans() | NUMBERS | st.lists(st.dictionaries(st.text(), st.integers()), max_size=2),
    )
)
def test_plain_values_and_back_through_json(run):
    plain = to_dict(run)
    assert from_dict(Run, plain) == run
    assert from_dict(Run, json.loads(json.dumps(plain))) == run


def test_plain_values_are_plain():
    assert to_dict({"a": (Path("x/y"), Optim(steps=(1,))), 3: None}) == {
        "a": ["x/y", {"lr": 0.1, "steps": [1], "speed": "slow"}],
        "3": None,
    }


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("3", 3),
            ("1e-3", 0.001),
            ("true", True),
            ("[1, 2]", [1, 2]),
            ('"007"', "007"),
            ("{lr = 2.0}", {"lr": 2.0}),
            # What is no TOML is a string.
            ("007", "007"),
            ("market1501", "market1501"),
            ("a=b", "a=b"),
            ("", ""),
            pytest.param("[" * 3000, "[" * 3000, id="deep"),
            pytest.param("9" * 5000, "9" * 5000, id="long"),
        ],
    )
    def test_a_value_is_read_as_toml_else_as_a_string(self, text, value):
        assert with_overrides({}, [f"x={text}"]) == {"x": value}

    def test_tables_are_entered_and_made(self):
        values = {"optim": {"lr": 0.1, "speed": "slow"}, "name": "x"}
        result = with_overrides(values, ["optim.lr = 0.5", "new.inner.a=1", "name=y", "name=z"])
        assert result == {"optim": {"lr": 0.5, "speed": "slow"}, "new": {"inner": {"a": 1}}, "name": "z"}
        assert values == {"optim": {"lr": 0.1, "speed": "slow"}, "name": "x"}

    @pytest.mark.parametrize("assignment", ["optim.lr", "", "=3", "optim.=3", " = 3"])
    def test_what_is_no_assignment(self, assignment):
        with pytest.raises(ConfigError) as caught:
            with_overrides({}, [assignment])
        assert str(caught.value) == f"Cannot read the override {assignment!r}\n  expected: NAME.NAME=VALUE"

    @pytest.mark.parametrize("assignment", ["name.first=x", "name.first.second=x"])
    def test_through_a_value(self, assignment):
        with pytest.raises(ConfigError, match="got: name is a value, not a table\n  expected: a table"):
            with_overrides({"name": "x"}, [assignment])


class TestToml:
    def test_a_file_with_overrides(self, tmp_path):
        file = tmp_path / "run.toml"
        file.write_text('name = "größer"\nmean = [1, 2.5, 3]\n[optim]\nlr = 1\nspeed = "fast"\n', encoding="utf-8")
        run = load_toml(Run, str(file), overrides=["optim.lr=0.25", "seed=4"])
        assert run == Run("größer", seed=4, mean=(1.0, 2.5, 3.0), optim=Optim(0.25, speed="fast"))

    def test_an_unknown_key_in_an_override(self, tmp_path):
        (tmp_path / "run.toml").write_text('name = "x"\n')
        with pytest.raises(ConfigError, match=r"Unknown key 'optim\.lrr'\n.*\n  to do: did you mean 'lr'\?"):
            load_toml(Run, tmp_path / "run.toml", overrides=["optim.lrr=1"])

    def test_no_such_file(self, tmp_path):
        with pytest.raises(ConfigError) as caught:
            load_toml(Run, tmp_path / "run.toml")
        assert str(caught.value) == f"No such file: {tmp_path / 'run.toml'}\n  to do: check the path"

    @pytest.mark.parametrize(
        ("content", "got"),
        [
            (b"seed = \n", "line 1"),
            (b'name = "x"\nname = "y"\n', "Cannot overwrite a value"),
            (b'name = "\xff"\n', "codec can't decode byte 0xff"),
            pytest.param(b"x = " + b"[" * 5000, "", id="deep"),
            pytest.param(b"seed = " + b"9" * 5000, "", id="long"),
        ],
    )
    def test_what_is_no_toml(self, tmp_path, content, got):
        (tmp_path / "run.toml").write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            load_toml(Run, tmp_path / "run.toml")
        assert str(caught.value).startswith(f"{tmp_path / 'run.toml'} cannot be read as TOML\n  got: ")
        assert got in str(caught.value)

    def test_a_folder(self, tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read as TOML\n.*Is a directory"):
            load_toml(Run, tmp_path)


def test_unknown_names_by_hand():
    assert str(unknown_name("runtime", "onnx", ["onnxruntime", "openvino"])) == (
        "Unknown runtime 'onnx'\n  expected: one of onnxruntime, openvino\n  to do: did you mean 'onnxruntime'?"
    )
    assert str(unknown_name("runtime", "", ["a"])) == "Unknown runtime ''\n  expected: one of a"


class TestOneOfSeveralTables:
    @pytest.mark.parametrize("drawing", [Drawing(), Drawing(Circle(radius=2.0), Square(side=3.0))])
    def test_the_tag_tells_them_apart(self, drawing):
        assert from_dict(Drawing, to_dict(drawing)) == drawing

    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ({"figure": {"radius": 2.0}}, "Missing in figure: shape\n  expected: one of square, circle"),
            ({"figure": {"shape": "circel"}}, "Unknown value of figure.shape: 'circel'"),
            ({"figure": {"shape": "circle", "side": 1.0}}, "Unknown key 'figure.side'"),
            ({"figure": {"shape": "circle", "radius": "1"}}, "figure.radius has the wrong type"),
            ({"figure": 3}, "figure has the wrong type\n  got: 3 (int)\n  expected: a table"),
            ({"second": {"shape": ["square"]}}, "Unknown value of second.shape: \"['square']\""),
        ],
    )
    def test_what_is_none_of_them_is_refused(self, values, text):
        assert refusal(values, Drawing).startswith(text)


def test_a_refused_value_is_named_where_its_table_stands():
    @dataclass(frozen=True)
    class Rate:
        lr: float = 1.0

        def __post_init__(self):
            if self.lr <= 0:
                raise ConfigError("optim.lr is out of range", got=self.lr, expected="above 0", fix="raise it")

    @dataclass(frozen=True)
    class Part:
        optim: Rate = Rate()

    @dataclass(frozen=True)
    class Whole:
        before: Part = Part()
        optim: Rate = Rate()

    with pytest.raises(ConfigError, match=r"^before\.optim\.lr is out of range\n  got: -1.0\n.*above 0\n.*raise it"):
        from_dict(Whole, {"before": {"optim": {"lr": -1}}})
    with pytest.raises(ConfigError, match=r"^optim\.lr is out of range"):
        from_dict(Whole, {"optim": {"lr": -1}})
