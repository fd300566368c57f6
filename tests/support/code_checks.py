"""Static checks of Python code: its names exist and its calls match signatures."""

import ast
import builtins
import importlib
import importlib.util
import inspect
from typing import Any

from asyncflow_ext import WorkflowEngine
from asyncflow_ext.ai_task import OPTIONS as PROMPT_OPTIONS
from asyncflow_ext.component import Options
from rhapsody.backends import DragonVllmInferenceBackend

OURS = ("rhapsody", "asyncflow_ext")
REPEATING = {"retries", "backoff", "timeout"}
COMPUTE = set(Options.model_fields)
DECORATORS = {
    "ai_task": PROMPT_OPTIONS | REPEATING,
    "block": REPEATING,
    "executable_task": COMPUTE,
    "function_task": COMPUTE,
}
"""Options of an engine's decorators, which exist only on instances."""

UNKNOWN = object()
"""A value of unknown type."""


class Instance:
    """A value of a known class."""

    def __init__(self, cls: type) -> None:
        self.cls = cls


def bound_names(tree: ast.AST) -> set[str]:
    """Return every name that code binds, in any scope."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    return names


class PageChecker:
    """Reads the code blocks of a page in order and collects complaints."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.complaints: list[str] = []

    def read(self, code: str, *, check: bool) -> None:
        """Read a block.

        Args:
            code: The code of the block.
            check: Whether to check its calls too, because no test runs it.
        """
        tree = ast.parse(code)
        self.known |= dict.fromkeys(bound_names(tree) - self.known.keys(), UNKNOWN)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(node)
        for node in ast.walk(tree):
            self._bind(node)
        if check:
            for node in ast.walk(tree):
                if isinstance(node, ast.Call):
                    self._call(node)
                elif isinstance(node, ast.Name) and not self._is_defined(node.id):
                    self.complaints.append(f"{node.id} is not defined")

    def _is_defined(self, name: str) -> bool:
        return name in self.known or hasattr(builtins, name) or name == "__file__"

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names = names or [alias.name for alias in node.names]
        for name in names:
            top = name.partition(".")[0]
            if top not in OURS and importlib.util.find_spec(top) is None:
                return
            module = importlib.import_module(name)
            if isinstance(node, ast.Import):
                self.known[top] = importlib.import_module(top)
                continue
            for alias in node.names:
                if not hasattr(module, alias.name):
                    self.complaints.append(f"{name} has no {alias.name}")
                self.known[alias.asname or alias.name] = getattr(module, alias.name, UNKNOWN)

    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            self._bind_one(node.targets[0], node.value)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                self._bind_one(item.optional_vars, item.context_expr)

    def _bind_one(self, target: ast.AST | None, value: ast.expr) -> None:
        if isinstance(value, ast.Await):
            value = value.value
        if isinstance(target, ast.Name) and isinstance(value, ast.Call):
            made = self._value(value.func)
            if made == WorkflowEngine.create:
                made = WorkflowEngine
            if inspect.isclass(made):
                self.known[target.id] = Instance(made)

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.known.get(node.id, getattr(builtins, node.id, UNKNOWN))
        if not isinstance(node, ast.Attribute):
            return UNKNOWN
        base = self._value(node.value)
        if base is UNKNOWN:
            return UNKNOWN
        holder = base.cls if isinstance(base, Instance) else base
        if hasattr(holder, node.attr):
            return getattr(holder, node.attr) if not isinstance(base, Instance) else base
        return UNKNOWN

    def _call(self, node: ast.Call) -> None:
        given = {keyword.arg for keyword in node.keywords}
        if isinstance(node.func, ast.Attribute):
            base = self._value(node.func.value)
            if isinstance(base, Instance):
                self._method_call(node, base.cls, node.func.attr, given)
                return
        function = self._value(node.func)
        if function is UNKNOWN or isinstance(function, Instance):
            return
        self._fits(node, function, ())
        literal = self._literal_arguments(node)
        if function is DragonVllmInferenceBackend and literal is not None:
            try:
                function(*literal[0], **literal[1])  # validates its parameters and starts nothing
            except Exception as error:
                self.complaints.append(str(error))

    def _method_call(self, node: ast.Call, cls: type, name: str, given: set[str | None]) -> None:
        if issubclass(cls, WorkflowEngine) and name in DECORATORS:
            if unknown := given - DECORATORS[name]:
                self.complaints.append(f"{name} has no option {', '.join(map(str, unknown))}")
        elif not hasattr(cls, name):
            if cls.__module__.partition(".")[0] in OURS:
                self.complaints.append(f"{cls.__name__} has no {name}")
        else:
            self._fits(node, getattr(cls, name), (None,))

    def _fits(self, node: ast.Call, function: Any, before: tuple[None, ...]) -> None:
        if not callable(function):
            return
        try:
            signature = inspect.signature(function)
        except ValueError:  # a built-in without a signature
            return
        if inspect.ismethod(function):
            before = ()
        positional = [a for a in node.args if not isinstance(a, ast.Starred)]
        keywords = {k.arg: None for k in node.keywords if k.arg is not None}
        whole = len(positional) == len(node.args) and len(keywords) == len(node.keywords)
        bind = signature.bind if whole else signature.bind_partial
        try:
            bind(*before, *([None] * len(positional)), **keywords)
        except TypeError as error:
            self.complaints.append(f"{ast.unparse(node.func)}(...): {error}")

    def _literal_arguments(self, node: ast.Call) -> tuple[list[Any], dict[str, Any]] | None:
        try:
            positional = [ast.literal_eval(argument) for argument in node.args]
            named = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        except ValueError:
            return None
        return positional, named
