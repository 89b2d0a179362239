"""Pictures from strangers: what a person sees, or one sentence."""

import contextlib
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from folders import picture
from qmimic.data.images import image_size, look, read_image, read_resized, upright
from qmimic.data.letterbox import letterbox_file
from qmimic.errors import InputError

ORIENTATION = 0x0112
# What a viewer shows of the stored pixels, from the EXIF standard's table: where stored row 0 and column 0 lie.
SHOWN: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda stored: stored,  # top, left
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.transpose(1, 0, 2),  # left, top
    6: lambda stored: np.rot90(stored, -1),  # right, top
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: lambda stored: np.rot90(stored, 1),  # left, bottom
}


def pixels(path: Path) -> NDArray[np.uint8]:
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == image_size(path)
    return np.asarray(image)


def png_claiming(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


def test_pixels_of_a_plain_file_are_its_pixels(tmp_path: Path) -> None:
    expected = np.random.default_rng(3).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    assert np.array_equal(pixels(picture(tmp_path / "a.png", (100, 80), seed=3)), expected)


@pytest.mark.parametrize("orientation", SHOWN)
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "a.png"), SHOWN[orientation](stored))


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    eight = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(eight * 257).save(tmp_path / "a.png")  # 65535 is white
    assert np.array_equal(pixels(tmp_path / "a.png"), np.repeat(eight[..., None], 3, 2))


def test_a_dark_sixteen_bit_image_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 5), 200, np.uint16)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").max() == 1


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() <= 4


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (pixels(tmp_path / "a.gif") == [255, 0, 0]).all()


def test_transparency_lies_on_black(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (200, 100, 50, 255))
    image.putpixel((1, 0), (200, 100, 50, 0))
    image.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[200, 100, 50], [0, 0, 0]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_one_pixel_of_any_mode(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (1, 1)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").shape == (1, 1, 3)


@pytest.mark.parametrize("sides", [(20000, 20000), (12000, 12000), (2**31 - 1, 2**31 - 1)])
def test_an_image_too_large_for_memory_is_refused_by_its_header(tmp_path: Path, sides: tuple[int, int]) -> None:
    path = png_claiming(tmp_path / "a.png", *sides)
    for read in (read_image, image_size):
        with pytest.raises(InputError, match=r"a\.png has over 100 million pixels; shrink it"):
            read(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.bmp", "a.webp", "a.tif"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    path = picture(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"is not a (whole image|picture in a known format)"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(100)])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(InputError, match=r"a\.jpg is not a (whole image|picture in a known format)"):
            read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for read in (read_image, image_size):
        with pytest.raises(InputError, match="There is no image"):
            read(tmp_path / "gone.jpg")
        with pytest.raises(InputError, match="is a folder, not a file"):
            read(tmp_path)


def test_a_damaged_file_is_a_picture_or_one_sentence(tmp_path: Path) -> None:
    chance = random.Random(0)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    whole = []
    for suffix in ("jpg", "png", "webp", "gif", "bmp"):
        with Image.open(picture(tmp_path / f"whole.{suffix}", (31, 24))) as image:
            image.save(tmp_path / f"exif.{suffix}", exif=exif)
        whole.append((tmp_path / f"exif.{suffix}").read_bytes())
    path = tmp_path / "damaged"
    for _ in range(200):
        damaged = bytearray(chance.choice(whole))
        for _ in range(chance.choice((1, 2, 8))):
            damaged[chance.randrange(min(len(damaged), chance.choice((60, 400))))] = chance.randrange(256)
        path.write_bytes(damaged)
        for read in (read_image, image_size):
            with contextlib.suppress(InputError):
                read(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    blocks = Image.fromarray(np.random.default_rng(3).integers(0, 256, (2, 3, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo{suffix}"
    blocks.resize((60, 40), Image.Resampling.NEAREST).save(path, exif=exif)
    whole = read_image(path)
    small, size = read_resized(path, lambda width, height: (width, height))
    assert size == whole.size == image_size(path)
    assert np.abs(np.asarray(small, int) - np.asarray(whole)).mean() < 3


def test_a_spoilt_exif_counts_as_upright(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (40, 20), "red").save(path, exif=b"Exif\0\0not a TIFF header, only noise")
    assert image_size(path) == (40, 20)
    assert read_image(path).size == (40, 20)
    assert read_resized(path, lambda w, h: (w, h))[1] == (40, 20)


@given(st.integers(0, 2**32 - 1), st.integers(0, 65535))
def test_no_pixel_decides_how_the_others_are_scaled(seed: int, odd: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2000, (6, 7), dtype=np.uint16)
    other = values.copy()
    other[0, 0] = odd
    kept = np.ones_like(values, bool)
    kept[0, 0] = False
    one, two = (np.asarray(upright(Image.fromarray(own))) for own in (values, other))
    np.testing.assert_array_equal(one[kept], two[kept])
    np.testing.assert_array_equal(one[..., 0], np.rint(values / 257))


@pytest.mark.parametrize(("dtype", "white"), [(np.float32, 1.0), (np.float32, 300.0), (np.int32, 65535.0)])
def test_floats_and_long_integers_are_read_if_they_say_what_is_white(dtype: type, white: float, tmp_path: Path) -> None:
    levels = np.arange(256).reshape(16, 16)
    picture = Image.fromarray((levels * white / 255).astype(dtype))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[341] = white
    tags.tagtype[341] = 12  # a double
    picture.save(tmp_path / "says.tiff", tiffinfo=tags)
    picture.save(tmp_path / "silent.tiff")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "says.tiff"))[..., 1], levels)
    for refused in (read_image, lambda path: letterbox_file(path, (32, 32)), look):
        with pytest.raises(InputError, match=r"silent\.tiff cannot be read: it holds .* which value is white"):
            refused(tmp_path / "silent.tiff")


def test_twelve_bits_that_are_declared_are_scaled_by_them(tmp_path: Path) -> None:
    levels = (np.arange(64, dtype=np.uint16) * 65).reshape(8, 8)  # up to 4095
    flat = levels.ravel()
    packed = np.stack([flat[::2] >> 4, (flat[::2] & 15) << 4 | flat[1::2] >> 8, flat[1::2] & 255], 1).astype(np.uint8)
    content = packed.tobytes()
    entries = [(256, 3, 8), (257, 3, 8), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 8)]
    entries.append((279, 4, len(content)))
    head = struct.pack("<2sHI", b"II", 42, 8 + len(content)) + content + struct.pack("<H", len(entries))
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    (tmp_path / "a.tiff").write_bytes(head + body + bytes(4))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tiff"))[..., 0], np.rint(levels / (4095 / 255)))
