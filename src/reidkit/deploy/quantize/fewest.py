"""The fewest layers in float that are good enough, where each answer to "is this good enough?" is dear."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

Enough = Callable[[Collection[str]], bool]
"""Whether these layers in float are good enough; asked the same twice, it should remember."""


def fewest_floats(
    enough: Enough, groups: Sequence[Collection[str]], multiply_adds: Mapping[str, int]
) -> frozenset[str] | None:
    """Layers that are good enough in float, and of which none can be spared alone.

    Begins with the smallest group that suffices alone, or with as many of the first as do. Then takes back what is not
    needed: whole groups, halves of them, single layers, of those the dearest first, until none can go.

    What it returns was asked for, and so was it without each of its layers. That no other choice is smaller is not
    certain: that would take a question for each. Where more layers are never worse, and the needed ones are the same
    whatever else is float, it finds those.

    Args:
        enough: the question. No layer at all, and every layer, are never asked for.
        groups: of all layers, those that matter most first.
        multiply_adds: by layer.

    Returns:
        The layers; or None where neither a group alone nor any number of the first ones is enough.
    """

    def cost(layers: Collection[str]) -> tuple[int, int]:
        return len(layers), sum(multiply_adds[name] for name in layers)

    if len(groups) < 2:
        return None
    alone = [group for group in groups if enough(group)]
    start = [min(alone, key=cost)] if alone else _grown(enough, groups)
    return None if start is None else _spared(enough, start, multiply_adds)


def _grown(enough: Enough, groups: Sequence[Collection[str]]) -> list[Collection[str]] | None:
    for count in range(2, len(groups)):
        if enough({name for group in groups[:count] for name in group}):
            return list(groups[:count])
    return None


def _spared(enough: Enough, groups: Sequence[Collection[str]], multiply_adds: Mapping[str, int]) -> frozenset[str]:
    kept = frozenset(name for group in groups for name in group)

    def dearest_first(names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: (-multiply_adds[name], name))

    def without(part: Iterable[str]) -> frozenset[str]:
        rest = kept.difference(part)
        return rest if rest and enough(rest) else kept

    waiting = [dearest_first(group) for group in groups]  # taken from the end: what matters least goes first
    while waiting:
        part = waiting.pop()
        before, kept = kept, without(part)
        if kept == before and len(part) > 1:
            half = len(part) // 2
            waiting += [part[half:], part[:half]]
    before = frozenset[str]()
    while kept != before:  # what was spared late may have made another one idle
        before = kept
        for name in dearest_first(before):
            kept = without([name])
    return kept
