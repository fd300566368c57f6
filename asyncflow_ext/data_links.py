"""AsyncFlow's data links: files that tasks hand on, on backends which see to that themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from radical.asyncflow import InputFile, OutputFile

from asyncflow_ext.component import Component

__all__ = ["link_data", "metadata"]

NONE: dict[str, tuple[Any, ...]] = {"dependencies": (), "input_files": (), "output_files": ()}
"""Of a call without arguments; one for all, since backends leave it as it is."""


def metadata(component: Component) -> dict[str, tuple[Any, ...]]:
    """Describe what a component depends on and which files it takes and makes.

    Of each component that it depends on there is only the uid and the name: whole descriptions
    would keep every earlier one of a chain in memory. In tuples, since empty ones cost nothing.
    """
    description = component.description
    if not (description["args"] or description["kwargs"]):
        return NONE
    arguments = (*description["args"], *description["kwargs"].values())
    others = filter(None, map(_description, component.dependencies))
    return {
        "dependencies": tuple({"uid": other["uid"], "name": other["name"]} for other in others),
        "input_files": tuple(a.filename for a in arguments if isinstance(a, InputFile)),
        "output_files": tuple(a.filename for a in arguments if isinstance(a, OutputFile)),
    }


def link_data(engine: Any, component: Component) -> None:
    """Call the hooks of the engine's default backend, where it links data at all.

    Raises:
        TypeError: A hook that has to name the file's destination did not.
        Exception: Whatever a hook raises.
    """
    if not (engine._links_implicit_data or engine._links_explicit_data):
        return
    sources = [d for f in component.dependencies if (d := _description(f)) is not None]
    if engine._links_implicit_data and engine.implicit_data_mode:
        for source in sources:
            if not source["metadata"]["output_files"]:
                engine.backend.link_implicit_data_deps(source, component.description)
    if engine._links_explicit_data:
        _link_files(engine.backend, sources, component.description)


def _link_files(backend: Any, sources: list[dict[str, Any]], target: dict[str, Any]) -> None:
    inputs = target["metadata"]["input_files"]
    there: set[str] = set()
    for source in sources:
        for name in source["metadata"]["output_files"]:
            there.add(Path(name).name)
            if name in inputs:
                link = backend.link_explicit_data_deps(
                    src_task=source, dst_task=target, file_name=name
                )
                there.add(_destination(link, name))
    for path in inputs:
        name = Path(path).name
        if name not in there:
            link = backend.link_explicit_data_deps(
                src_task=None, dst_task=target, file_name=name, file_path=path
            )
            _destination(link, name)


def _destination(link: Any, name: str) -> str:
    if not isinstance(link, dict) or "target" not in link:
        raise TypeError(
            f"link_explicit_data_deps for '{name}' must return a dict with 'target', not {link!r}"
        )
    return Path(link["target"]).name


def _description(future: Any) -> dict[str, Any] | None:
    description = getattr(future, "task", None) or getattr(future, "block", None)
    return description if isinstance(description, dict) else None
