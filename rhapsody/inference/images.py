"""Images in prompts: their format and size, and the parts of chat messages that hold them."""

from __future__ import annotations

import base64
import binascii
import os
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["ImageSize", "image_bytes", "image_part", "image_size"]

FORMATS = "PNG, JPEG, GIF, WebP or BMP"
MOST_SEGMENTS = 10_000
"""How many segments and fill bytes of a JPEG are read. A profile of colours may take 255 of them,
and a file of fill bytes would take seconds."""


class ImageSize(NamedTuple):
    """The format and the size of an image.

    Attributes:
        format: "png", "jpeg", "gif", "webp" or "bmp".
        width: Its width in pixels.
        height: Its height in pixels.
    """

    format: str
    width: int
    height: int


def image_part(image: Any) -> dict[str, Any]:
    """Return an image as a part of a chat message, with the image itself in its URL.

    Args:
        image: The path of a file, the bytes of a file, or an image of Pillow, which is sent as PNG.

    Returns:
        `{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}`.

    Raises:
        OSError: The file cannot be read.
        TypeError: The value is no image.
        ValueError: The data are no image.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        data, what = bytes(image), f"{len(image)} bytes"
    elif isinstance(image, (str, os.PathLike)):
        if str(image).startswith(("data:", "http://", "https://")):
            raise ValueError(
                f"image_part takes files and data, not the URL {image!r:.60}; write "
                '{"type": "image_url", "image_url": {"url": ...}}'
            )
        data, what = Path(image).read_bytes(), str(image)
    elif callable(getattr(image, "save", None)):
        buffer = BytesIO()
        image.save(buffer, format="PNG")
        data, what = buffer.getvalue(), "the saved image"
    else:
        raise TypeError(
            f"an image must be a path, bytes or an image of Pillow, got {type(image).__name__}"
        )
    found = image_size(data)
    if found is None:
        raise ValueError(f"{what} is not an image; the formats are {FORMATS}")
    text = base64.b64encode(data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/{found.format};base64,{text}"}}


def image_bytes(url: str) -> bytes:
    """Return the data in a `data:` URL.

    Args:
        url: The URL, with its data in base64.

    Raises:
        ValueError: It is another URL, or has no data in base64.
    """
    head, comma, text = url.partition(",")
    if not head.lower().startswith("data:") or not comma:
        raise ValueError("it must be a data: URL, such as data:image/png;base64,...")
    if not head.lower().endswith(";base64"):
        raise ValueError("its data must be in base64")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"its data are not base64: {error}") from None


def image_size(data: bytes) -> ImageSize | None:
    """Return the format and the size of an image, from the beginning of its file.

    Args:
        data: The content of the file.

    Returns:
        None if it is no image of a known format.
    """
    for is_format, name, size in _FORMATS:
        if not is_format(data):
            continue
        try:
            width, height = size(data)
        except (struct.error, ValueError, IndexError):
            return None
        return ImageSize(name, width, height) if width > 0 and height > 0 else None
    return None


def _png(data: bytes) -> tuple[int, ...]:
    return struct.unpack_from(">II", data, 16)


def _gif(data: bytes) -> tuple[int, ...]:
    return struct.unpack_from("<HH", data, 6)


def _bmp(data: bytes) -> tuple[int, ...]:
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # negative: the rows stand from top to bottom


def _webp(data: bytes) -> tuple[int, ...]:
    kind = data[12:16]
    if kind == b"VP8X":
        low = struct.unpack_from("<HBHB", data, 24)
        return low[0] + (low[1] << 16) + 1, low[2] + (low[3] << 16) + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that hold the size (ITU-T T.81, table B.1)."""


def _jpeg(data: bytes) -> tuple[int, ...]:
    position = 2
    for _ in range(MOST_SEGMENTS):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    raise ValueError


def _starts(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(marks)


_FORMATS: tuple[tuple[Callable[[bytes], bool], str, Callable[[bytes], tuple[int, ...]]], ...] = (
    (_starts(b"\x89PNG\r\n\x1a\n"), "png", _png),
    (_starts(b"\xff\xd8"), "jpeg", _jpeg),
    (_starts(b"GIF87a", b"GIF89a"), "gif", _gif),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", "webp", _webp),
    (_starts(b"BM"), "bmp", _bmp),
)
