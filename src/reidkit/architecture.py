"""What a known network is, as data: the frozen spec that PyTorch builds from and that the manifest records.

No torch here: engines that are built without it (TensorRT's network definition, Caffe) read the same spec.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from reidkit.config import from_dict
from reidkit.errors import ConfigError, require_one_of, unknown_name

Ibn = Literal["none", "a", "b"]
NonLocal = Literal["none", "one", "half"]
MaxPool = Literal["ceil", "pad"]
Pooling = Literal["average", "max", "gem", "average+max", "own"]
OSNetVariant = Literal["plain", "ibn", "ain"]
Branches = Literal["one", "mgn"]

STAGE_BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Residual blocks a stage, by depth (He et al., CVPR 2016, table 1)."""

STAGE_WIDTHS = (64, 128, 256, 512)

NON_LOCAL_BLOCKS: dict[int, tuple[int, int, int, int]] = {50: (0, 2, 3, 0), 101: (0, 2, 9, 0)}
"""How many blocks at the end of each stage a non-local block follows, by depth, as fast-reid places them."""

OSNET_WIDTHS: dict[float, tuple[int, int, int, int]] = {
    1.0: (64, 256, 384, 512),
    0.75: (48, 192, 288, 384),
    0.5: (32, 128, 192, 256),
    0.25: (16, 64, 96, 128),
}
"""Channels of the stem and of the three stages, by width multiplier (Zhou et al., ICCV 2019, and the authors' code)."""

MGN_PARTS = ("b1", "b2", "b3", "b21", "b22", "b31", "b32", "b33")
"""MGN's heads in the order of their embeddings: three of the whole picture, two halves, three thirds."""


@dataclass(frozen=True, slots=True)
class ResNetSpec:
    """A residual network (He et al., CVPR 2016) with what re-identification adds to it.

    Attributes:
        depth: 18, 34, 50, 101 or 152; basic blocks up to 34, bottlenecks from 50.
        ibn: "a" puts instance normalisation on half of the channels of each block's first normalisation in stages 1
            to 3; "b" puts it on the stem and behind the last sum of stages 1 and 2 (Pan et al., ECCV 2018).
        se: squeeze and excitation in every block, before the sum (Hu et al., CVPR 2018).
        non_local: blocks of position attention in stages 2 and 3 (Wang et al., CVPR 2018), by their inner width: "one"
            channel, as most of fast-reid's weights have it by a slip that was published, or "half" of the channels.
        last_stride: of stage 4; 1 keeps the last feature map twice as large (Luo et al., CVPRW 2019).
        max_pool: of the stem, 3x3 with stride 2: "ceil" has no padding and rounds the size up, "pad" pads by 1.
        preactivation: the ReLU stands before a block instead of after its sum, as in fast-reid's distilled networks.
    """

    family: Literal["resnet"] = "resnet"
    depth: int = 18
    ibn: Ibn = "a"
    se: bool = False
    non_local: NonLocal = "none"
    last_stride: int = 1
    max_pool: MaxPool = "ceil"
    preactivation: bool = False

    def __post_init__(self) -> None:
        require_one_of("kind of IBN", self.ibn, get_args(Ibn))
        require_one_of("inner width of non-local blocks", self.non_local, get_args(NonLocal))
        require_one_of("max-pooling of the stem", self.max_pool, get_args(MaxPool))
        if self.depth not in STAGE_BLOCKS:
            raise ConfigError("No ResNet of this depth", got=self.depth, expected=f"one of {list(STAGE_BLOCKS)}")
        if self.last_stride not in (1, 2):
            raise ConfigError("The last stride cannot be this", got=self.last_stride, expected="1 or 2")
        if self.non_local != "none" and self.depth not in NON_LOCAL_BLOCKS:
            raise ConfigError(
                "Nobody has placed non-local blocks in a ResNet of this depth",
                got=self.depth,
                expected=f"one of {list(NON_LOCAL_BLOCKS)}",
            )

        if self.preactivation and self.non_local != "none":
            raise ConfigError(
                "A pre-activated ResNet has no non-local blocks", got=f"non_local {self.non_local}", expected="none"
            )

    @property
    def bottleneck(self) -> bool:
        """Whether its blocks are bottlenecks, which widen their output four times."""
        return self.depth >= 50

    @property
    def dim(self) -> int:
        """Channels of the last feature map."""
        return STAGE_WIDTHS[-1] * (4 if self.bottleneck else 1)


@dataclass(frozen=True, slots=True)
class OSNetSpec:
    """The omni-scale network (Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019).

    Attributes:
        width: 0.25, 0.5, 0.75 or 1.0 of the channels.
        variant: "ibn" and "ain" bring in instance normalisation (Zhou et al., "Learning Generalisable Omni-Scale
            Representations", TPAMI 2021), each as the authors' code places it.
    """

    family: Literal["osnet"] = "osnet"
    width: float = 1.0
    variant: OSNetVariant = "plain"

    def __post_init__(self) -> None:
        require_one_of("variant of OSNet", self.variant, get_args(OSNetVariant))
        if self.width not in OSNET_WIDTHS:
            raise ConfigError("No OSNet of this width", got=self.width, expected=f"one of {list(OSNET_WIDTHS)}")

    @property
    def dim(self) -> int:
        """Channels of the last feature map."""
        return OSNET_WIDTHS[self.width][-1]


@dataclass(frozen=True, slots=True)
class TimmSpec:
    """Any backbone of timm (PyTorch Image Models), by its name there.

    Attributes:
        name: such as "convnext_tiny" or "vit_small_patch16_224".
        size: height and width of the crops, for a network whose weights depend on them (a transformer's position
            embedding); None for one that takes any.
    """

    family: Literal["timm"] = "timm"
    name: str = "resnet18"
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("A timm backbone has no name", expected="such as convnext_tiny")
        if self.size is not None and not all(1 <= side <= 8192 for side in self.size):
            raise ConfigError("The size of the crops is out of range", got=self.size, expected="1 to 8192 pixels each")


BackboneSpec: TypeAlias = ResNetSpec | OSNetSpec | TimmSpec


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """From the last feature map to the embedding: pooling, an optional layer, the neck.

    Attributes:
        pooling: "gem" is the generalised mean (Radenovic et al., TPAMI 2019); "average+max" is their sum; "own" leaves
            it to a backbone of timm.
        gem_p: the exponent, or where a learned one starts.
        gem_learned: whether the exponent is a weight.
        embedding_dim: width of a 1x1 convolution between pooling and neck; 0 for none.
        embedding_bias: whether that layer has a bias.
        neck: a last batch normalisation (BNneck; Luo et al., CVPRW 2019).
        relu: a ReLU at the very end, as in torchreid.
    """

    pooling: Pooling = "gem"
    gem_p: float = 3.0
    gem_learned: bool = False
    embedding_dim: int = 0
    embedding_bias: bool = False
    neck: bool = True
    relu: bool = False

    def __post_init__(self) -> None:
        require_one_of("pooling", self.pooling, get_args(Pooling))
        # x ** 16 leaves float32 at x = 256.
        if not (math.isfinite(self.gem_p) and 0 < self.gem_p <= 16):
            raise ConfigError("GeM's exponent is out of range", got=self.gem_p, expected="above 0, at most 16")
        if self.gem_learned and self.pooling != "gem":
            fix = "take pooling gem, or a fixed exponent"
            raise ConfigError("Only GeM has an exponent to learn", got=f"pooling {self.pooling}", fix=fix)
        if self.embedding_bias and not self.embedding_dim:
            raise ConfigError("There is no embedding layer to have a bias", got="embedding_dim 0", fix="give its width")
        if not 0 <= self.embedding_dim <= 65_536:
            raise ConfigError(
                "The width of the embedding layer is out of range", got=self.embedding_dim, expected="0 to 65536"
            )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole network: what `models` builds, recipes ask for and manifests record.

    Attributes:
        backbone: to the last feature map.
        head: from there to the embedding.
        branches: "mgn" splits a ResNet after the first block of stage 3 into three, cut into one, two and three parts;
            eight heads of the same kind, embeddings side by side (Wang et al., "Learning Discriminative Features with
            Multiple Granularities", ACM MM 2018).
    """

    backbone: BackboneSpec = field(default_factory=ResNetSpec)
    head: HeadSpec = field(default_factory=HeadSpec)
    branches: Branches = "one"

    def __post_init__(self) -> None:
        require_one_of("kind of branches", self.branches, get_args(Branches))
        resnet = self.backbone if isinstance(self.backbone, ResNetSpec) else None
        plain = resnet is not None and resnet.non_local == "none" and not resnet.preactivation
        if self.branches == "mgn" and not plain:
            raise ConfigError(
                "MGN has another backbone", got=self.backbone, expected="a plain ResNet without non-local blocks"
            )
        if self.head.pooling == "own" and not isinstance(self.backbone, TimmSpec):
            raise ConfigError(
                f"A backbone of family {self.backbone.family} does not pool by itself", fix="choose average, max or gem"
            )


def read_model_spec(values: Mapping[str, Any], *, where: str = "architecture") -> ModelSpec:
    """Builds a spec from plain values, in today's form or in that of schema 1 (`family` and flat `options`).

    Raises:
        ConfigError: an unknown key or family, or a value that cannot be.
    """
    if "options" not in values:
        return from_dict(ModelSpec, values, where=where)
    if values.get("family") != "resnet":
        raise unknown_name("architecture family", str(values.get("family")), ["resnet"])
    if not isinstance(values["options"], Mapping):
        raise ConfigError(f"{where}.options has the wrong type", got=repr(values["options"]), expected="a table")
    options = dict(values["options"])
    head = {name: options.pop(name) for name in ("pooling", "gem_p", "gem_learned") if name in options}
    return from_dict(ModelSpec, {"backbone": {"family": "resnet", **options}, "head": head}, where=where)


def _catalogue() -> dict[str, ModelSpec]:
    models: dict[str, ModelSpec] = {}
    ibns: dict[str, Ibn] = {"": "none", "-ibn-a": "a", "-ibn-b": "b"}
    variants: dict[str, OSNetVariant] = {"": "plain", "-ibn": "ibn", "-ain": "ain"}
    plain = HeadSpec(pooling="average")
    for depth in STAGE_BLOCKS:
        for suffix, ibn in ibns.items():
            models[f"resnet{depth}{suffix}"] = ModelSpec(ResNetSpec(depth=depth, ibn=ibn), plain)
        models[f"resnet{depth}-se"] = ModelSpec(ResNetSpec(depth=depth, ibn="none", se=True), plain)
    sbs = HeadSpec(pooling="gem", gem_learned=True)
    for depth in NON_LOCAL_BLOCKS:
        spec = ResNetSpec(depth=depth, ibn="a", non_local="one")
        models[f"agw-r{depth}"] = ModelSpec(replace(spec, ibn="none"), HeadSpec(pooling="gem"))
        models[f"sbs-r{depth}-ibn"] = ModelSpec(spec, sbs)
    parts = replace(sbs, embedding_dim=256)
    models["mgn-r50-ibn"] = ModelSpec(ResNetSpec(depth=50, ibn="a"), parts, "mgn")
    torchreid = HeadSpec(pooling="average", embedding_dim=512, embedding_bias=True, relu=True)
    for width in OSNET_WIDTHS:
        for suffix, variant in variants.items():
            models[f"osnet{suffix}-x{width}"] = ModelSpec(OSNetSpec(width=width, variant=variant), torchreid)
    return models


CATALOGUE: Mapping[str, ModelSpec] = _catalogue()
"""Networks that have a name. `timm:NAME` is one more kind; see `named_model`."""

TIMM = "timm:"


def named_model(name: str) -> ModelSpec:
    """The network of a name: one of `CATALOGUE`, or `timm:NAME` for any of timm's.

    Raises:
        ConfigError: no such name; suggests the nearest. Whether timm knows its part is found out when it is built.
    """
    if name.startswith(TIMM):
        return ModelSpec(TimmSpec(name=name.removeprefix(TIMM)), HeadSpec(pooling="own"))
    if name not in CATALOGUE:
        raise unknown_name("model", name, CATALOGUE)
    return CATALOGUE[name]


CLASSIFIERS = frozenset({"heads.weight", *(f"{part}_head.weight" for part in MGN_PARTS)})
"""Names of the weights that only training needs: one row for each training identity."""


def with_size(spec: ModelSpec, size: tuple[int, int]) -> ModelSpec:
    """The spec for crops of a height and width, which some of timm's networks are built for; others take any."""
    if isinstance(spec.backbone, TimmSpec) and spec.backbone.size is None:
        return replace(spec, backbone=replace(spec.backbone, size=size))
    return spec


def in_words(spec: ModelSpec) -> str:
    """A spec as a person would say it: "ResNet-50 with IBN-a, last stride 1; learned GeM, BNneck"."""
    head = spec.head
    pooling = {
        "gem": f"learned GeM (from {head.gem_p:g})" if head.gem_learned else f"GeM {head.gem_p:g}",
        "average": "average pooling",
        "max": "maximum pooling",
        "average+max": "average plus maximum pooling",
        "own": "its own pooling",
    }[head.pooling]
    layers = [
        pooling,
        *([f"{head.embedding_dim}-d layer"] if head.embedding_dim else []),
        *(["BNneck"] if head.neck else []),
        *(["ReLU"] if head.relu else []),
    ]
    name = _backbone_in_words(spec.backbone)
    return f"{'MGN of ' if spec.branches == 'mgn' else ''}{name}; {', '.join(layers)}"


def _backbone_in_words(spec: BackboneSpec) -> str:
    match spec:
        case ResNetSpec():
            added = [
                *([f"IBN-{spec.ibn}"] if spec.ibn != "none" else []),
                *(["SE"] if spec.se else []),
                *([f"non-local ({spec.non_local})"] if spec.non_local != "none" else []),
                f"last stride {spec.last_stride}",
                {"ceil": "ceiling max-pool", "pad": "padded max-pool"}[spec.max_pool],
                *(["ReLU before blocks"] if spec.preactivation else []),
            ]
            return f"ResNet-{spec.depth} with {', '.join(added)}"
        case OSNetSpec():
            return f"OSNet{'' if spec.variant == 'plain' else '-' + spec.variant.upper()} x{spec.width}"
        case TimmSpec():
            return f"timm's {spec.name}" + (f" for {spec.size[0]}x{spec.size[1]}" if spec.size else "")
