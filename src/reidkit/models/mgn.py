"""The multiple granularity network: one trunk, three branches, eight embeddings side by side; names are fast-reid's.

Axes: `n` crops, `c` channels, `h` x `w` positions of a feature map.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reidkit.architecture import MGN_PARTS, ModelSpec, ResNetSpec
from reidkit.errors import InputError
from reidkit.models.head import Head, HeadOutputs
from reidkit.models.resnet import ResNet, stage


class MGN(nn.Module):
    """A ResNet that goes on three times after the first block of stage 3; branch 2 is also cut in halves, 3 in thirds.

    The branches begin with the same weights and share none. Only the first keeps the spec's last stride; the maps that
    are cut have 1, as in fast-reid.
    Source: Wang et al., "Learning Discriminative Features with Multiple Granularities", ACM MM 2018.

    Args:
        spec: with a ResNet without non-local blocks and the branches "mgn".
        identities: number of classes of each head's classifier; None builds none.

    Attributes:
        spec: as given.
        dim: width of an embedding, of all heads together.
    """

    def __init__(self, spec: ModelSpec, identities: int | None = None) -> None:
        super().__init__()
        assert isinstance(spec.backbone, ResNetSpec)
        self.spec = spec
        whole = ResNet(spec.backbone)
        middle = nn.Sequential(*list(whole.layer3)[1:])
        fine = stage(spec.backbone, 4, stride=1)
        fine.load_state_dict(whole.layer4.state_dict())
        self.backbone = nn.Sequential(
            whole.conv1, whole.bn1, whole.relu, whole.maxpool, whole.layer1, whole.layer2, whole.layer3[0]
        )
        self.b1 = nn.Sequential(copy.deepcopy(middle), whole.layer4)
        self.b2 = nn.Sequential(copy.deepcopy(middle), copy.deepcopy(fine))
        self.b3 = nn.Sequential(middle, fine)
        for part in MGN_PARTS:
            self.add_module(f"{part}_head", Head(spec.head, whole.dim, identities))
        self.dim = sum(self._head(part).dim for part in MGN_PARTS)

    def forward(self, x: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """The embeddings of all parts, in the order of `MGN_PARTS`, each after its neck.

        Raises:
            InputError: the crops are so low that their last feature map cannot be cut in three.
        """
        maps = self._maps(x)
        return torch.cat([self._head(part)(maps[part])[1] for part in MGN_PARTS], dim=1)

    def training_outputs(self, x: Float[Tensor, "n 3 height width"]) -> tuple[HeadOutputs, ...]:
        """What the losses see of each head, in the order of `MGN_PARTS`; three of them saw the whole crop.

        Raises:
            InputError: as `forward`.
        """
        maps = self._maps(x)
        return tuple(self._head(part).training_outputs(maps[part], whole=len(part) == 2) for part in MGN_PARTS)

    def _maps(self, x: Float[Tensor, "n 3 height width"]) -> dict[str, Tensor]:
        x = self.backbone(x)
        maps = {"b1": self.b1(x), "b2": self.b2(x), "b3": self.b3(x)}
        for branch, count in (("b2", 2), ("b3", 3)):
            cut = _cut(maps[branch], count)
            maps |= {f"{branch}{number}": part for number, part in enumerate(cut, start=1)}
        return maps

    def _head(self, part: str) -> Head:
        head = self.get_submodule(f"{part}_head")
        assert isinstance(head, Head)
        return head


def _cut(x: Float[Tensor, "n c h w"], count: int) -> tuple[Tensor, ...]:
    """Parts from top to bottom, all of the same height but for the last, which may be lower."""
    parts = torch.chunk(x, count, dim=2)
    if len(parts) != count:
        raise InputError(
            "The crops are too low for MGN",
            got=f"a last feature map of height {x.shape[2]}",
            expected=f"one that can be cut in {count}",
            fix="take higher crops, such as 384 x 128",
        )
    return parts
