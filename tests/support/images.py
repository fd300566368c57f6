"""Small images, made without an image library."""

import base64
import struct
import zlib
from typing import Any


def png(width: int, height: int) -> bytes:
    """Return a white PNG of grey values."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    rows = (b"\0" + b"\xff" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def url_of(data: bytes, kind: str = "png") -> str:
    """Return a data: URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def chat_about(*urls: str, text: str = "Describe it") -> list[dict[str, Any]]:
    """Return a chat of one message, with a text and images."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *images]}]
