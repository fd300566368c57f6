"""One batch: its description as in OpenAI's API, and the file that keeps it."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from rhapsody.inference.http.batches.files import write_json

__all__ = ["ENDED", "Batch", "load_batches"]

ENDED = ("completed", "failed", "cancelled")
BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")


class Batch:
    """A batch of requests.

    Args:
        fields: Its description, with private fields that begin with "_".
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self._saving = threading.Lock()

    @classmethod
    def new(cls, owner: str, endpoint: str, input_file: str, window: str, metadata: Any) -> Batch:
        """Return a new batch.

        Args:
            owner: The client.
            endpoint: The route of its requests.
            input_file: The id of the file of its requests.
            window: The completion window.
            metadata: What the client notes about it.
        """
        times = ("in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled")
        return cls(
            {
                "id": f"batch_{uuid.uuid4().hex}",
                "object": "batch",
                "endpoint": endpoint,
                "errors": None,
                "input_file_id": input_file,
                "completion_window": window,
                "status": "validating",
                "output_file_id": None,
                "error_file_id": None,
                "created_at": int(time.time()),
                "expires_at": None,
                "expired_at": None,
                **{f"{name}_at": None for name in times},
                "request_counts": {"total": 0, "completed": 0, "failed": 0},
                "metadata": metadata,
                "_owner": owner,
                "_results": None,
            }
        )

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.fields["id"])

    @property
    def owner(self) -> str:
        """The client that created it."""
        return str(self.fields["_owner"])

    @property
    def status(self) -> str:
        """Its state, such as "in_progress"."""
        return str(self.fields["status"])

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.status in ENDED

    def enter(self, status: str) -> None:
        """Change the state, and note when."""
        self.fields["status"] = status
        self.fields[f"{status}_at"] = int(time.time())

    def fail(self, message: str) -> None:
        """End it as failed, with a reason."""
        error = {"code": "server_error", "message": message, "param": None, "line": None}
        self.fields["errors"] = {"object": "list", "data": [error]}
        self.enter("failed")

    def shown(self) -> dict[str, Any]:
        """Return what its owner sees."""
        return {name: value for name, value in self.fields.items() if not name.startswith("_")}

    def save(self, folder: Path) -> None:
        """Write it into a folder. This may block, and be called from several threads."""
        with self._saving:
            write_json(folder / f"{self.id}.json", self.fields)


def load_batches(folder: Path) -> list[Batch]:
    """Return the batches that were saved in a folder, the oldest first."""
    batches = []
    for path in folder.glob("batch_*.json"):
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
            fields = json.loads(path.read_text())
            if BATCH_ID.fullmatch(fields["id"]):
                batches.append(Batch(fields))
    return sorted(batches, key=lambda batch: (batch.fields["created_at"], batch.id))
