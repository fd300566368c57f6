"""The ranks of a job: their placement, from a task's options and an allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rhapsody.allocation import Gpu, Node
from rhapsody.backends.core.accounts import Request
from rhapsody.errors import ResourceError, UnsupportedTaskError
from rhapsody.gpus import PARTS
from rhapsody.resources import Resources

__all__ = ["JOB_OPTIONS", "Rank", "needs_job", "ranks_of", "request_of"]

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
        node: Name of its node; None if its policy, or Dragon, chooses the node.
        gpus: Its GPUs on that node.
        policy: The user's Dragon policy, passed on unchanged.
        template: Further arguments of Dragon's `ProcessTemplate`.
    """

    node: str | None = None
    gpus: tuple[Gpu, ...] = ()
    policy: Any = None
    template: Mapping[str, Any] = field(default_factory=dict)


def ranks_of(uid: str, options: Mapping[str, Any], nodes: Sequence[Node]) -> list[Rank]:
    """Place the ranks of a task.

    Args:
        uid: The task's uid.
        options: The task's options.
        nodes: The nodes of the allocation.

    Returns:
        One rank per process, in order; empty if the task is not a job.

    Raises:
        UnsupportedTaskError: An option is invalid.
        ResourceError: The job could not be placed even on an idle allocation.
    """
    if not options.keys() & JOB_OPTIONS:
        return []
    templates = [key for key in ("process_template", "process_templates") if key in options]
    if len(templates) + ("ranks" in options) != 1:
        raise UnsupportedTaskError(
            uid,
            "a job must have exactly one of 'ranks', 'process_template' and 'process_templates'",
        )
    if "retries" in options:
        raise UnsupportedTaskError(uid, "'retries' does not apply to jobs of several ranks")
    if options.get("pmi") not in PMI:
        raise UnsupportedTaskError(uid, f"'pmi' must be 'cray' or 'pmix', got {options['pmi']!r}")
    if not templates:
        return _checked(uid, _placed(uid, options, nodes), nodes)
    if unused := options.keys() & {"gpus_per_rank", "nodes", "policy"}:
        raise UnsupportedTaskError(
            uid, f"{', '.join(map(repr, sorted(unused)))} belongs inside '{templates[0]}'"
        )
    entries = options[templates[0]]
    if templates == ["process_template"]:
        entries = [(1, entries)]
    return _checked(uid, _from_templates(uid, entries), nodes)


def request_of(
    options: Mapping[str, Any], resources: Resources | None, ranks: Sequence[Rank], cpus: int
) -> tuple[Request, bool]:
    """Return what a job takes from the account of the nodes, and whether that places its ranks.

    Args:
        options: The task's options.
        resources: What the task asks for, if it is a job by its resources.
        ranks: The ranks as `ranks_of` placed them.
        cpus: CPUs of all nodes.
    """
    if resources is not None:
        return Request.from_resources(resources), True
    gpus = options.get("gpus_per_rank") or 0
    names = {rank.node for rank in ranks}
    if None in names or (not gpus and len(ranks) > cpus):
        # Dragon places them, or they share CPUs, as no other job may do meanwhile.
        return Request(ranks=min(len(ranks), cpus)), False
    nodes = options.get("nodes")
    allowed = nodes if nodes is None or isinstance(nodes, int) else tuple(nodes)
    return Request(int(not gpus), gpus * PARTS, ranks=len(ranks), nodes=allowed), True


def needs_job(resources: Resources | None) -> bool:
    """Return whether a task needs more than a worker: anything but one CPU."""
    return resources is not None and resources != Resources()


def _from_templates(uid: str, entries: Any) -> list[Rank]:
    try:
        pairs = [(int(count), dict(template)) for count, template in entries]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or any(count < 1 for count, _ in pairs):
        raise UnsupportedTaskError(
            uid,
            "'process_template' must be a dict, and 'process_templates' a list of (number of "
            f"processes, dict), got {entries!r}",
        )
    ranks = []
    for count, template in pairs:
        if unknown := template.keys() - TEMPLATE_KEYS:
            raise UnsupportedTaskError(
                uid,
                f"a process template has no key {', '.join(map(repr, sorted(unknown)))}; its keys "
                f"are {', '.join(sorted(TEMPLATE_KEYS))}",
            )
        rest = {key: value for key, value in template.items() if key not in ("policy", "stdin")}
        ranks += [Rank(policy=template.get("policy"), template=rest)] * count
    return ranks


def _placed(uid: str, options: Mapping[str, Any], nodes: Sequence[Node]) -> list[Rank]:
    count, gpus = options["ranks"], options.get("gpus_per_rank") or 0
    for key, value, least in (("ranks", count, 1), ("gpus_per_rank", gpus, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UnsupportedTaskError(
                uid, f"{key!r} must be a whole number of at least {least}, got {value!r}"
            )
    nodes = _chosen(uid, options.get("nodes"), nodes)
    policy = options.get("policy")
    if policy is not None:
        return [Rank(policy=policy)] * count
    if gpus:
        places = [
            Rank(node.name, node.gpus[first : first + gpus])
            for node in nodes
            for first in range(0, len(node.gpus) - gpus + 1, gpus)
        ]
        if count > len(places):
            offered = ", ".join(f"{node.name}: {len(node.gpus)}" for node in nodes)
            raise ResourceError(
                uid,
                "gpu",
                f"it asks for {count} ranks with {gpus} GPUs each; the nodes have {offered}",
            )
        return places[:count]
    # In blocks, so that neighbouring ranks are on one node. Ranks beyond the CPUs share them.
    places = [Rank(node.name) for node in nodes for _ in range(node.cpus)]
    ranks_per_cpu = -(-count // len(places))
    return [place for place in places for _ in range(ranks_per_cpu)][:count]


def _checked(uid: str, ranks: list[Rank], nodes: Sequence[Node]) -> list[Rank]:
    # A policy with a host name that Dragon does not know ends the whole runtime.
    names = [node.name for node in nodes]
    for rank in ranks:
        if getattr(getattr(rank.policy, "placement", None), "name", "") == "HOST_ID":
            raise UnsupportedTaskError(
                uid, "a policy must name its node by 'host_name', not by 'host_id'"
            )
        wanted = getattr(rank.policy, "host_name", "")
        if wanted and wanted not in names:
            raise ResourceError(
                uid, "node", f"its policy names {wanted!r}; the nodes are {', '.join(names)}"
            )
    return ranks


def _chosen(uid: str, wanted: Any, nodes: Sequence[Node]) -> Sequence[Node]:
    if wanted is None:
        return nodes
    if isinstance(wanted, int) and 0 < wanted <= len(nodes):
        return nodes[:wanted]
    names = [node.name for node in nodes]
    if isinstance(wanted, (list, tuple)) and wanted and set(wanted) <= set(names):
        return [node for node in nodes if node.name in wanted]
    raise ResourceError(
        uid, "node", f"it asks for nodes={wanted!r}; the nodes are {', '.join(names)}"
    )
