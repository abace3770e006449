from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from reidkit.deploy.quantize.fewest import fewest_floats

GROUPS = [("a1", "a2", "a3"), ("b1", "b2"), ("c1",), ("d1", "d2")]
LAYERS = [name for group in GROUPS for name in group]
SAME = dict.fromkeys(LAYERS, 1)


def needing(needed):
    return lambda floats: set(needed) <= set(floats)


@given(st.sets(st.sampled_from(LAYERS), min_size=1), st.permutations(GROUPS))
def test_layers_that_are_needed_are_found_whatever_comes_first(needed, order):
    before_the_last = {name for group in order[:-1] for name in group}
    alone = any(needed <= set(group) for group in order)
    expected = frozenset(needed) if alone or needed <= before_the_last else None
    assert fewest_floats(needing(needed), order, SAME) == expected


@given(
    st.fixed_dictionaries({name: st.integers(-3, 20) for name in LAYERS}),
    st.integers(1, 60),
)
def test_none_of_the_layers_can_be_spared_alone(gains, wanted):
    """Gains may be below 0: so it is with mAP, where more float is not always better."""
    asked = []

    def enough(floats):
        assert 0 < len(floats) < len(LAYERS)
        asked.append(frozenset(floats))
        return sum(gains[name] for name in floats) >= wanted

    found = fewest_floats(enough, GROUPS, SAME)
    first = [{name for group in GROUPS[:count] for name in group} for count in (1, 2, 3)]
    if found is None:
        assert not any(enough(part) for part in [*first, *GROUPS])
        return
    assert found in asked
    assert enough(found)
    for name in found:
        if len(found) > 1:
            assert found - {name} in asked
            assert not enough(found - {name})


def test_a_layer_that_becomes_idle_late_is_spared_too():
    """As long as y is float x has to be, and x is tried first."""

    def enough(floats):
        return {"a", "b"} <= set(floats) and ("x" in floats or "y" not in floats)

    assert fewest_floats(enough, [("a",), ("b", "y"), ("x",), ("z",)], dict.fromkeys("abxyz", 1)) == {"a", "b"}


def test_the_smallest_group_that_suffices_alone_and_of_equal_ones_the_cheapest():
    def enough(floats):
        return set(floats) in ({"a1", "a2", "a3"}, {"b1", "b2"}, {"d1", "d2"})

    assert fewest_floats(enough, GROUPS, {**SAME, "b1": 5}) == {"d1", "d2"}
    assert fewest_floats(enough, GROUPS, {**SAME, "d1": 5}) == {"b1", "b2"}


def test_the_dearest_layers_are_spared_first():
    """Any two of the three are enough."""
    floats = fewest_floats(lambda floats: len({"a1", "a2", "a3"} & set(floats)) > 1, GROUPS, {**SAME, "a2": 7})
    assert floats == {"a1", "a3"}


def test_few_questions_where_one_layer_of_many_matters():
    groups = [tuple(f"{block}{i}" for i in range(16)) for block in "abcd"]
    sizes = {name: 1 for group in groups for name in group}
    asked = set()

    def enough(floats):
        asked.add(frozenset(floats))
        return "c5" in floats

    assert fewest_floats(enough, groups, sizes) == {"c5"}
    assert len(asked) <= len(groups) + 9  # halves: 2 * log2(16), and one more


def test_the_least_answer_by_trying_all_of_them():
    """On a case small enough to try all: gains that add up, which the order then tells of."""
    gains = {"a1": 5, "a2": 4, "b1": 3, "b2": 3, "c1": 1, "d1": 0}
    groups = [("a1", "a2"), ("b1", "b2"), ("c1",), ("d1",)]

    def enough(floats):
        return sum(gains[name] for name in floats) >= 11

    sizes = dict.fromkeys(gains, 1)
    least = next(n for n in range(1, 7) if any(enough(part) for part in combinations(gains, n)))
    found = fewest_floats(enough, groups, sizes)
    assert found is not None
    assert len(found) == least == 3


def test_nothing_is_to_be_chosen_in_a_single_group():
    assert fewest_floats(lambda _: True, [("a", "b")], {"a": 1, "b": 1}) is None
