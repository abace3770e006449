"""Which ResNet a file holds, from names (`layer3.5.bn1.IN.weight`) and numbers of values.

fast-reid, torchreid, torchvision, timm and the authors of IBN-Net name a ResNet alike.
"""

import re
from dataclasses import replace

from reidkit.architecture import NON_LOCAL_BLOCKS, STAGE_BLOCKS, STAGE_WIDTHS, Ibn, NonLocal, ResNetSpec
from reidkit.checkpoints.reading import Sizes, some
from reidkit.errors import ModelError

_BLOCK = re.compile(r"^layer(\d+)\.(\d+)\.(.+)$")
_BASIC_STAGE = 9 * 64 * 64

Blocks = dict[int, dict[int, dict[str, int]]]
"""Numbers of values by stage, block and name within the block."""


def is_resnet(sizes: Sizes) -> bool:
    """Whether these look like the names of a ResNet."""
    return "conv1.weight" in sizes and any(name.startswith("layer1.0.") for name in sizes)


def infer_resnet(sizes: Sizes) -> ResNetSpec:
    """The ResNet of these names, with stride and max-pooling, which no name shows, at their defaults.

    Raises:
        ModelError: not a ResNet that reidkit can build; names the block and what is wrong with it.
    """
    blocks = _blocks(sizes)
    bottleneck = _bottleneck(blocks)
    _check_widths(blocks, bottleneck=bottleneck)
    depth = _depth(blocks, bottleneck=bottleneck)
    spec = ResNetSpec(depth=depth, ibn=_ibn(sizes, blocks), se=_squeeze_excitation(blocks))
    return replace(spec, non_local=_non_local(sizes, depth))


def _blocks(sizes: Sizes) -> Blocks:
    blocks: Blocks = {}
    for name, size in sizes.items():
        if found := _BLOCK.match(name):
            stage, index, rest = int(found[1]), int(found[2]), found[3]
            blocks.setdefault(stage, {}).setdefault(index, {})[rest] = size
    for stage in sorted(blocks.keys() - {1, 2, 3, 4}):
        count = sum(len(names) for names in blocks[stage].values())
        raise ModelError(
            f"The file has a stage more than a ResNet: layer{stage}",
            got=f"{count} tensors layer{stage}.*",
            expected="layer1 to layer4",
            fix="find out which network this is; reidkit does not know it",
        )
    for stage in (1, 2, 3, 4):
        indices = sorted(blocks.get(stage, {}))
        if not indices or indices != list(range(len(indices))):
            raise ModelError(
                f"The file does not hold all of layer{stage}",
                got=f"the blocks {indices}",
                expected="blocks 0, 1, 2, … without a gap",
                fix="take a whole checkpoint",
            )
    return blocks


def _bottleneck(blocks: Blocks) -> bool:
    thrice = [_name(s, i) for s, stage in blocks.items() for i, names in stage.items() if "conv3.weight" in names]
    total = sum(len(stage) for stage in blocks.values())
    if thrice and len(thrice) != total:
        raise ModelError(
            "Some blocks of the file have three convolutions and some have two",
            got=f"three in {len(thrice)} of {total}: {some(thrice)}",
            expected="all alike",
        )
    return bool(thrice)


def _check_widths(blocks: Blocks, *, bottleneck: bool) -> None:
    """Refuses the relatives that have the same names: ResNeXt and wide ResNets."""
    first = blocks[1][0]
    size = first.get("conv2.weight", _BASIC_STAGE)
    if not bottleneck or size == _BASIC_STAGE or "conv1.weight" not in first:
        return
    width = first["conv1.weight"] // 64
    groups = 9 * width * width // size if size else 0
    kind = "a wide ResNet" if groups == 1 else f"a ResNeXt with {groups} groups"
    raise ModelError(
        f"The file holds {kind}, which reidkit does not have",
        got=f"{size} values in layer1.0.conv2.weight",
        expected=f"{_BASIC_STAGE}, as in a ResNet",
    )


def _depth(blocks: Blocks, *, bottleneck: bool) -> int:
    counts = tuple(len(blocks[stage]) for stage in (1, 2, 3, 4))
    for depth, expected in STAGE_BLOCKS.items():
        if expected == counts and (depth >= 50) == bottleneck:
            return depth
    kind = "bottlenecks" if bottleneck else "basic blocks"
    known = "; ".join(f"{list(c)} is ResNet-{d}" for d, c in STAGE_BLOCKS.items() if (d >= 50) == bottleneck)
    raise ModelError(
        "The file's blocks make up no ResNet", got=f"{list(counts)} {kind} in layer1 to layer4", expected=known
    )


def _ibn(sizes: Sizes, blocks: Blocks) -> Ibn:
    halved = {(s, i) for s, stage in blocks.items() for i, names in stage.items() if "bn1.IN.weight" in names}
    summed = {(s, i) for s, stage in blocks.items() for i, names in stage.items() if "IN.weight" in names}
    if halved and summed:
        raise ModelError("The file mixes IBN-a and IBN-b", got=f"{_names(halved)} and {_names(summed)}")
    if summed:
        _check_places(
            "IBN-b", summed, {(s, len(blocks[s]) - 1) for s in (1, 2)}, "behind the last sum of layer1 and layer2"
        )
        if "bn1.running_mean" in sizes:
            raise ModelError(
                "The file has IBN-b's blocks and a batch normalisation in its stem", got="bn1.running_mean"
            )
        return "b"
    if not halved:
        return "none"
    places = {(s, i) for s in (1, 2, 3) for i in blocks[s]}
    _check_places("IBN-a", halved, places, "in every block of layer1 to layer3")
    for stage, index in sorted(halved):
        names, width = blocks[stage][index], STAGE_WIDTHS[stage - 1]
        got = (names["bn1.IN.weight"], names.get("bn1.BN.weight", 0))
        if got != (width // 2, width - width // 2):
            raise ModelError(
                f"IBN-a does not halve the channels of {_name(stage, index)}",
                got=f"{got[0]} of instance and {got[1]} of batch normalisation",
                expected=f"{width // 2} and {width - width // 2}",
            )
    return "a"


def _squeeze_excitation(blocks: Blocks) -> bool:
    places = {(s, i) for s, stage in blocks.items() for i in stage}
    having = {(s, i) for s, i in places if "se.fc.0.weight" in blocks[s][i]}
    if having:
        _check_places("squeeze and excitation", having, places, "in every block")
    return bool(having)


def _non_local(sizes: Sizes, depth: int) -> NonLocal:
    got = [0, 0, 0, 0]
    inner: dict[str, NonLocal] = {}
    for name, size in sizes.items():
        found = re.match(r"^NL_([1-4])\.(\d+)\.g\.weight$", name)
        if not found:
            continue
        stage = int(found[1])
        got[stage - 1] += 1
        channels = STAGE_WIDTHS[stage - 1] * (4 if depth >= 50 else 1)
        width = size / channels
        if width not in (1, channels // 2):
            raise ModelError(
                f"The non-local block {name.removesuffix('.g.weight')} has an inner width that no fast-reid gave it",
                got=f"{width:g} channels",
                expected=f"1 or {channels // 2}",
            )
        inner[name] = "one" if width == 1 else "half"
    if not inner:
        return "none"
    expected = NON_LOCAL_BLOCKS.get(depth)
    if expected is None or tuple(got) != expected:
        raise ModelError(
            f"The non-local blocks are not those of a ResNet-{depth}",
            got=f"{got} behind layer1 to layer4",
            expected=f"{list(expected)}" if expected else "none at this depth",
        )
    if len(set(inner.values())) > 1:
        one = [name for name, width in inner.items() if width == "one"]
        raise ModelError(
            "The non-local blocks differ in their inner width", got=f"1 channel in {some(one)}", expected="all alike"
        )
    return next(iter(inner.values()))


def _check_places(what: str, got: set[tuple[int, int]], expected: set[tuple[int, int]], words: str) -> None:
    if got != expected:
        lacking, extra = expected - got, got - expected
        faults = [f"not in {_names(lacking)}"] if lacking else []
        faults += [f"also in {_names(extra)}"] if extra else []
        raise ModelError(
            f"The file does not have {what} as any known network has it", got="; ".join(faults), expected=words
        )


def _names(places: set[tuple[int, int]]) -> str:
    return some([_name(stage, index) for stage, index in sorted(places)])


def _name(stage: int, index: int) -> str:
    return f"layer{stage}.{index}"
