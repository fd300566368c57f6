"""Where and how a task is to be scheduled on a Dask cluster, and whether that can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rhapsody.api.errors import ResourceError

__all__ = ["Placement"]


@dataclass(frozen=True)
class Placement:
    """How a task is to be scheduled; tasks of equal placement travel in one graph.

    Attributes:
        resources: Amounts by name that a worker must have free.
        workers: Addresses, names or hosts of the workers that may run it; any where empty.
        allow_other_workers: Whether `workers` is a wish only.
        priority: Higher goes first.
        retries: How often it is tried again after it failed.
    """

    resources: tuple[tuple[str, float], ...] = ()
    workers: tuple[str, ...] = ()
    allow_other_workers: bool = False
    priority: float = 0
    retries: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Placement:
        """Read it from a task's options.

        Raises:
            ValueError: An option is not what it has to be.
        """
        resources = options.get("resources") or {}
        if not isinstance(resources, Mapping) or not all(
            isinstance(name, str) and _is_number(amount) and amount > 0
            for name, amount in resources.items()
        ):
            raise ValueError(
                f"'resources' must be a dict of names to positive amounts, not {resources!r}"
            )
        workers = options.get("workers") or ()
        workers = (workers,) if isinstance(workers, str) else tuple(workers)
        if not all(isinstance(worker, str) for worker in workers):
            raise ValueError(f"'workers' must be addresses or names of workers, not {workers!r}")
        retries, priority = options.get("retries") or 0, options.get("priority") or 0
        if not isinstance(retries, int) or retries < 0:
            raise ValueError(f"'retries' must be a whole number, 0 or more, not {retries!r}")
        if not _is_number(priority):
            raise ValueError(f"'priority' must be a number, not {priority!r}")
        return cls(
            tuple(sorted(resources.items())),
            workers,
            bool(options.get("allow_other_workers")) and bool(workers),
            priority,
            retries,
        )

    def as_arguments(self) -> dict[str, Any]:
        """Return it as arguments of `Client.map` and `Client.submit`."""
        return {
            "resources": dict(self.resources) or None,
            "workers": list(self.workers) or None,
            "allow_other_workers": self.allow_other_workers,
            "priority": self.priority,
            "retries": self.retries or None,
        }

    @property
    def is_choosy(self) -> bool:
        """Whether there may be workers that will not do."""
        return bool(self.resources) or (bool(self.workers) and not self.allow_other_workers)

    def lacking(self, uid: str, workers: Mapping[str, Any]) -> ResourceError | None:
        """Say what no worker offers of that which is asked for; None where one does.

        Args:
            uid: The task's uid.
            workers: Descriptions of the workers by address, as the scheduler gives them.
        """
        fit = workers
        if self.workers and not self.allow_other_workers:
            fit = {
                address: worker
                for address, worker in workers.items()
                if _names(address, worker) & set(self.workers)
            }
            if not fit:
                asked = f"it asks for {' or '.join(self.workers)}"
                return ResourceError(uid, "worker", f"{asked}; {_list(workers)}")
        for worker in fit.values():
            offered = worker["resources"]
            if all(offered.get(name, 0) >= amount for name, amount in self.resources):
                return None
        wanted = dict(self.resources)
        asked = f"it asks for {_amounts(wanted)} on one worker"
        return ResourceError(uid, ", ".join(wanted), f"{asked}; {_list(fit)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _names(address: str, worker: Mapping[str, Any]) -> set[str]:
    host = worker.get("host") or ""
    return {address, address.rpartition("://")[2], str(worker.get("name")), host}


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in resources.items()) or "none"


def _list(workers: Mapping[str, Any], limit: int = 5) -> str:
    if not workers:
        return "there are no workers"
    offers = [
        f"{worker.get('name')} at {address} offers {_amounts(worker['resources'])}"
        for address, worker in list(workers.items())[:limit]
    ]
    more = f" and {len(workers) - limit} more" if len(workers) > limit else ""
    return f"of {len(workers)} workers, {'; '.join(offers)}{more}"
