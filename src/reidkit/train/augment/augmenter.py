"""Every random change of a recipe, in its documented order. Pixels are float, 0 to 255, n x 3 x height x width."""

import math

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from reidkit.errors import InputError
from reidkit.train.augment.background import body_weight, surrounded
from reidkit.train.augment.color import brightened, contrasted, hue_turned, luma, saturated
from reidkit.train.augment.draws import Numbers, another, between, chosen, draw_numbers, whole
from reidkit.train.augment.geometry import shifted, source_of, turned
from reidkit.train.augment.operations import operated
from reidkit.train.augment.policy import Operations, chosen_operations, imagenet_policy, turn_of
from reidkit.train.augment.rectangles import covered, log_between, patched, random_rectangles
from reidkit.train.settings import Augment

_ERASE_LEAST, _ERASE_ASPECT = 0.02, 0.3
_PATCH_AREA, _PATCH_ASPECT = (0.01, 0.5), 0.1


class Augmenter:
    """Changes crops at random, each by its own draw, as a recipe says.

    Drawing is apart from changing: `draw_numbers` asks the generator once, and `change` is a pure function of crops and
    numbers, for CUDA graphs and `torch.compile` to take. What is switched off costs nothing.

    Sources: Zhong et al., Random Erasing (AAAI 2020); Zhou et al., Learning Generalisable Omni-Scale Representations
    (TPAMI 2021) for patches, whose pool is here the batch, and which are not turned or mirrored once more (crops are);
    Cubuk et al., AutoAugment (CVPR 2019).

    Args:
        settings: what to do and how often.
        height: of crops, in pixels.
        width: of crops, in pixels.
        fill: colour of what was moved in from outside or erased, RGB, 0 to 255: the one that is zero after
            normalisation. No change of colour touches it.
        device: where crops are.
    """

    def __init__(
        self, settings: Augment, *, height: int, width: int, fill: Float[Tensor, " 3"], device: torch.device
    ) -> None:
        self.settings = settings
        self.size = (height, width)
        self._fill = fill.to(device=device, dtype=torch.float32).view(1, 3, 1, 1)
        self._body = body_weight(height, width).to(device)
        self._policy = imagenet_policy(device)

    def __call__(
        self, crops: UInt8[Tensor, "n height width 3"], generator: torch.Generator
    ) -> Float[Tensor, "n 3 height width"]:
        """Changed copies of the crops.

        Args:
            crops: RGB.
            generator: of the random numbers, on the crops' device. Its state decides the result, to the bit on a CPU.

        Returns:
            Pixels, still 0 to 255.

        Raises:
            InputError: the crops have another size.
        """
        return self.change(crops, draw_numbers(len(crops), generator))

    def change(
        self, crops: UInt8[Tensor, "n height width 3"], numbers: Float[Tensor, "numbers n"]
    ) -> Float[Tensor, "n 3 height width"]:
        """What `__call__` does, with given random numbers (the rows are the fields of `Numbers`).

        Raises:
            InputError: the crops have another size.
        """
        if tuple(crops.shape[1:3]) != self.size:
            got, expected = ("x".join(map(str, size)) for size in (crops.shape[1:3], self.size))
            raise InputError("Crops to augment have the wrong size", got=got, expected=f"{expected} (height x width)")
        u, wanted = Numbers(*numbers.unbind()), self.settings
        operations = None
        if wanted.policy > 0:
            operations = chosen_operations(self._policy, chosen(u.policy, wanted.policy), u)
        pixels, seen = self._placed(crops, u, operations)
        if wanted.background > 0:
            share = u.background_share * chosen(u.background, wanted.background)
            pixels = surrounded(pixels, crops, self._body, another(u.background_crop), share)
        if operations is not None:
            pixels = pixels.round()
            for each in operations:
                pixels = operated(pixels, each)
        if wanted.color > 0:
            pixels = self._jittered(pixels, u)
        if wanted.grey > 0:
            pixels = torch.where(chosen(u.grey, wanted.grey)[:, None, None, None], luma(pixels), pixels)
        pixels, seen = self._covered(pixels, seen, u)
        return pixels if seen is None else torch.where(seen[:, None], pixels, self._fill)

    def _placed(
        self, crops: UInt8[Tensor, "n height width 3"], u: Numbers, operations: tuple[Operations, Operations] | None
    ) -> tuple[Float[Tensor, "n 3 height width"], Bool[Tensor, "n height width"] | None]:
        """Mirrored, shifted and turned; and which pixels are the crop's (None: all)."""
        wanted = self.settings
        turning = wanted.affine > 0 or operations is not None
        if not (turning or wanted.flip > 0 or wanted.pad > 0):
            return crops.permute(0, 3, 1, 2).float(), None
        mirrored = chosen(u.flip, wanted.flip)
        dx, dy = (whole(number, 2 * wanted.pad + 1) - wanted.pad for number in (u.shift_x, u.shift_y))
        if turning:
            return turned(crops, mirrored, dx, dy, self._source(u, operations))
        pixels, inside = shifted(crops, mirrored, dx, dy)
        return pixels, inside if wanted.pad > 0 else None

    def _source(self, u: Numbers, operations: tuple[Operations, Operations] | None) -> Float[Tensor, "n 2 2"]:
        wanted = self.settings
        at_all = chosen(u.affine, wanted.affine).float()
        degrees = between(u.rotation, -wanted.rotation, wanted.rotation) * at_all
        zoom = log_between(u.zoom, 1 / (1 + wanted.zoom), 1 + wanted.zoom) ** at_all
        slant = torch.tan(between(u.shear, -math.radians(wanted.shear), math.radians(wanted.shear))) * at_all
        source = source_of(degrees, zoom, slant)
        if operations is None:
            return source
        # From the result back through the policy's turn, which is done last, then through this one. Term by term:
        # a matrix product could be in TF32.
        return (source[:, :, :, None] * turn_of(operations)[:, None, :, :]).sum(dim=2)

    def _jittered(self, pixels: Float[Tensor, "n 3 height width"], u: Numbers) -> Float[Tensor, "n 3 height width"]:
        """Brightness, contrast, saturation, hue, in this order."""
        wanted = self.settings
        at_all = chosen(u.color, wanted.color).float()
        for change, strength, number in (
            (brightened, wanted.brightness, u.brightness),
            (contrasted, wanted.contrast, u.contrast),
            (saturated, wanted.saturation, u.saturation),
        ):
            if strength > 0:
                pixels = change(pixels, 1 + between(number, -strength, strength) * at_all)
        if wanted.hue > 0:
            pixels = hue_turned(pixels, between(u.hue, -wanted.hue, wanted.hue) * at_all)
        return pixels

    def _covered(
        self, pixels: Float[Tensor, "n 3 height width"], seen: Bool[Tensor, "n height width"] | None, u: Numbers
    ) -> tuple[Float[Tensor, "n 3 height width"], Bool[Tensor, "n height width"] | None]:
        """With patches, and with what is erased taken out of what is seen."""
        wanted, (height, width) = self.settings, self.size
        if wanted.patch > 0:
            area = between(u.patch_area, *_PATCH_AREA)
            aspect = log_between(u.patch_aspect, _PATCH_ASPECT, 1 / _PATCH_ASPECT)
            patches = random_rectangles(
                self.size, chosen(u.patch, wanted.patch), area, aspect, y=u.patch_y, x=u.patch_x
            )
            top = whole(u.patch_from_y, height - patches.height + 1)
            left = whole(u.patch_from_x, width - patches.width + 1)
            within = covered(patches, self.size)
            pixels = patched(pixels, patches, within, another(u.patch_crop), top=top, left=left)
            seen = None if seen is None else seen | within
        if wanted.erase > 0:
            area = between(u.erase_area, _ERASE_LEAST, wanted.erase_max)
            aspect = log_between(u.erase_aspect, _ERASE_ASPECT, 1 / _ERASE_ASPECT)
            erased = covered(
                random_rectangles(self.size, chosen(u.erase, wanted.erase), area, aspect, y=u.erase_y, x=u.erase_x),
                self.size,
            )
            seen = ~erased if seen is None else seen & ~erased
        return pixels, seen
