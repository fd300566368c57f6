import importlib.util
import json
from pathlib import Path

import pytest

from rhapsody.errors import MissingExtraError
from rhapsody.testing.tiny_llama import MAX_MODEL_LEN, make_tiny_llama


def test_missing_transformers_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="needs the package 'transformers'"):
        make_tiny_llama(tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs vLLM's transformers"
)
def test_model_is_stored_in_hugging_faces_format(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "new" / "folder")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == MAX_MODEL_LEN
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
