"""The hash of code: what changes it, and what does not."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody.journal.code import Code, code_of, describe_change
from rhapsody.journal.packages import installed_package, package_version

SOURCE = '''
import math
import enum
from dataclasses import dataclass

SCALE = 2
UNUSED = 5
TABLE = {"a": 1, "b": 2}

@dataclass
class Point:
    """A point."""
    x: int
    y: int = 0

    def norm(self):
        return math.hypot(self.x, self.y)

class Base:
    limit = 10

class Special(Base):
    def run(self):
        return self.limit

def deepest(x):
    return x - 1

def helper(x):
    return deepest(x) * SCALE

def make(offset):
    async def task(x, power=2):
        """Documented."""
        # A comment.
        if x > 3:
            return [helper(n) ** power for n in range(x)] + [TABLE["a"], offset]
        try:
            return Special().run()
        except (ValueError, KeyError):
            return Point(1).norm()
    return task

def unused():
    return 1

task = make(7)
'''


def load(source: str, file: str = "program.py") -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "own_program"}
    exec(compile(textwrap.dedent(source), file, "exec"), names)
    return names


def code(source: str, file: str = "program.py", name: str = "task") -> Code:
    return code_of(load(source, file)[name])


SAME = {
    "a file was renamed": ("", ""),
    "a comment changed": ("# A comment.", "# Another one,\n        # of two lines."),
    "a docstring changed": ('"""Documented."""', '"""Documented otherwise."""'),
    "a docstring was removed": ('"""Documented."""\n', "\n"),
    "the docstring of a class changed": ('"""A point."""', '"""Some point."""'),
    "lines moved": ("import math", "\n\n\nimport math"),
    "an unused global changed": ("UNUSED = 5", "UNUSED = 6"),
    "an unused function changed": ("return 1\n", "return 2\n"),
    "keys of a dict moved": ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}'),
    "an expression spans lines": (
        "Special().run()",
        "(\n                Special()\n                .run()\n            )",
    ),
    "an annotation was added": ("def task(x, ", "def task(x: int, "),
}


@pytest.mark.parametrize("change", SAME)
def test_code_is_the_same_if(change: str) -> None:
    old, new = SAME[change]
    assert old in SOURCE
    assert code(SOURCE.replace(old, new, 1), "renamed.py").digest == code(SOURCE).digest


DIFFERENT = {
    "the body changed": ("x > 3", "x > 4", "code changed"),
    "an operator changed": ("** power", "*power", "code changed"),
    "an exception changed": ("(ValueError, KeyError)", "(ValueError, TypeError)", "code changed"),
    "a default changed": ("power=2", "power=3", "defaults of code changed"),
    "a helper changed": ("deepest(x) * SCALE", "deepest(x) + SCALE", "helper() changed"),
    "a helper of a helper changed": ("return x - 1", "return x - 2", "deepest() changed"),
    "a global changed": ("SCALE = 2", "SCALE = 3", "global SCALE changed"),
    "a value in a global changed": ('"a": 1', '"a": 9', "global TABLE changed"),
    "a closure value changed": ("make(7)", "make(8)", "closure value offset changed"),
    "a method changed": ("return self.limit", "return self.limit + 1", "run() changed"),
    "a base class changed": ("limit = 10", "limit = 11", "class Base.limit changed"),
    "a field of a class changed": ("    y: int = 0", "    y: int = 1", "class Point.y changed"),
    "a function became sync": ("async def task", "def task", "code changed"),
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_code_differs_and_change_is_named_if(change: str) -> None:
    old, new, said = DIFFERENT[change]
    assert old in SOURCE
    before, after = code(SOURCE), code(SOURCE.replace(old, new, 1))
    assert before.digest != after.digest
    assert said in describe_change(before.parts, after.parts)


def test_recursion_ends() -> None:
    source = """
    def task(n):
        return other(n)
    def other(n):
        return task(n - 1) if n else 0
    """
    assert code(source).digest == code(source).digest
    assert code(source).digest != code(source.replace("else 0", "else 1")).digest


def test_objects_of_the_process_count_by_their_type() -> None:
    source = """
    import logging, threading
    logger = logging.getLogger("a")
    lock = threading.Lock()
    def task():
        with lock:
            logger.info("x")
    """
    assert code(source).digest == code(source).digest


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write modules of the user and forget the loaded ones."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(**sources: str) -> None:
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
            sys.modules.pop(name, None)

    return write


def test_function_of_own_module_counts_by_its_code(modules: Callable[..., None]) -> None:
    program = "import own_helpers\ndef task():\n    return own_helpers.add(1)\n"
    digests = set()
    for body in ("x + 1", "x + 1  # same", "x + 2"):
        modules(own_helpers=f"def add(x):\n    return {body}\ndef other():\n    return '{body}'\n")
        digests.add(code(program).digest)
        sys.modules.pop("own_helpers", None)
    assert len(digests) == 2


def test_module_imported_in_body_counts_with_its_imports(modules: Callable[..., None]) -> None:
    program = "def task():\n    import own_outer\n    return own_outer.f()\n"
    digests = set()
    for value in (1, 2):
        modules(
            own_inner=f"VALUE = {value}\n",
            own_outer="import own_inner\ndef f():\n    return own_inner.VALUE\n",
        )
        digests.add(code(program).digest)
    assert len(digests) == 2


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Install versions of a package with a function."""
    site = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(site)

    def install(version: str, body: str) -> None:
        (site / "stub_solver").mkdir(parents=True, exist_ok=True)
        (site / "stub_solver" / "__init__.py").write_text(f"def solve(x):\n    return {body}\n")
        info = site / "stub_solver-1.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Name: stub_solver\nVersion: {version}\n")
        sys.modules.pop("stub_solver", None)
        package_version.cache_clear()

    return install


@pytest.mark.parametrize(
    "program",
    [
        "import stub_solver\ndef task(x):\n    return stub_solver.solve(x)\n",
        "from stub_solver import solve\ndef task(x):\n    return solve(x)\n",
        "def task(x):\n    import stub_solver\n    return stub_solver.solve(x)\n",
        "import functools, stub_solver\ntask = functools.partial(stub_solver.solve, 1)\n",
    ],
    ids=["module", "function", "in the body", "partial"],
)
def test_installed_package_counts_by_its_version(
    package: Callable[[str, str], None], program: str
) -> None:
    package("1.0", "x + 1")
    first = code(program)
    package("1.0", "x + 2")
    patched = code(program)
    package("1.1", "x + 2")
    newer = code(program)
    sys.modules.pop("stub_solver", None)
    assert first.digest == patched.digest != newer.digest
    assert describe_change(first.parts, newer.parts) == "package stub_solver changed"


def test_wrapper_of_package_counts_with_wrapped_function() -> None:
    source = """
    import functools
    @functools.lru_cache
    def task(x):
        return x + 1
    """
    assert code(source).digest != code(source.replace("x + 1", "x + 2")).digest


def test_own_decorator_counts_with_wrapped_function() -> None:
    source = """
    import functools
    def twice(function):
        @functools.wraps(function)
        def wrapper(*args):
            return function(*args) * 2
        return wrapper
    @twice
    def task(x):
        return x + 1
    """
    changed = [source.replace("x + 1", "x + 2"), source.replace("* 2", "* 3"), source]
    assert len({code(text).digest for text in changed}) == 3


def test_bound_method_counts_with_its_object() -> None:
    source = """
    class Solver:
        def __init__(self, size):
            self.size = size
        def run(self):
            return self.size
    task = Solver(1).run
    """
    changed = [source, source.replace("Solver(1)", "Solver(2)"), source.replace(".size\n", ".a\n")]
    assert len({code(text).digest for text in changed}) == 3


def test_site_packages_inside_a_project_is_installed() -> None:
    assert installed_package("a.b", "/home/me/project/.venv/lib/site-packages/a/b.py") == "a"
    assert installed_package("a.b", "/home/me/project/a/b.py") is None
    assert installed_package("json", None) == "python"


def differs(source: str, old: str, new: str) -> bool:
    """Return whether a change of a source changes the code of its task."""
    source = textwrap.dedent(source)
    assert old in source
    return code(source).digest != code(source.replace(old, new, 1)).digest


EXCHANGED = {
    "globals": (
        """
        def one(): return 1
        def two(): return 2
        first, second = one, two
        def task(): return first() - second()
        """,
        "first, second = one, two",
        "first, second = two, one",
    ),
    "functions of a factory": (
        """
        def make(n):
            def inner(): return n
            return inner
        first, second = make(1), make(2)
        def task(): return first() - second()
        """,
        "make(1), make(2)",
        "make(2), make(1)",
    ),
    "closure values": (
        """
        def one(): return 1
        def two(): return 2
        def make(first, second):
            def task(): return first() - second()
            return task
        task = make(one, two)
        """,
        "make(one, two)",
        "make(two, one)",
    ),
    "methods": (
        """
        def one(self): return 1
        def two(self): return 2
        class Pair:
            first, second = one, two
        def task(): return Pair().first() - Pair().second()
        """,
        "first, second = one, two",
        "first, second = two, one",
    ),
    "functions in a dict": (
        """
        TABLE = {"a": lambda: 1, "b": lambda: 2}
        def task(name): return TABLE[name]()
        """,
        '"a": lambda: 1, "b": lambda: 2',
        '"a": lambda: 2, "b": lambda: 1',
    ),
}


@pytest.mark.parametrize("names", EXCHANGED)
def test_names_that_exchange_their_functions_change_the_code(names: str) -> None:
    assert differs(*EXCHANGED[names])


def test_exchange_of_functions_is_described() -> None:
    source, old, new = EXCHANGED["globals"]
    source = textwrap.dedent(source)
    before, after = code(source), code(source.replace(old, new))
    assert describe_change(before.parts, after.parts) == "names refer to other functions"


def test_order_of_a_dict_with_functions_does_not_matter() -> None:
    assert not differs(
        """
        def shared(): return 0
        TABLE = {"a": lambda: shared() + 1, "b": lambda: shared() + 2}
        def task(name): return TABLE[name]()
        """,
        '"a": lambda: shared() + 1, "b": lambda: shared() + 2',
        '"b": lambda: shared() + 2, "a": lambda: shared() + 1',
    )


def test_set_of_functions_has_the_same_code_in_every_order() -> None:
    source = """
    def shared(): return 0
    def one(): return shared() + len(ALL)
    def two(): return shared() + 2
    ALL = {one, two}
    def task(): return [f() for f in ALL]
    """
    assert len({code(source).digest for _ in range(8)}) == 1
    assert differs(source, "shared() + 2", "shared() + 3")


BESIDE_A_LOCK = {
    "default": "def task(x=(threading.Lock(), 1)): return x",
    "closure value": "def make(x):\n    return lambda: x\ntask = make([threading.Lock(), 1])",
    "partial": "def work(x): return x\ntask = functools.partial(work, [threading.Lock(), 1])",
    "global": "X = [threading.Lock(), 1]\ndef task(): return X",
    "bound object": (
        "class Own:\n    def __init__(self, n):\n        self.n, self.lock = n, threading.Lock()\n"
        "    def run(self): return self.n\ntask = Own(1).run"
    ),
}


@pytest.mark.parametrize("place", BESIDE_A_LOCK)
def test_value_beside_one_without_stable_hash_counts(place: str) -> None:
    source = f"import functools, threading\n{BESIDE_A_LOCK[place]}\n"
    assert code(source).digest == code(source).digest
    assert differs(source, "1)", "2)") if "1)" in source else differs(source, "1]", "2]")


FOLLOWED = {
    "from package import module": """
    def task():
        from own_package import leaf
        return leaf.f()
    """,
    "import of a submodule, whose package is read too": """
    def task():
        import own_package.other
        return own_package.VALUE
    """,
    "module in a closure": """
    def make():
        from own_package import leaf
        def task(): return leaf.f()
        return task
    task = make()
    """,
    "module in a local variable": """
    from own_package import leaf
    def task():
        module = leaf
        return module.f()
    """,
    "function of a module in a closure": """
    def make():
        from own_package.leaf import f
        def task(): return [f() for _ in range(2)]
        return task
    task = make()
    """,
}


@pytest.mark.parametrize("way", FOLLOWED)
def test_module_is_followed_through(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own_package"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    (folder / "other.py").touch()
    digests = []
    for value in (1, 1, 2):
        (folder / "__init__.py").write_text(f"VALUE = {value if 'submodule' in way else 0}\n")
        (folder / "leaf.py").write_text(f"def f():\n    return {value}\n")
        for name in ("own_package", "own_package.leaf", "own_package.other"):
            sys.modules.pop(name, None)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        digests.append(code(FOLLOWED[way]).digest)
    for name in ("own_package", "own_package.leaf", "own_package.other"):
        sys.modules.pop(name, None)
    assert digests[0] == digests[1] != digests[2]


SEEN = {
    "implementation of a generic function": """
    import functools
    @functools.singledispatch
    def area(shape): return 0
    @area.register
    def _(shape: int): return 1 * shape
    def task(): return area(3)
    """,
    "method of a metaclass": """
    class Meta(type):
        def size(cls): return 1 * 7
    class Box(metaclass=Meta): pass
    def task(): return Box.size()
    """,
}


@pytest.mark.parametrize("place", SEEN)
def test_change_is_seen_in(place: str) -> None:
    assert code(SEEN[place]).digest == code(SEEN[place]).digest
    assert differs(SEEN[place], "return 1", "return 2")
