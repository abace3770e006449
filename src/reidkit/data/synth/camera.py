"""How a camera sees: exposure, white balance, contrast, sharpness, noise and compression, its own and of the moment."""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from reidkit.data.synth.identity import Stream, generator
from reidkit.data.synth.solids import Pixels

CROP_WIDTH, CROP_HEIGHT = 64, 128
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Camera:
    """What stays the same in all pictures of one camera.

    Attributes:
        stops: of exposure; +1 is twice as bright.
        gains: white balance, per channel.
        contrast: around mid grey; 1 leaves it.
        haze: added to black.
        saturation: 1 leaves it, 0 is grey.
        blur: radius, pixels of the crop.
        noise: standard deviation, of 255.
        detail: height in pixels of a person as the sensor resolves it, least and most.
        quality: of JPEG.
    """

    stops: float
    gains: tuple[float, float, float]
    contrast: float
    haze: float
    saturation: float
    blur: float
    noise: float
    detail: tuple[float, float]
    quality: int


def draw_camera(seed: int, camera: int) -> Camera:
    """The camera of that number, 1 or above; exposure and cast differ clearly between any few cameras of one seed."""
    start = generator(seed, Stream.CAMERA).random(3)
    rng = generator(seed, Stream.CAMERA, camera)
    # Steps of the golden ratio fill a range evenly, however many are taken.
    exposure, hue, sharp = ((float(s) + camera * _GOLDEN * k) % 1.0 for s, k in zip(start, (1, 2, 3), strict=True))
    cast = 0.05 * math.sqrt(rng.uniform(0.4, 1.0))
    red, green, blue = (1.0 + cast * math.cos(2 * math.pi * (hue - third / 3)) for third in range(3))
    least = 72 + 36 * sharp
    return Camera(
        stops=0.5 * exposure - 0.25,
        gains=(red, 1.0 + 0.5 * (green - 1.0), blue),
        contrast=float(rng.uniform(0.9, 1.12)),
        haze=float(rng.uniform(0.0, 0.06)),
        saturation=float(rng.uniform(0.85, 1.0)),
        blur=float(rng.uniform(0.2, 0.6)),
        noise=float(rng.uniform(1.5, 5.0)),
        detail=(least, least * 1.6),
        quality=int(rng.integers(60, 90)),
    )


def develop(camera: Camera, pixels: Pixels, rng: np.random.Generator) -> bytes:
    """Turns linear light into the JPEG that this camera would have saved at this moment."""
    gains = np.array(camera.gains) * rng.normal(1.0, 0.02, 3) * 2.0 ** (camera.stops + rng.normal(0.0, 0.1))
    light = np.maximum(pixels, 0.0) * gains.astype(np.float32)[:, None, None]
    # Bright light runs into the white softly, as film and sensors with a shoulder do.
    tones = np.sqrt(light / (1.0 + 0.35 * light) * 1.35)
    grey = tones.mean(axis=0)
    tones = grey + camera.saturation * float(rng.uniform(0.9, 1.05)) * (tones - grey)
    tones = 0.45 + camera.contrast * float(rng.uniform(0.9, 1.1)) * (tones - 0.45)
    tones = camera.haze + (1.0 - camera.haze) * tones
    image = Image.fromarray((np.clip(tones, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(1, 2, 0).copy())
    image = _sensed(camera, image, rng)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=int(np.clip(camera.quality + rng.integers(-8, 9), 40, 95)))
    return out.getvalue()


def _sensed(camera: Camera, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Down to the pixels that the sensor had for this person, noise there, and up to the crop."""
    height = int(min(rng.uniform(*camera.detail), CROP_HEIGHT))
    small = image.resize(
        (max(height // 2, 8), height), Image.Resampling.BOX if height < 80 else Image.Resampling.BILINEAR
    )
    noise = rng.standard_normal((height, small.width, 3), dtype=np.float32) * np.float32(camera.noise)
    noisy = np.clip(np.asarray(small, dtype=np.float32) + noise, 0.0, 255.0).astype(np.uint8)
    crop = Image.fromarray(noisy).resize((CROP_WIDTH, CROP_HEIGHT), Image.Resampling.BICUBIC)
    if rng.random() < 0.1:  # moved while the shutter was open
        shift = int(rng.integers(1, 3))
        crop = Image.blend(crop, crop.transform(crop.size, Image.Transform.AFFINE, (1, 0, shift, 0, 1, 0)), 0.5)
    return crop.filter(ImageFilter.BoxBlur(camera.blur * float(rng.uniform(0.6, 1.4))))
