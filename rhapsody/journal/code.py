"""The hash of a function's code: it changes if, and only if, what the function does may change.

It covers the compiled code, the constants, default values and closure, and everything of the
user's own files that the code refers to: functions, classes and global values, recursively.
Installed packages count by name and version. Names of files, line numbers, comments, docstrings
and annotations do not count.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from rhapsody.journal.packages import PYTHON, find_source, installed_package, package_version
from rhapsody.journal.values import ValueHasher, blake

__all__ = ["Code", "argument_hasher", "code_of", "describe_change"]

UNUSED_NAMES = frozenset({"__doc__", "__firstlineno__", "__module__", "__qualname__"})
"""Names that a class body sets, without effect on what the class does."""

CLASS_NOISE = UNUSED_NAMES | {
    "__abstractmethods__",
    "__annotate__",
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__class_vars__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__dict__",
    "__match_args__",
    "__parameters__",
    "__private_attributes__",
    "__signature__",
    "__static_attributes__",
    "__weakref__",
    "_abc_impl",
    "model_computed_fields",
    "model_fields",
}
"""Attributes of classes that Python or a library derives from the others."""

KIND_FLAGS = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)
"""What calling a function does: not whether it was nested or optimized."""

_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_CONSTANTS = frozenset(dis.hasconst)
_NAMED = frozenset((*dis.hasname, *dis.haslocal, *dis.hasfree, *dis.hascompare))
_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_DEREFS = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_SKIPPED = frozenset({"NOP", "EXTENDED_ARG", "CACHE"})


class Code(NamedTuple):
    """The code of a function.

    Attributes:
        digest: The hash of all parts, and of which name refers to which function.
        parts: The hash of each part, by its description, such as "global SCALE".
    """

    digest: bytes
    parts: dict[str, str]


def code_of(function: Any) -> Code:
    """Return the code of a function, method, partial, callable object or class."""
    walk = _Walk(strict=False)
    walk.add_package(PYTHON)
    walk.add("code", function)
    return walk.code()


def argument_hasher(encode_future: Any = None) -> ValueHasher:
    """Return a hasher for arguments, among which functions and classes count by their code."""
    return ValueHasher(_encode_callable, encode_future)


def describe_change(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Say what differs between two versions of a function's code, in words."""
    changed = [part for part in new if part in old and old[part] != new[part]]
    added = [part for part in new if part not in old]
    removed = [part for part in old if part not in new]
    phrases = [f"{part} changed" for part in changed]
    phrases += [f"{part} is new" for part in added] if not changed else []
    phrases += [f"{part} is gone" for part in removed] if not phrases else []
    phrases = phrases or ["names refer to other functions"]
    if len(phrases) > 3:
        phrases[3:] = [f"{len(phrases) - 3} more"]
    return ", ".join(phrases)


_classes: WeakKeyDictionary[type, bytes] = WeakKeyDictionary()
"""The hashes of classes, which are read once: an argument may hold thousands of their objects."""


def _encode_callable(value: Any, _: ValueHasher) -> bytes:
    known = _classes.get(value) if isinstance(value, type) else None
    if known is not None:
        return known
    walk = _Walk(strict=True)
    walk.add("code", value)
    digest = walk.code().digest
    if isinstance(value, type):
        _classes[value] = digest
    return digest


class _Walk:
    """Collects the parts of a function's code.

    Args:
        strict: Raise `UnstableValueError` for a value without a stable hash that the function
            holds: in its closure, its defaults, or as its object. Otherwise, and in globals and
            classes, only its type counts.
    """

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._parts: dict[str, list[bytes]] = {}
        self._trace: list[bytes] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # an id is unique only while its object exists
        self._modules: set[str] = set()

    def code(self) -> Code:
        """Return the code of what was added."""
        parts = {label: blake(b"".join(sorted(d))).hex() for label, d in self._parts.items()}
        return Code(blake(b"\0".join(self._trace)), dict(sorted(parts.items())))

    def _put(self, label: str, encoded: bytes) -> None:
        digest = blake(encoded)
        self._parts.setdefault(label, []).append(digest)
        self._trace.append(label.encode() + digest)

    def _is_known(self, label: str, value: Any) -> bool:
        """Number a function or a class; return whether it was added before.

        The trace of an added function is: its label with its number, what it refers to, its own
        code. So it tells which name refers to which function, also between functions of one name.
        """
        known = id(value) in self._numbers
        number = self._numbers.setdefault(id(value), len(self._numbers))
        self._kept.append(value)
        self._trace.append(b"%s is %d" % (label.encode(), number))
        return known

    def add_package(self, package: str) -> None:
        """Add an installed package by its version."""
        label, digest = f"package {package}", blake(package_version(package).encode())
        if label not in self._parts:
            self._parts[label] = [digest]
            self._trace.append(label.encode() + digest)

    def add(self, label: str, value: Any) -> None:
        """Add a value that the code refers to.

        Args:
            label: What it is to the code.
            value: A function, class, module or any other value.
        """
        if isinstance(value, types.ModuleType):
            self._add_module(label, value)
        elif isinstance(value, functools.partial):
            self.add(label, value.func)
            self._add_value(f"arguments of {label}", (value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self.add(label, value.__func__)
            self._add_object(f"object of {label}", value.__self__)
        elif isinstance(value, (staticmethod, classmethod)):
            self.add(label, value.__func__)
        elif isinstance(value, property):
            for accessor in (value.fget, value.fset, value.fdel):
                if accessor is not None:
                    self.add(label, accessor)
        elif isinstance(value, functools.cached_property):
            self.add(label, value.func)
        elif isinstance(value, type):
            self._add_class(label, value)
        elif isinstance(value, types.FunctionType):
            self._add_function(label, value)
        elif callable(getattr(value, "__wrapped__", None)):
            self.add(label, value.__wrapped__)
        elif isinstance(value, types.BuiltinFunctionType):
            self._add_builtin(label, value)
        else:
            self._add_object(label, value)

    def _add_object(self, label: str, value: Any) -> None:
        kind = type(value)
        if installed_package(kind.__module__, _file_of_class(kind)) is None:
            self._add_class(f"class {kind.__qualname__}", kind)
        self._add_value(label, value)

    def _add_value(self, label: str, value: Any) -> None:
        hasher = ValueHasher(self._encode_inner, lenient=not self._strict)
        self._put(label, hasher.encode(value))

    def _encode_inner(self, value: Any, _: ValueHasher) -> bytes:
        """Encode a function or a class inside a value: its code is one more part."""
        name = getattr(value, "__qualname__", type(value).__qualname__)
        self.add(f"{'class ' if isinstance(value, type) else ''}{name}", value)
        return str(name).encode()

    def _add_builtin(self, label: str, value: Any) -> None:
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            self._put(label, f"{value.__module__}.{value.__qualname__}".encode())
        else:
            self._add_value(label, (owner, value.__name__))

    def _add_module(self, label: str, module: types.ModuleType) -> None:
        package = installed_package(module.__name__, getattr(module, "__file__", None))
        self._put(label, b"module")
        if package is not None:
            self.add_package(package)
        else:
            self._add_module_source(module.__name__)

    def _add_function(self, label: str, function: types.FunctionType) -> None:
        wrapped = getattr(function, "__wrapped__", None)
        module = function.__globals__.get("__name__") or function.__module__ or ""
        package = installed_package(module, function.__code__.co_filename)
        if package is not None:
            self.add_package(package)
            if callable(wrapped):
                self.add(label, wrapped)
                registry = getattr(function, "registry", None)  # of functools.singledispatch
                if isinstance(registry, Mapping):
                    for kind, implementation in registry.items():
                        self.add(f"{label} for {kind.__qualname__}", implementation)
            else:
                self._put(label, f"{function.__module__}.{function.__qualname__}".encode())
            return
        if self._is_known(label, function):
            return
        defaults = (function.__defaults__, function.__kwdefaults__)
        if any(defaults):
            self._add_value(f"defaults of {_titled(label, function)}", defaults)
        self._put(_titled(label, function), self._encode_code(function.__code__, function))

    def _add_class(self, label: str, kind: type) -> None:
        package = installed_package(kind.__module__, _file_of_class(kind))
        if package is not None:
            if kind.__module__ != "builtins":
                self.add_package(package)
            self._put(label, f"{kind.__module__}.{kind.__qualname__}".encode())
            return
        if self._is_known(label, kind):
            return
        strict, self._strict = self._strict, False
        try:
            self._add_members(kind)
        finally:
            self._strict = strict

    def _add_members(self, kind: type) -> None:
        title = f"class {kind.__qualname__}"
        parents = kind.__bases__ if type(kind) is type else (*kind.__bases__, type(kind))
        for parent in parents:
            self.add(f"class {parent.__qualname__}", parent)
        annotations = inspect.get_annotations(kind)
        fields = [f"{name}:{getattr(a, '__qualname__', a)}" for name, a in annotations.items()]
        encoded = [kind.__qualname__, *fields]
        for name, member in kind.__dict__.items():
            if name in CLASS_NOISE or name.startswith(("__pydantic_", "_abc_")):
                continue
            if _is_code(member):
                self.add(f"{title}.{name}", member)
                encoded.append(name)
            else:
                self._add_value(f"{title}.{name}", member)
        self._put(title, "\n".join(encoded).encode())

    def _encode_code(self, code: types.CodeType, function: types.FunctionType) -> bytes:
        """Encode instructions by their names and values, and add what they refer to."""
        instructions = [i for i in dis.get_instructions(code) if i.opname not in _SKIPPED]
        offsets = [instruction.offset for instruction in instructions]
        hasher = ValueHasher(self._encode_inner)
        lines: list[bytes] = []
        for instruction in instructions:
            name, value = instruction.opname, instruction.argval
            if instruction.opcode in _CONSTANTS:
                if isinstance(value, types.CodeType):
                    encoded = self._encode_code(value, function)
                else:
                    encoded = hasher.encode(value)
            elif instruction.opcode in _JUMPS:
                encoded = b"%d" % bisect_left(offsets, value)
            elif instruction.opcode in _NAMED:
                encoded = repr(value).encode()
                if name.startswith("STORE_") and value in UNUSED_NAMES and lines:
                    lines.pop()  # the value of the name
                    continue
            else:
                encoded = b"%d" % (instruction.arg or 0)
            lines.append(name.encode() + b" " + encoded)
        self._add_references(instructions, function)
        # The names of exceptions' ranges are not instructions; see PEP 657 and `dis`.
        lines.append(getattr(code, "co_exceptiontable", b""))
        signature = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        flags = code.co_flags & KIND_FLAGS
        extra = bool(flags & inspect.CO_VARARGS) + bool(flags & inspect.CO_VARKEYWORDS)
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + extra]
        lines.append(repr((signature, flags, names)).encode())
        return blake(b"\n".join(lines))

    def _add_references(
        self, instructions: list[dis.Instruction], function: types.FunctionType
    ) -> None:
        """Add the globals, the closure values and the modules that instructions refer to."""
        closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
        for position, instruction in enumerate(instructions):
            name = instruction.opname
            if name == "IMPORT_NAME":
                self._add_import(instruction.argval, instructions, position, function)
            elif name in _LOADS and instruction.argval in function.__globals__:
                strict, self._strict = self._strict, False
                try:
                    value = function.__globals__[instruction.argval]
                    chain = _attributes_after(instructions, position)
                    self._add_named("global", instruction.argval, value, chain)
                finally:
                    self._strict = strict
            elif name in _DEREFS and instruction.argval in closure:
                try:
                    value = closure[instruction.argval].cell_contents
                except ValueError:  # the cell is empty
                    continue
                chain = _attributes_after(instructions, position)
                self._add_named("closure value", instruction.argval, value, chain)

    def _add_named(self, role: str, name: str, value: Any, chain: Iterator[str]) -> None:
        while isinstance(value, types.ModuleType):
            package = installed_package(value.__name__, getattr(value, "__file__", None))
            attribute = next(chain, None)
            if package is not None or attribute is None or not hasattr(value, attribute):
                break
            value, name = getattr(value, attribute), f"{name}.{attribute}"
        self.add(f"{role} {name}", value)

    def _add_import(
        self,
        name: str,
        instructions: list[dis.Instruction],
        position: int,
        function: types.FunctionType,
    ) -> None:
        """Add modules that the code imports: all of their code, since they may not be loaded."""
        level = instructions[position - 2].argval if position > 1 else 0
        if level:
            package = str(function.__globals__.get("__package__") or "")
            base = package.split(".")[: len(package.split(".")) - level + 1]
            name = ".".join([*base, name] if name else base)
        parts = name.split(".")
        for number in range(1, len(parts) + 1):  # the import runs the packages around it too
            self._add_module_source(".".join(parts[:number]))
        for following in instructions[position + 1 :]:
            if following.opname == "IMPORT_FROM":  # a name of the module, or a module inside it
                self._add_module_source(f"{name}.{following.argval}", required=False)
            elif not following.opname.startswith("STORE_"):
                break

    def _add_module_source(self, module: str, required: bool = True) -> None:
        name, file = find_source(module)
        if module in self._modules or (name is None and not required):
            return
        self._modules.add(module)
        package = None if name is None else installed_package(name, file)
        if package is not None:
            self.add_package(package)
            return
        label = f"module {module.rpartition('.')[2]}"
        if name is None or file is None or not file.endswith(".py"):
            self._put(label, b"unknown")
            return
        try:
            code = compile(Path(file).read_bytes(), "", "exec", dont_inherit=True)
        except (OSError, SyntaxError, ValueError):
            self._put(label, b"unreadable")
            return
        parent = module if file.endswith("__init__.py") else module.rpartition(".")[0]
        stand_in = types.FunctionType(code, {"__name__": module, "__package__": parent})
        self._put(label, self._encode_code(code, stand_in))


def _attributes_after(instructions: list[dis.Instruction], position: int) -> Iterator[str]:
    """Yield the attributes that are read from the value that an instruction loads."""
    for instruction in instructions[position + 1 :]:
        if instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            return
        yield instruction.argval


def _titled(label: str, function: types.FunctionType) -> str:
    return label if label == "code" else f"{function.__name__}()"


def _is_code(member: Any) -> bool:
    kinds = (
        types.FunctionType,
        classmethod,
        staticmethod,
        property,
        functools.cached_property,
        type,
    )
    return isinstance(member, kinds) or callable(getattr(member, "__wrapped__", None))


def _file_of_class(kind: type) -> str | None:
    module = sys.modules.get(kind.__module__)
    return getattr(module, "__file__", None)
