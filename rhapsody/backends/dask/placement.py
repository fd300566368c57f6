"""Scheduling options of a task on a Dask cluster, and which workers satisfy them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from rhapsody.backends.core.work import Work
from rhapsody.errors import ResourceError
from rhapsody.validation import is_number

__all__ = ["Placement", "is_sendable"]

MAX_INTEGER = 2**63 - 1
"""The largest number sent. msgpack carries integers of 64 bits, and a value that it cannot carry
breaks the connection to the scheduler."""


@dataclass(frozen=True)
class Placement:
    """How a task is scheduled. Tasks of equal placement are submitted in one graph.

    Attributes:
        resources: Amounts by name that a worker must have free.
        workers: Addresses, names or hosts of the workers that may run the task; empty for any.
        allow_other_workers: Whether `workers` is only a preference.
        priority: Tasks of higher priority run first.
        retries: How often a failed task is tried again.
    """

    resources: tuple[tuple[str, float], ...] = ()
    workers: tuple[str, ...] = ()
    allow_other_workers: bool = False
    priority: float = 0
    retries: int = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Placement:
        """Read the scheduling options of a task.

        Raises:
            ValueError: An option has a wrong type or value.
        """
        resources = options.get("resources") or {}
        if not isinstance(resources, Mapping) or not all(
            is_sendable(name) and _is_sendable_number(amount) and amount > 0
            for name, amount in resources.items()
        ):
            raise ValueError(
                f"'resources' must be a dict of names to positive amounts, got {resources!r}"
            )
        workers = options.get("workers") or ()
        workers = [workers] if isinstance(workers, str) else workers
        if not isinstance(workers, (list, tuple, set, frozenset)) or not all(
            is_sendable(worker) for worker in workers
        ):
            raise ValueError(
                "'workers' must be an address, name or host of a worker, or a list of them, "
                f"got {workers!r}"
            )
        retries, priority = options.get("retries") or 0, options.get("priority") or 0
        if not isinstance(retries, Integral) or not 0 <= int(retries) <= MAX_INTEGER:
            raise ValueError(f"'retries' must be a whole number of at least 0, got {retries!r}")
        if not _is_sendable_number(priority):
            raise ValueError(f"'priority' must be a finite number, got {priority!r}")
        return cls(
            tuple(sorted((name, _plain(amount)) for name, amount in resources.items())),
            tuple(workers),
            bool(options.get("allow_other_workers")) and bool(workers),
            _plain(priority),
            int(retries),
        )

    @classmethod
    def of(cls, work: Work) -> Placement:
        """Read how a task is scheduled: its resources, its priority and its options.

        Raises:
            ValueError: An option or a resource has a wrong type or value.
        """
        options, asked = work.options, work.resources
        priority = work.priority
        if asked is None and not priority:
            return cls.from_options(options)
        merged = {"priority": priority, **options}
        if asked is not None:
            amounts: dict[str, float] = {}
            if "cpus" in asked.model_fields_set:
                amounts["CPU"] = asked.cpus
            if asked.gpus:
                amounts["GPU"] = asked.gpus
            if asked.memory:
                amounts["MEMORY"] = int(asked.memory)
            merged["resources"] = {**amounts, **(options.get("resources") or {})}
            if isinstance(asked.nodes, list):
                merged.setdefault("workers", asked.nodes)
            elif asked.nodes is not None and asked.nodes > 1:
                raise ValueError("'nodes' must be 1, or a list of names: a task runs on one worker")
        return cls.from_options(merged)

    def as_arguments(self) -> dict[str, Any]:
        """Return the placement as arguments of `Client.map` and `Client.submit`."""
        return {
            "resources": dict(self.resources) or None,
            "workers": list(self.workers) or None,
            "allow_other_workers": self.allow_other_workers,
            "priority": self.priority,
            "retries": self.retries or None,
        }

    @property
    def is_restricted(self) -> bool:
        """Whether some workers may be unable to run the task."""
        return bool(self.resources) or (bool(self.workers) and not self.allow_other_workers)

    def shortage(self, uid: str, workers: Mapping[str, Any]) -> ResourceError | None:
        """Return an error that says what no worker offers; None if a worker can run the task.

        Args:
            uid: The task's uid.
            workers: Descriptions of the workers by address, as the scheduler gives them.
        """
        allowed = workers
        if self.workers and not self.allow_other_workers:
            allowed = {
                address: worker
                for address, worker in workers.items()
                if _identifiers(address, worker) & set(self.workers)
            }
            if not allowed:
                asked = f"it asks for {' or '.join(self.workers)}"
                return ResourceError(uid, "worker", f"{asked}; {_describe(workers)}")
        for worker in allowed.values():
            offered = worker["resources"]
            if all(offered.get(name, 0) >= amount for name, amount in self.resources):
                return None
        required = dict(self.resources)
        asked = f"it asks for {_amounts(required)} on one worker"
        return ResourceError(uid, ", ".join(required), f"{asked}; {_describe(allowed)}")


def is_sendable(text: Any) -> bool:
    """Whether a value is a str that Dask's messages can carry: one without lone surrogates."""
    try:
        return isinstance(text, str) and bool(text.encode())
    except UnicodeEncodeError:
        return False


def _is_sendable_number(value: Any) -> bool:
    return is_number(value) and abs(value) <= MAX_INTEGER


def _plain(number: Any) -> float:
    """Return a number, such as NumPy's, as a plain int or float."""
    return int(number) if isinstance(number, Integral) else float(number)


def _identifiers(address: str, worker: Mapping[str, Any]) -> set[str]:
    host = worker.get("host") or ""
    return {address, address.rpartition("://")[2], str(worker.get("name")), host}


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in resources.items()) or "none"


def _describe(workers: Mapping[str, Any], limit: int = 5) -> str:
    if not workers:
        return "there are no workers"
    offers = [
        f"{worker.get('name')} at {address} offers {_amounts(worker['resources'])}"
        for address, worker in list(workers.items())[:limit]
    ]
    more = f" and {len(workers) - limit} more" if len(workers) > limit else ""
    return f"of {len(workers)} workers, {'; '.join(offers)}{more}"
