"""The input and output files of tasks: inputs count by their contents, outputs have to exist."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import xxhash

__all__ = ["FileDigests", "missing_files", "resolved"]

BLOCK_BYTES = 4 << 20
SETTLED_SECONDS = 2.0
"""A file that changed this recently may change again within the resolution of its time stamp."""


class FileDigests:
    """The digests of files, kept while a file has the same size and time of change."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int, int], bytes]] = {}

    def digest(self, path: str) -> bytes:
        """Return the digest of a file's contents; of a folder, of its files by name.

        Raises:
            OSError: The file cannot be read.
        """
        found = os.stat(path)
        if os.path.isdir(path):
            return self._folder_digest(path)
        stamp = (found.st_size, found.st_mtime_ns, found.st_ino)
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        hasher = xxhash.xxh3_128()
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                hasher.update(block)
        digest = hasher.digest()
        if time.time() - found.st_mtime > SETTLED_SECONDS:
            self._known[path] = (stamp, digest)
        return digest

    def digests(self, paths: Iterable[str]) -> tuple[bytes, ...]:
        """Return the digests of several files.

        Raises:
            OSError: A file cannot be read.
        """
        return tuple(map(self.digest, paths))

    def _folder_digest(self, path: str) -> bytes:
        hasher = xxhash.xxh3_128()
        for file in sorted(p for p in Path(path).rglob("*") if p.is_file()):
            hasher.update(os.fsencode(file.relative_to(path)) + b"\0" + self.digest(str(file)))
        return hasher.digest()


def resolved(paths: Iterable[str], folder: str | None) -> list[str]:
    """Return paths relative to a task's working directory as paths of this process."""
    return [os.path.join(folder or "", os.path.expanduser(path)) for path in paths]


def missing_files(paths: Iterable[str]) -> list[str]:
    """Return the paths that do not exist."""
    return [path for path in paths if not os.path.exists(path)]
