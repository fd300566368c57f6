"""The guard of the store: a small process that removes it if its program is killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys

from rhapsody.backends.data.segments import Folders

__all__ = ["StoreGuard"]

# Workers that write there may end a moment after the program. The file of the owner goes last: a
# directory without it would never be found again. Only modules that start quickly are imported.
_GUARD = """
import os, sys, time
while os.read(0, 4096):
    pass
for _ in range(50):
    left = [folder for folder in sys.argv[1:] if os.path.isdir(folder)]
    for folder in left:
        try:
            for name in sorted(os.listdir(folder), key=lambda name: name.startswith("owner@")):
                os.unlink(os.path.join(folder, name))
            os.rmdir(folder)
        except OSError:
            pass
    if not left:
        break
    time.sleep(0.1)
"""


class StoreGuard:
    """Removes the folders of a store when this process ends without doing so.

    For workers that end at once when their program is killed, as those of Dask do.

    Args:
        folders: The folders.
    """

    def __init__(self, folders: Folders) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):  # too many processes; the next program removes them
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD, folders.memory, folders.disk],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C must not end it
            )

    def stop(self) -> None:
        """End the guard; the folders have been removed."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
