"""New weights in vLLM's engine, which is replaced; the real one is in tests/integration/vllm."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody.inference.protocol.errors import RequestError
from rhapsody.inference.vllm.weights import load_weights

ARCHITECTURES = ["LlamaForCausalLM"]


class Engine:
    """Notes the calls of its methods."""

    model_config = SimpleNamespace(hf_config=SimpleNamespace(architectures=ARCHITECTURES))

    def __init__(self, error: Exception | None = None, reset: bool | None = True) -> None:
        self.calls: list[Any] = []
        self._error = error
        self._reset = reset

    async def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.calls.append((method, kwargs))
        if self._error is not None:
            raise self._error

    async def reset_prefix_cache(self) -> bool | None:
        self.calls.append("reset")
        return self._reset


class EngineWithImages(Engine):
    """The engine of a version that keeps what it computed of images."""

    async def reset_encoder_cache(self) -> None:
        self.calls.append("reset images")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ARCHITECTURES}))
    return tmp_path


@pytest.mark.parametrize("reset", [True, None])
async def test_weights_are_loaded_and_the_cache_is_dropped(
    folder: Path, reset: bool | None
) -> None:
    engine = Engine(reset=reset)
    await load_weights(engine, str(folder))
    assert engine.calls == [("reload_weights", {"weights_path": str(folder)}), "reset"]


async def test_computed_images_are_dropped(folder: Path) -> None:
    engine = EngineWithImages()
    await load_weights(engine, str(folder))
    assert engine.calls[1:] == ["reset", "reset images"]


async def test_folder_without_a_configuration_is_taken(folder: Path) -> None:
    (folder / "config.json").unlink()
    engine = Engine()
    await load_weights(engine, str(folder))
    assert engine.calls


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model.safetensors", None, "has no weights"),
        ("config.json", "{", "cannot be read"),
        ("config.json", '{"architectures": ["BertModel"]}', "for BertModel, and the model is Lla"),
    ],
)
async def test_other_folders_are_refused_before_the_engine_changes(
    folder: Path, name: str, text: str | None, message: str
) -> None:
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    engine = Engine()
    with pytest.raises(RequestError, match=message):
        await load_weights(engine, str(folder))
    assert engine.calls == []


async def test_version_without_other_weights_refuses(folder: Path) -> None:
    error = RuntimeError("reload_weights() got an unexpected keyword argument 'weights_path'")
    with pytest.raises(RequestError, match="This version of vLLM cannot load other weights"):
        await load_weights(Engine(error), str(folder))


async def test_failures_of_the_engine_are_raised(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        await load_weights(Engine(RuntimeError("a wrong shape")), str(folder))
    with pytest.raises(RuntimeError, match="could not be dropped"):
        await load_weights(Engine(reset=False), str(folder))
