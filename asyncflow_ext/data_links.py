"""AsyncFlow's data links: files passed between tasks, by backends that support it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from radical.asyncflow import InputFile, OutputFile

from asyncflow_ext.component import Component, description_of

__all__ = ["link_data", "metadata"]

FILES = (InputFile, OutputFile)

NONE: dict[str, tuple[Any, ...]] = {"dependencies": (), "input_files": (), "output_files": ()}
"""The metadata of a call without dependencies and files. Shared: backends do not change it."""


def metadata(component: Component) -> dict[str, tuple[Any, ...]]:
    """Return the dependencies of a component, and its input and output files.

    A dependency is given by uid and name only: whole descriptions would keep every earlier
    component of a chain in memory. Tuples, because an empty tuple takes no memory.
    """
    args, kwargs = component.description["args"], component.description["kwargs"]
    arguments = (*args, *kwargs.values()) if kwargs else args
    files = [argument for argument in arguments if isinstance(argument, FILES)]
    if not files and not component.dependencies:
        return NONE
    others = [d for f in component.dependencies if (d := description_of(f)) is not None]
    return {
        "dependencies": tuple([{"uid": other["uid"], "name": other["name"]} for other in others]),
        "input_files": tuple([file.filename for file in files if isinstance(file, InputFile)]),
        "output_files": tuple([file.filename for file in files if isinstance(file, OutputFile)]),
    }


def link_data(engine: Any, component: Component) -> None:
    """Call the data-link hooks of the engine's default backend.

    Raises:
        TypeError: A hook did not return the destination of a file.
        Exception: Any error of a hook.
    """
    sources = [d for f in component.dependencies if (d := description_of(f)) is not None]
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
            f"link_explicit_data_deps for '{name}' must return a dict with 'target', got {link!r}"
        )
    return Path(link["target"]).name
