"""Images: their format and size from the beginning of a file, and parts of messages."""

import base64
import io
import struct
from pathlib import Path
from typing import Any

import pytest

import rhapsody
from rhapsody.inference.images import MOST_SEGMENTS, image_bytes, image_part, image_size
from tests.support.images import png, url_of

APP0 = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF" + bytes(10)
FRAME = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, 30, 40, 1) + bytes(3)
EXAMPLES = {
    "png": png(40, 30),
    "gif": b"GIF89a" + struct.pack("<HH", 40, 30) + bytes(3),
    "bmp": b"BM" + bytes(16) + struct.pack("<ii", 40, -30),
    "jpeg": b"\xff\xd8" + APP0 + b"\xff" + FRAME,
}
WEBP = {
    "lossy": b"VP8 " + bytes(10) + struct.pack("<HH", 40, 30),
    "lossless": b"VP8L" + bytes(4) + b"\x2f" + struct.pack("<I", 39 | 29 << 14),
    "extended": b"VP8X" + bytes(8) + struct.pack("<HBHB", 39, 0, 29, 0),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_size_of_an_image(kind: str) -> None:
    assert image_size(EXAMPLES[kind]) == (kind, 40, 30)


def test_only_the_beginning_of_a_jpeg_is_read() -> None:
    fill = b"\xff" * MOST_SEGMENTS
    assert image_size(b"\xff\xd8" + fill[:-1] + FRAME) == ("jpeg", 40, 30)
    assert image_size(b"\xff\xd8" + fill + FRAME) is None


@pytest.mark.parametrize("kind", WEBP)
def test_size_of_a_webp_image(kind: str) -> None:
    assert image_size(b"RIFF" + bytes(4) + b"WEBP" + WEBP[kind]) == ("webp", 40, 30)


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\xff\xd8", b"\xff\xd8\xff\xd9", png(1, 1)[:20], b"GIF89a" + bytes(9)]
)
def test_other_data_have_no_size(data: bytes) -> None:
    assert image_size(data) is None


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_beginning_of_an_image_is_handled(kind: str) -> None:
    for length in range(len(EXAMPLES[kind])):
        image_size(EXAMPLES[kind][:length])


class OfPillow:
    """Saves itself, as an image of Pillow does."""

    def save(self, file: io.BytesIO, format: str) -> None:
        assert format == "PNG"
        file.write(png(40, 30))


def test_part_is_made_of_a_path_bytes_or_an_image_of_pillow(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    path.write_bytes(png(40, 30))
    expected = {"type": "image_url", "image_url": {"url": url_of(png(40, 30))}}
    for image in (path, str(path), png(40, 30), bytearray(png(40, 30)), OfPillow()):
        assert rhapsody.image_part(image) == expected


def test_part_names_the_format_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    path.write_bytes(EXAMPLES["jpeg"])
    url = image_part(path)["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    assert image_bytes(url) == EXAMPLES["jpeg"]


def test_part_of_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"plot\.png is not an image; the formats are PNG"):
        image_part(path)
    with pytest.raises(ValueError, match="8 bytes is not an image"):
        image_part(b"no image")
    with pytest.raises(FileNotFoundError):
        image_part(tmp_path / "none.png")


@pytest.mark.parametrize("url", ["https://example.org/a.png", "data:image/png;base64,aaaa"])
def test_part_of_a_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not the URL"):
        image_part(url)


def test_part_of_another_object_is_refused() -> None:
    value: Any = 3
    with pytest.raises(TypeError, match="a path, bytes or an image of Pillow, got int"):
        image_part(value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/a.png", "must be a data: URL"),
        ("data:image/png;base64", "must be a data: URL"),
        ("data:image/png,abc", "must be in base64"),
        ("data:image/png;base64,a*", "are not base64"),
    ],
)
def test_urls_without_data_are_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_bytes(url)


def test_data_of_a_url() -> None:
    text = base64.b64encode(b"abc").decode()
    assert image_bytes(f"DATA:image/png;base64,{text}") == b"abc"
