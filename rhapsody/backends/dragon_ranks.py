"""Jobs of several ranks: where each rank goes, from a task's options and an allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rhapsody.api.errors import ResourceError, UnsupportedTaskError
from rhapsody.backends.dragon_runtime import Host

__all__ = ["JOB_OPTIONS", "Rank", "ranks_of"]

JOB_OPTIONS = frozenset(
    {"gpus_per_rank", "nodes", "pmi", "policy", "process_template", "process_templates", "ranks"}
)
"""Keys of `task_backend_specific_kwargs` that make a task a job, or place its ranks."""

TEMPLATE_KEYS = frozenset({"cwd", "env", "options", "policy", "stderr", "stdin", "stdout"})
PMI = (None, "cray", "pmix")


@dataclass(frozen=True)
class Rank:
    """One process of a job.

    Attributes:
        host: Name of its host; None where a policy, or Dragon, says.
        gpus: Numbers of its GPUs on that host.
        policy: The user's own Dragon policy, used as it is.
        template: Further arguments of Dragon's `ProcessTemplate`.
    """

    host: str | None = None
    gpus: tuple[int, ...] = ()
    policy: Any = None
    template: Mapping[str, Any] = field(default_factory=dict)


def ranks_of(uid: str, options: Mapping[str, Any], hosts: Sequence[Host]) -> list[Rank]:
    """Place the ranks of a task.

    Args:
        uid: The task's uid.
        options: The task's options.
        hosts: The allocation.

    Returns:
        A rank for each process, in order; none where the task is not a job.

    Raises:
        UnsupportedTaskError: An option is not what it has to be.
        ResourceError: The allocation does not have what is asked for, whatever runs on it.
    """
    if not options.keys() & JOB_OPTIONS:
        return []
    templates = [key for key in ("process_template", "process_templates") if key in options]
    if len(templates) + ("ranks" in options) != 1:
        raise UnsupportedTaskError(
            uid, "a job has exactly one of 'ranks', 'process_template' and 'process_templates'"
        )
    if "retries" in options:
        raise UnsupportedTaskError(uid, "'retries' is not for jobs of several ranks")
    if options.get("pmi") not in PMI:
        raise UnsupportedTaskError(uid, f"'pmi' must be 'cray' or 'pmix', not {options['pmi']!r}")
    if not templates:
        return _known(uid, _placed(uid, options, hosts), hosts)
    if unused := options.keys() & {"gpus_per_rank", "nodes", "policy"}:
        raise UnsupportedTaskError(
            uid, f"{', '.join(map(repr, sorted(unused)))} belongs inside '{templates[0]}'"
        )
    entries = options[templates[0]]
    if templates == ["process_template"]:
        entries = [(1, entries)]
    return _known(uid, [rank for entry in _entries(uid, entries) for rank in entry], hosts)


def _entries(uid: str, entries: Any) -> list[list[Rank]]:
    try:
        pairs = [(int(count), dict(template)) for count, template in entries]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or any(count < 1 for count, _ in pairs):
        raise UnsupportedTaskError(
            uid,
            "'process_template' must be a dict, and 'process_templates' a list of (number of "
            f"processes, dict), not {entries!r}",
        )
    ranks = []
    for count, template in pairs:
        if unknown := template.keys() - TEMPLATE_KEYS:
            raise UnsupportedTaskError(
                uid,
                f"a process template has no {', '.join(map(repr, sorted(unknown)))} here; it may "
                f"have {', '.join(sorted(TEMPLATE_KEYS))}",
            )
        rest = {key: value for key, value in template.items() if key not in ("policy", "stdin")}
        ranks.append([Rank(policy=template.get("policy"), template=rest)] * count)
    return ranks


def _placed(uid: str, options: Mapping[str, Any], hosts: Sequence[Host]) -> list[Rank]:
    count, gpus = options["ranks"], options.get("gpus_per_rank") or 0
    for key, value, least in (("ranks", count, 1), ("gpus_per_rank", gpus, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UnsupportedTaskError(
                uid, f"{key!r} must be a whole number of at least {least}, not {value!r}"
            )
    hosts = _chosen(uid, options.get("nodes"), hosts)
    policy = options.get("policy")
    if policy is not None:
        return [Rank(policy=policy)] * count
    if gpus:
        places = [
            Rank(host.name, host.gpus[first : first + gpus])
            for host in hosts
            for first in range(0, len(host.gpus) - gpus + 1, gpus)
        ]
        if count > len(places):
            offered = ", ".join(f"{host.name}: {len(host.gpus)}" for host in hosts)
            raise ResourceError(
                uid, "gpu", f"{count} ranks of {gpus} GPUs each are asked for; there are {offered}"
            )
        return places[:count]
    # In blocks, so that neighbours are on one host; more than CPUs share those.
    places = [Rank(host.name) for host in hosts for _ in range(host.cpus)]
    rounds = -(-count // len(places))
    return [place for place in places for _ in range(rounds)][:count]


def _known(uid: str, ranks: list[Rank], hosts: Sequence[Host]) -> list[Rank]:
    # A host that it does not know ends the whole runtime.
    names = [host.name for host in hosts]
    for rank in ranks:
        if getattr(getattr(rank.policy, "placement", None), "name", "") == "HOST_ID":
            raise UnsupportedTaskError(uid, "a policy must name its host, by 'host_name'")
        wanted = getattr(rank.policy, "host_name", "")
        if wanted and wanted not in names:
            raise ResourceError(
                uid, "node", f"its policy names {wanted!r}; there are {', '.join(names)}"
            )
    return ranks


def _chosen(uid: str, nodes: Any, hosts: Sequence[Host]) -> Sequence[Host]:
    if nodes is None:
        return hosts
    if isinstance(nodes, int) and 0 < nodes <= len(hosts):
        return hosts[:nodes]
    names = [host.name for host in hosts]
    if isinstance(nodes, (list, tuple)) and nodes and set(nodes) <= set(names):
        return [host for host in hosts if host.name in nodes]
    raise ResourceError(uid, "node", f"{nodes!r} is asked for; there are {', '.join(names)}")
