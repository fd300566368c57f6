"""The check that this program runs in a Dragon runtime."""

from __future__ import annotations

from rhapsody.allocation import is_under_dragon, require_dragon
from rhapsody.errors import BackendError

__all__ = ["require_runtime"]


def require_runtime(feature: str, backend_name: str) -> None:
    """Raise an error unless this program runs in a Dragon runtime.

    Args:
        feature: What needs the runtime, for example a class name.
        backend_name: Name of the backend.

    Raises:
        MissingExtraError: The package `dragonhpc` is not installed.
        BackendError: The program was not started with the `dragon` command.
    """
    require_dragon(feature, "dragon")
    if not is_under_dragon():
        raise BackendError(
            backend_name,
            f"{feature} needs the Dragon runtime, and this program was not started in one; launch "
            "it with `dragon script.py` instead of `python script.py` (`dragon -m` is for several "
            "nodes)",
        )
