"""The choice of an inference backend by what is there: an endpoint, vLLM, or the embedded model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from rhapsody.allocation import allocation, is_under_dragon
from rhapsody.errors import ConfigurationError, MissingExtraError
from rhapsody.gpus import local_gpus
from rhapsody.inference.vllm.versions import server_root

__all__ = ["inference_backend"]

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
CALLABLE = "inference_backend"


def inference_backend(model: str | Sequence[str], /, **options: Any) -> Any:
    """Create the inference backend that fits a model and this machine.

    One line of the log says what was chosen and why (`rhapsody.enable_logging()` shows it). It may
    block for a second while GPUs are listed.

    Args:
        model: "embedded", the name or path of a model for vLLM, or the URL of an OpenAI-compatible
            server (or a list of URLs). A URL without a path gets "/v1".
        **options: Options of `DragonVllmInferenceBackend`, or for a URL of
            `EndpointInferenceBackend`. They take precedence. Without `use_service=True` no HTTP
            server is started.

    Returns:
        The backend, not started yet. Await it to start it; otherwise its first task does.

    Raises:
        ConfigurationError: `model` is neither a name nor a URL.
        MissingExtraError: The model needs vLLM, which is not installed. The embedded model is
            never chosen in its place.
        TypeError: An option is unknown.
    """
    several = isinstance(model, (list, tuple))
    urls: list[Any] = list(model) if several else [model]
    if not urls or not all(isinstance(url, str) and url for url in urls):
        raise ConfigurationError(
            f"'model' must be 'embedded', the name of a model, or a URL, got {model!r:.80}"
        )
    if all(url.startswith(("http://", "https://")) for url in urls):
        return _endpoint(urls, options)
    if not isinstance(model, str):
        raise ConfigurationError(f"a list must have URLs of servers only, got {model!r:.80}")
    return _own_server(model, options)


def _endpoint(urls: list[str], options: dict[str, Any]) -> Any:
    from rhapsody.backends.endpoint import EndpointInferenceBackend

    full = [url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1" for url in urls]
    backend = EndpointInferenceBackend(full if len(full) > 1 else full[0], **options)
    shown = ", ".join(full)
    logger.info("%s: the endpoint %s, because the model is given by a URL", CALLABLE, shown)
    return backend


def _own_server(model: str, options: dict[str, Any]) -> Any:
    from rhapsody.backends.inference import DragonVllmInferenceBackend

    chosen = {"use_service": False, **options}
    engine = chosen.setdefault("engine", EMBEDDED if model == EMBEDDED else "vllm")
    reasons = []
    if "engine" in options:
        reasons.append("engine= was given")
    elif engine == EMBEDDED:
        reasons.append("the model is 'embedded'")
    elif server_root() is None:
        raise MissingExtraError(f"{CALLABLE}({model!r})", "vllm", "vllm-dragon")
    else:
        reasons.append("vLLM is installed")
    if "launcher" not in options:
        started = is_under_dragon()
        chosen["launcher"] = "dragon" if started else "local"
        reasons.append(
            f"the dragon command {'started' if started else 'did not start'} the program"
        )
    if "num_gpus" not in options and engine == "vllm" and "hardware" not in options:
        chosen["num_gpus"] = _gpus_per_node(chosen["launcher"])
        reasons.append(f"{chosen['num_gpus'] or 'no'} GPUs are there")
    backend = DragonVllmInferenceBackend(chosen.pop("config_file", None), model, **chosen)
    gpus = backend.config.num_gpus if engine == "vllm" else 0
    logger.info(
        "%s: %r on the %s engine, launcher %r, %s, because %s",
        *(CALLABLE, model, engine, chosen["launcher"]),
        f"{gpus} GPUs on a node" if gpus else "on the CPU",
        "; ".join(reasons),
    )
    return backend


def _gpus_per_node(launcher: str) -> int:
    if launcher == "dragon" and is_under_dragon():
        return min(len(node.gpus) for node in allocation())
    return len(local_gpus())
