"""What the names in a checkpoint of fast-reid show, and whether its config and the caller say the same."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from reidkit.architecture import OSNetSpec, ResNetSpec
from reidkit.checkpoints.fastreid_config import DISTILLED_BACKBONE, OSNET_BACKBONE, FastReidConfig
from reidkit.checkpoints.fastreid_eras import ERAS, Dating, Facets, date
from reidkit.checkpoints.fastreid_head import MGN_PREFIXES, PLAIN, HeadKeys, check_mgn_heads, read_heads
from reidkit.checkpoints.osnet_keys import infer_osnet, is_osnet
from reidkit.checkpoints.reading import Sizes, some, without_prefix
from reidkit.checkpoints.resnet_keys import infer_resnet, is_resnet
from reidkit.errors import ModelError

ANY = "fastreid"
DISTILLED = "fastreid-distilled"
MGN = "fastreid-mgn"

BUFFERS = ("pixel_mean", "pixel_std")
_DISTILLER = re.compile(r"^connectors(_\d+)?\.|^margin\d+(_\d+)?$")

_MGN_TRUNK = {
    "backbone.0.": "conv1.",
    "backbone.1.": "bn1.",
    "backbone.4.": "layer1.",
    "backbone.5.": "layer2.",
    "backbone.6.": "layer3.0.",
}

_OTHER_BACKBONES = (
    ("backbone.cls_token", "a vision transformer"),
    ("backbone.patch_embed.", "a vision transformer"),
    ("backbone.conv1.0.", "a ResNeSt, or a ResNet with a deep stem"),
    ("backbone.s1.b1.", "a RegNet or EfficientNet"),
    ("backbone.stage1.0.rbr_dense.", "a RepVGG"),
    ("backbone.features.", "a MobileNet or ShuffleNet"),
    ("backbone.conv_stem.", "an EfficientNet of timm"),
)


@dataclass(frozen=True, slots=True)
class FastReidFile:
    """What the names show.

    Attributes:
        backbone: without what has no weights.
        head: all eight of an MGN are alike.
        prefixes: of the heads' keys.
        dating: the times that the file can be from.
        mgn: whether it has MGN's branches.
        distilled: whether its ResNet has pre-activation: by its names, its config or the caller.
        distiller: names that only a distiller needs.
        buffers: whether it brings its own mean and standard deviation.
    """

    backbone: ResNetSpec | OSNetSpec
    head: HeadKeys
    prefixes: tuple[str, ...]
    dating: Dating
    mgn: bool
    distilled: bool
    distiller: tuple[str, ...]
    buffers: bool

    @property
    def dialect(self) -> str:
        """The kind of network, and its time."""
        kinds = [*([MGN] if self.mgn else []), *([DISTILLED] if self.distilled else [])]
        return ", ".join([*kinds, self.dating.name])

    @property
    def non_local(self) -> bool:
        """Whether it has non-local blocks, which a distilled network does not run."""
        return isinstance(self.backbone, ResNetSpec) and self.backbone.non_local != "none"


def inspect(sizes: Sizes, config: FastReidConfig | None, dialect: str | None) -> FastReidFile:
    """Finds out what the names show.

    Args:
        sizes: numbers of values by the names of the file.
        config: that comes with it.
        dialect: one of `fastreid.DIALECTS` that the caller holds the file to.

    Raises:
        ModelError: a network that reidkit does not have, a damaged one, or one that is not what the config or the
            caller says.
    """
    for start, name in _OTHER_BACKBONES:
        if found := next((key for key in sizes if key.startswith(start)), None):
            raise ModelError(f"The file's backbone is {name}, which reidkit cannot take from fast-reid", got=found)
    mgn = any(name.startswith(("b1.", "b1_head.", "b1_pool.")) for name in sizes)
    if mgn:
        check_mgn_heads(sizes)
    distiller = tuple(name for name in sizes if _DISTILLER.match(name))
    _check_variant(config, dialect, mgn=mgn, distiller=distiller)
    backbone = _backbone(_mgn_trunk(sizes) if mgn else without_prefix(sizes, "backbone."))
    prefixes = MGN_PREFIXES if mgn else (PLAIN,)
    head = read_heads(sizes, prefixes, backbone.dim)
    facets = Facets(
        neck=head.neck,
        classifier=head.classifier,
        buffers=BUFFERS[0] in sizes,
        non_local=backbone.non_local if isinstance(backbone, ResNetSpec) else "none",
        head=prefixes[0],
    )
    dating = date(facets, wanted=dialect if dialect in ERAS else None)
    distilled = bool(distiller) or dialect == DISTILLED or bool(config and config.distilled)
    file = FastReidFile(backbone, head, prefixes, dating, mgn, distilled, distiller, facets.buffers)
    _check_squeeze_excitation(file)
    _check_config(file, config)
    return file


def _check_variant(
    config: FastReidConfig | None, dialect: str | None, *, mgn: bool, distiller: tuple[str, ...]
) -> None:
    """Refuses a Baseline, a distilled network and an MGN that are offered as one another."""
    proof = f"{some(distiller)} ({len(distiller)} tensors)" if distiller else None
    if config and config.distilled and not proof:
        proof = f"{DISTILLED_BACKBONE} in {config.path}"
    says_plain = dialect is not None and dialect in (ANY, MGN)
    if proof and says_plain:
        raise ModelError(
            f"The checkpoint is of a distilled network and is offered as {dialect}",
            got=proof,
            fix=f"leave --dialect out, or say --dialect {DISTILLED}",
        )
    if config and config.distilled is False and (distiller or dialect == DISTILLED):
        raise ModelError(
            "A distilled checkpoint comes with the config of a plain network",
            got=f"{proof or f'--dialect {DISTILLED}'}, and {config.backbone} in {config.path}",
            expected=f"MODEL.BACKBONE.NAME {DISTILLED_BACKBONE}",
            fix="give the config that the network was trained with",
        )
    says_mgn = {MGN: True, ANY: False, DISTILLED: False}.get(dialect or "")
    if says_mgn is not None and says_mgn != mgn:
        got = "b1, b2 and b3 with their heads" if mgn else "no b1_head"
        fix = f"leave --dialect out, or say --dialect {MGN if mgn else ANY}"
        raise ModelError(f"The checkpoint is {'an' if mgn else 'no'} MGN and is offered as {dialect}", got=got, fix=fix)
    if config and config.meta and (config.meta == "MGN") != mgn:
        branches = "branches b1 to b3" if mgn else "no branches"
        raise ModelError(
            "The config and the checkpoint are of different networks",
            got=f"MODEL.META_ARCHITECTURE {config.meta} in {config.path}, and {branches} in the file",
            fix="give the config that the network was trained with",
        )


def _check_squeeze_excitation(file: FastReidFile) -> None:
    """Refuses the blocks of ResNet-18 and 34 that had squeeze and excitation and ran without."""
    backbone, eras = file.backbone, file.dating.eras
    if not isinstance(backbone, ResNetSpec) or not backbone.se or backbone.bottleneck:
        return
    if not eras or any(era.max_pool == "pad" for era in eras):
        raise ModelError(
            "The old fast-reid put squeeze and excitation into the weights of ResNet-18 and 34 and did not use it",
            got=f"a ResNet-{backbone.depth} with SE of {file.dialect}",
            fix="if it is newer, say --dialect fastreid-2020-12 or --dialect fastreid-2021-03",
        )


def _mgn_trunk(sizes: Sizes) -> dict[str, int]:
    """The names that the trunk and the first branch of an MGN have in a ResNet."""
    trunk: dict[str, int] = {}
    for name, size in sizes.items():
        for start, plain in _MGN_TRUNK.items():
            if name.startswith(start):
                trunk[plain + name.removeprefix(start)] = size
        if found := re.match(r"^b1\.0\.(\d+)\.(.+)$", name):
            trunk[f"layer3.{int(found[1]) + 1}.{found[2]}"] = size
        elif found := re.match(r"^b1\.1\.(.+)$", name):
            trunk[f"layer4.{found[1]}"] = size
    return trunk


def _backbone(names: Sizes) -> ResNetSpec | OSNetSpec:
    if is_osnet(names):
        return infer_osnet(names)
    if is_resnet(names):
        return infer_resnet(names)
    raise ModelError(
        "The file's backbone is none that reidkit knows",
        got=some([f"backbone.{name}" for name in names], 4) or "no backbone",
        expected="a ResNet or an OSNet",
    )


def _check_config(file: FastReidFile, config: FastReidConfig | None) -> None:
    """The file is right about its shapes; a config that says otherwise is another network's."""
    if config is None:
        return
    faults = list(_contradictions(file, config))
    if faults:
        wrong = " and ".join(what for what, _, _ in faults)
        raise ModelError(
            f"{config.path} is the config of another network: it has the wrong {wrong}",
            got="; ".join(f"{what}: {said} in the config, {held} in the file" for what, said, held in faults),
            fix="give the config that the network was trained with, or none",
        )


def _contradictions(file: FastReidFile, config: FastReidConfig) -> Iterable[tuple[str, object, object]]:
    backbone, head = file.backbone, file.head
    if isinstance(backbone, OSNetSpec):
        held = f"x{str(float(backbone.width)).replace('.', '_')}"
        ibn, se, non_local = backbone.variant != "plain", False, False
    else:
        held = f"{backbone.depth}x"
        ibn, se, non_local = backbone.ibn != "none", backbone.se, backbone.non_local != "none"
    if config.backbone is not None and (config.backbone == OSNET_BACKBONE) != isinstance(backbone, OSNetSpec):
        yield "BACKBONE.NAME", config.backbone, "an OSNet" if isinstance(backbone, OSNetSpec) else "a ResNet"
        return  # all of the rest is another family's
    if config.depth is not None and config.depth.rstrip("x") != held.rstrip("x"):
        yield "depth", config.depth, held
    if config.ibn is not None and config.ibn != ibn:
        yield "WITH_IBN", config.ibn, ibn
    if config.se is not None and config.se != se:
        yield "WITH_SE", config.se, se
    # A ResNet of depth 18 or 34 and a distilled one have no non-local blocks, whatever their config says.
    takes = isinstance(backbone, ResNetSpec) and backbone.bottleneck and not file.distilled
    if config.non_local is not None and config.non_local != non_local and (takes or non_local):
        yield "WITH_NL", config.non_local, non_local
    if config.embedding_dim is not None and config.embedding_dim != head.embedding_dim:
        yield "EMBEDDING_DIM", config.embedding_dim, head.embedding_dim
    if config.neck is not None and config.neck != (head.neck is not None):
        yield "WITH_BNNECK", config.neck, head.neck is not None
