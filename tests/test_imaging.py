import io
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from conditions import as_installed, unprivileged
from reidkit import imaging
from reidkit.errors import ConfigError, DataError, ImageError
from reidkit.imaging import available_cores, image_files, load_crop, open_image, resize
from reidkit.types import InputSpec, ResizeFilter

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
TWO = np.array([[RED, GREEN]], dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:  # noqa: A002 (Pillow's own name)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(source: bytes | Path) -> list[list[list[int]]]:
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def rgb(*values: tuple[int, int, int]) -> list[list[list[int]]]:
    """One row of pixels."""
    return [[list(value) for value in values]]


def refusal(source: bytes | Path | str) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source)
    return str(caught.value)


class TestModes:
    def test_rgb_as_it_is(self):
        assert pixels(encoded(Image.fromarray(TWO), "PNG")) == rgb(RED, GREEN)

    @pytest.mark.parametrize("values", [[0, 127, 255], [3, 3, 3]])
    def test_grey(self, values):
        image = Image.fromarray(np.array([values], dtype=np.uint8))
        assert pixels(encoded(image, "PNG")) == rgb(*((v, v, v) for v in values))

    def test_one_bit(self):
        image = Image.fromarray(np.array([[True, False]]))
        assert image.mode == "1"
        assert pixels(encoded(image, "PNG")) == rgb((255, 255, 255), (0, 0, 0))

    # 65535 / 255 = 257: a step of 8 bits is 257 steps of 16, and 128 of them are less than half of one.
    @pytest.mark.parametrize(
        ("values", "expected"), [([0, 128, 129, 257, 32896, 65535], [0, 0, 1, 1, 128, 255]), ([0, 200], [0, 1])]
    )
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "PGM"])
    def test_sixteen_bit_grey_is_scaled_and_a_dark_one_stays_dark(self, kind, values, expected):
        array = np.array([values], dtype=np.uint16)
        if kind == "PGM":
            data = f"P5 {len(values)} 1 65535\n".encode() + array.astype(">u2").tobytes()
        elif kind == "big-endian TIFF":
            data = encoded(Image.fromarray(array.astype(">u2")), "TIFF")
        else:
            data = encoded(Image.fromarray(array), kind)
        assert pixels(data) == rgb(*((v, v, v) for v in expected))

    def test_floating_point_is_refused(self):
        text = refusal(encoded(Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)), "TIFF"))
        assert "cannot be decoded\n  got: its pixels are floating-point numbers of unknown range" in text

    @pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80"])
    def test_a_palette_is_looked_up_and_its_transparency_dropped(self, transparency):
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, *GREEN])
        image.putpixel((1, 0), 1)
        options = {} if transparency is None else {"transparency": transparency}
        data = encoded(image, "PNG", **options)
        assert Image.open(io.BytesIO(data)).mode == "P"
        assert pixels(data) == rgb(RED, GREEN)

    def test_alpha_is_dropped_and_not_blended(self):
        rgba = np.array([[(*RED, 0), (*GREEN, 128), (*BLUE, 255)]], dtype=np.uint8)
        assert pixels(encoded(Image.fromarray(rgba), "PNG")) == rgb(RED, GREEN, BLUE)
        grey = Image.fromarray(np.array([[[9, 0], [200, 255]]], dtype=np.uint8))
        assert grey.mode == "LA"
        assert pixels(encoded(grey, "PNG")) == rgb((9, 9, 9), (200, 200, 200))

    @pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
    def test_a_transparent_colour_is_dropped(self, mode):
        image = Image.new(mode, (1, 1), 0)
        data = encoded(image, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)
        assert pixels(data) == rgb((0, 0, 0))

    def test_cmyk(self):
        image = Image.new("CMYK", (3, 1))
        for x, ink in enumerate([(255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)]):
            image.putpixel((x, 0), ink)
        assert pixels(encoded(image, "TIFF")) == rgb((0, 255, 255), RED, (0, 0, 0))
        flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
        np.testing.assert_allclose(pixels(encoded(flat, "JPEG", quality=100)), np.full((16, 16, 3), RED), atol=3)

    def test_an_animation_gives_its_first_frame(self):
        frames = [Image.new("RGB", (1, 1), color) for color in (BLUE, RED)]
        assert pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == rgb(BLUE)

    @pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF"])
    def test_one_pixel_is_a_picture(self, format):  # noqa: A002
        options = {"lossless": True} if format == "WEBP" else {}
        assert pixels(encoded(Image.new("RGB", (1, 1), GREEN), format, **options)) == rgb(GREEN)


Turn = Callable[[np.ndarray], np.ndarray]
UPRIGHT: dict[int, Turn] = {  # EXIF 2.32, tag 0x0112: how to turn what is stored
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_every_orientation_is_turned_upright(orientation, format):  # noqa: A002
    stored = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = open_image(encoded(Image.fromarray(stored), format, exif=exif))
    np.testing.assert_array_equal(np.asarray(upright), UPRIGHT[orientation](stored))


class TestRefusals:
    def test_a_truncated_jpeg(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        whole = encoded(Image.fromarray(noise), "JPEG")
        file = tmp_path / "a.jpg"
        file.write_bytes(whole[: len(whole) // 2])
        text = refusal(file)
        assert text.startswith(f"{file} is truncated or damaged\n  got: image file is truncated")
        assert text.endswith("\n  to do: replace or remove the file")

    @pytest.mark.parametrize("content", [b"", b"hello, I am a text", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
    def test_what_is_no_picture(self, tmp_path, content):
        file = tmp_path / "a.jpg"
        file.write_bytes(content)
        text = refusal(file)
        assert text.startswith((f"{file} is not a picture\n", f"{file} is truncated or damaged\n"))
        assert text.endswith("\n  to do: replace or remove the file")

    def test_a_text_says_what_is_expected(self, tmp_path):
        (tmp_path / "a.jpg").write_text("hello, I am a text")
        assert refusal(str(tmp_path / "a.jpg")) == (
            f"{tmp_path / 'a.jpg'} is not a picture\n  expected: JPEG, PNG or another format that Pillow reads\n"
            "  to do: replace or remove the file"
        )

    def test_bytes_have_no_name(self):
        assert refusal(b"hello").startswith("The file of 5 bytes is not a picture\n")

    def test_a_missing_file(self, tmp_path):
        assert refusal(tmp_path / "a.jpg") == f"No such picture: {tmp_path / 'a.jpg'}\n  to do: check the path"

    def test_a_folder(self, tmp_path):
        assert refusal(tmp_path) == f"{tmp_path} cannot be read\n  got: Is a directory\n  to do: check the path"

    def test_a_file_that_may_not_be_read(self, tmp_path):
        (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(TWO), "PNG"))
        (tmp_path / "a.png").chmod(0)
        tmp_path.chmod(0o755)
        with unprivileged(tmp_path):
            text = refusal(tmp_path / "a.png")
        assert "a.png cannot be read\n  got: Permission denied" in text

    @pytest.mark.parametrize("data", [b"\x00", b"P5 3 1 255\n", b"P6 9999999999999 1 255\n", b"BM" + b"\xff" * 60])
    def test_damaged_headers(self, data):
        assert "The file of" in refusal(data)

    def test_a_png_cut_anywhere_is_refused_or_whole(self):
        picture = np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(10, 10, 3)
        data = encoded(Image.fromarray(picture), "PNG")
        whole = 0
        for length in range(len(data)):
            try:
                opened = open_image(data[:length])
            except ImageError:
                continue
            np.testing.assert_array_equal(np.asarray(opened), picture)
            whole += 1
        # What may be missing: two checksums and the chunk that says "end".
        assert whole <= 24


def bomb(side: int) -> bytes:
    """A PNG of `side` x `side` black pixels of one bit."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packed = zlib.compress(bytes((1 + (side + 7) // 8) * side), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


class TestBombs:
    # Pillow itself lets the first pass, warns of the second and refuses the third.
    @pytest.mark.parametrize("side", [8001, 10_000, 20_000])
    def test_one_is_refused_before_decoding(self, tmp_path, monkeypatch, side):
        file = tmp_path / "bomb.png"
        file.write_bytes(bomb(side))
        assert file.stat().st_size < 300_000
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
        text = refusal(file)
        assert text.startswith(f"{file} is too large to decode\n  got: ")
        assert text.endswith(
            "\n  expected: at most 64,000,000 pixels\n  to do: cut the person or vehicle out, or shrink the picture"
        )

    def test_the_bomb_would_decode(self):
        assert open_image(bomb(9)).size == (9, 9)

    def test_the_limit_itself_may_be_decoded(self, monkeypatch):
        data = encoded(Image.new("RGB", (20, 5)), "PNG")
        monkeypatch.setattr(imaging, "MAX_PIXELS", 100)
        assert open_image(data).size == (20, 5)
        monkeypatch.setattr(imaging, "MAX_PIXELS", 99)
        assert "too large to decode\n  got: 20 x 5 pixels" in refusal(data)


@pytest.fixture(scope="module")
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8))


class TestResize:
    @pytest.mark.parametrize("size", [(20, 10), (64, 32), (40, 10), (7, 91)])
    @pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
    def test_it_is_pillows_filter_of_that_name(self, noise, name: ResizeFilter, size):
        height, width = size
        crop = resize(noise, InputSpec(height, width, resize=name))
        assert (crop.shape, crop.dtype) == ((height, width, 3), np.uint8)
        expected = noise.resize((width, height), Image.Resampling[name.upper()])
        np.testing.assert_array_equal(crop, np.asarray(expected))

    def test_box_by_hand(self, noise):
        blocks = np.asarray(noise).astype(np.float64).reshape(20, 2, 10, 3, 3).mean(axis=(1, 3))
        crop = resize(noise, InputSpec(20, 10, resize="box"))
        np.testing.assert_allclose(crop, blocks, atol=1)  # across, then down, rounded each time

    def test_a_picture_of_the_size_stays_as_it_is(self, noise):
        np.testing.assert_array_equal(resize(noise, InputSpec(40, 30, resize="lanczos")), np.asarray(noise))

    def test_a_filter_that_is_not_there(self):
        with as_installed(), pytest.raises(ConfigError) as caught:
            InputSpec(4, 4, resize="cubic")  # pyright: ignore[reportArgumentType]
        assert str(caught.value) == (
            "Unknown resize filter 'cubic'\n  expected: one of nearest, box, bilinear, hamming, bicubic, lanczos\n"
            "  to do: did you mean 'bicubic'?"
        )

    def test_a_crop_is_opened_turned_and_resized(self, tmp_path):
        stored = np.full((2, 2, 3), RED, dtype=np.uint8)
        stored[0] = BLUE
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn clockwise: what was above comes to the right
        (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(stored), "PNG", exif=exif))
        crop = load_crop(tmp_path / "a.png", InputSpec(1, 4, resize="nearest"))
        assert crop.tolist() == rgb(RED, RED, BLUE, BLUE)


def test_there_is_at_least_one_core():
    assert available_cores() >= 1


class TestImageFiles:
    def test_pictures_are_sorted_and_hidden_ones_left_out(self, tmp_path):
        names = ["b/2.JPG", "b/1.png", "a.tiff", "b.webp", "b/c/d.jpeg", "Z.bmp"]
        clutter = ["b/._1.png", ".hidden.jpg", ".git/x.jpg", "b/.cache/y.png", "readme.txt", "b/Thumbs.db", "jpg"]
        for name in names + clutter:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        found = image_files(str(tmp_path))
        assert {path.relative_to(tmp_path).as_posix() for path in found} == set(names)
        assert all(a.as_posix() < b.as_posix() for a, b in pairwise(found))

    def test_a_file_gives_itself(self, tmp_path):
        (tmp_path / "picture").write_bytes(b"x")
        assert image_files(tmp_path / "picture") == [tmp_path / "picture"]

    def test_an_empty_folder_has_none(self, tmp_path):
        assert image_files(tmp_path) == []

    def test_a_hidden_root_is_meant(self, tmp_path):
        (tmp_path / ".crops").mkdir()
        (tmp_path / ".crops" / "a.jpg").write_bytes(b"x")
        assert image_files(tmp_path / ".crops") == [tmp_path / ".crops" / "a.jpg"]

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(DataError) as caught:
            image_files(tmp_path / "none")
        assert str(caught.value) == (
            f"{tmp_path / 'none'} cannot be listed\n  got: No such file or directory\n  expected: a readable folder"
        )

    def test_a_folder_that_may_not_be_listed_is_not_passed_over(self, tmp_path):
        (tmp_path / "closed").mkdir()
        (tmp_path / "closed").chmod(0)
        tmp_path.chmod(0o755)
        with (
            unprivileged(tmp_path),
            pytest.raises(DataError, match=r"closed cannot be listed\n  got: Permission"),
        ):
            image_files(tmp_path)
