"""Files of HTTP clients in a folder, each owned by one client, with bounds on their sizes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from rhapsody.errors import ConfigurationError, PromptError

__all__ = ["MAX_FILES", "MAX_FILE_BYTES", "FileStore", "lock_folder", "not_found"]

MAX_FILE_BYTES = 512 * 1024 * 1024
"""The largest file that a client may send, as in OpenAI's API."""
MAX_CLIENT_BYTES = 8 * 1024 * 1024 * 1024
"""All files of one client together, results of batches included."""
MAX_FILES = 10_000
"""The largest number of files of one client."""
FILE_ID = re.compile(r"file-[0-9a-f]{32}")


class FileStore:
    """The files in a folder. Methods that take a path or an id of a file may block.

    Args:
        folder: The folder, which only this process uses. Files in it from before are kept.
        max_file_bytes: The largest file that a client may send.
        max_client_bytes: The largest size of all files of one client together.
    """

    def __init__(
        self,
        folder: Path,
        max_file_bytes: int = MAX_FILE_BYTES,
        max_client_bytes: int = MAX_CLIENT_BYTES,
    ) -> None:
        self.max_file_bytes = max_file_bytes
        self._folder = folder
        self._max_client_bytes = max_client_bytes
        self._counting = threading.Lock()
        # By the name of the client.
        self._numbers: Counter[str] = Counter()
        self._sizes: Counter[str] = Counter()
        self._files: dict[str, dict[str, Any]] = {}
        for path in folder.glob("file-*.json"):
            with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
                file = json.loads(path.read_text())
                if FILE_ID.fullmatch(file["id"]):
                    file["bytes"] = self.path(file["id"]).stat().st_size
                    self._count(file["owner"], 1, file["bytes"])
                    self._files[file["id"]] = file
        for data in folder.glob("file-*.data"):  # an upload that did not end
            if data.stem not in self._files:
                data.unlink()

    def path(self, file_id: str) -> Path:
        """Return where the content of a file is."""
        return self._folder / f"{file_id}.data"

    def create(self, owner: str, filename: str, purpose: str) -> tuple[str, BinaryIO]:
        """Create an empty file that nobody finds until `keep` is called.

        Returns:
            Its id, and the file to write to; `grow` counts what is written.

        Raises:
            PromptError: The client has too many files.
        """
        if self._numbers[owner] >= MAX_FILES:
            raise PromptError(
                f"you have {MAX_FILES} files; delete some", 413, "RequestTooLarge", "file"
            )
        self._count(owner, 1, 0)
        file_id = f"file-{uuid.uuid4().hex}"
        self._files[file_id] = {
            "id": file_id,
            "object": "file",
            "bytes": 0,
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "pending",
            "owner": owner,
        }
        try:
            return file_id, open(self.path(file_id), "wb", opener=_open_private)
        except OSError:
            self.remove(file_id)
            raise

    def _count(self, owner: str, files: int, size: int) -> None:
        with self._counting:  # several threads create and remove files
            self._numbers[owner] += files
            self._sizes[owner] += size

    def grow(self, file_id: str, size: int, *, bounded: bool = False) -> None:
        """Count bytes before they are written.

        Args:
            file_id: The file.
            size: The number of bytes.
            bounded: Whether the file is one that a client sends.

        Raises:
            PromptError: The file, or all files of the client together, would become too large.
        """
        file = self._files[file_id]
        if bounded and file["bytes"] + size > self.max_file_bytes:
            raise PromptError(
                f"a file may have at most {self.max_file_bytes} bytes; send it in parts",
                413,
                "RequestTooLarge",
                "file",
            )
        if self._sizes[file["owner"]] + size > self._max_client_bytes:
            raise PromptError(
                f"your files may have {self._max_client_bytes} bytes together; delete some",
                413,
                "RequestTooLarge",
                "file",
            )
        file["bytes"] += size
        self._count(file["owner"], 0, size)

    def keep(self, file_id: str) -> dict[str, Any]:
        """Let the owner of a file find it, and return its description."""
        file = self._files[file_id]
        file["status"] = "processed"
        write_json(self._folder / f"{file_id}.json", file)
        return _shown(file)

    def find(self, owner: str, file_id: str) -> dict[str, Any]:
        """Return the description of a file.

        Raises:
            PromptError: The client has no such file.
        """
        file = self._files.get(file_id)
        if file is None or file["owner"] != owner or file["status"] != "processed":
            raise not_found("file", file_id)
        return _shown(file)

    def all_of(self, owner: str, purpose: str | None = None) -> list[dict[str, Any]]:
        """Return the descriptions of a client's files, the newest first."""
        found = [
            _shown(file)
            for file in list(self._files.values())  # other threads add and remove some
            if file["owner"] == owner
            and file["status"] == "processed"
            and purpose in (None, file["purpose"])
        ]
        return sorted(found, key=lambda file: (file["created_at"], file["id"]), reverse=True)

    def remove(self, file_id: str) -> None:
        """Remove a file. Idempotent."""
        file = self._files.pop(file_id, None)
        if file is not None:
            self._count(file["owner"], -1, -file["bytes"])
        self.path(file_id).unlink(missing_ok=True)
        (self._folder / f"{file_id}.json").unlink(missing_ok=True)


def not_found(noun: str, name: str) -> PromptError:
    """Return the error of an id that a client does not have."""
    return PromptError(f"there is no {noun} '{name:.80}'", 404, "NotFoundError", f"{noun}_id")


def _shown(file: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in file.items() if name != "owner"}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, which others see complete or not at all."""
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", encoding="utf-8", opener=_open_private) as file:
        file.write(json.dumps(value))
    part.replace(path)


def _open_private(path: str, flags: int) -> int:
    """Open a file that other users of this machine cannot read."""
    return os.open(path, flags, 0o600)


def lock_folder(folder: Path) -> int:
    """Create a private folder, and lock it for this process until the descriptor is closed.

    Raises:
        ConfigurationError: Another program uses it, or it cannot be created.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise ConfigurationError(f"batch_dir {str(folder)!r} cannot be used: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ConfigurationError(
            f"another program uses batch_dir {str(folder)!r}; name another folder"
        ) from None
    return lock
