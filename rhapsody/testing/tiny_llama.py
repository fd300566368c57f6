"""A tiny Llama with random weights: `python -m rhapsody.testing.tiny_llama FOLDER`.

Its text makes no sense, but vLLM serves it like any other model: it has a BPE tokenizer, a chat
template and a context of 1,024 tokens. It is created in seconds, without a download, and takes one
or two megabytes. It needs `torch` and `transformers`, which are dependencies of vLLM.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from rhapsody.errors import MissingExtraError

__all__ = ["MAX_MODEL_LEN", "make_tiny_llama"]

MAX_MODEL_LEN = 1024
"""Maximum number of tokens of a prompt and its response together."""

VOCABULARY = 1024
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ADDED_TOKENS = ["<s>", "</s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def make_tiny_llama(folder: str | Path, seed: int = 0) -> Path:
    """Write the model to a folder, in the format of Hugging Face's libraries.

    Args:
        folder: Created if it does not exist.
        seed: Seed of the random weights; the same seed gives the same model.

    Returns:
        The folder.

    Raises:
        MissingExtraError: `transformers`, a dependency of vLLM, is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("make_tiny_llama", "transformers", "vllm-dragon")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder)
    _write_weights(folder, seed)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=ADDED_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = resources.files("rhapsody.inference.embedded").joinpath("corpus.txt")
    tokenizer.train_from_iterator(corpus.read_text("utf-8").splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": MAX_MODEL_LEN,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _write_weights(folder: Path, seed: int) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=64,  # vLLM's attention on the CPU does not support 16
                max_position_embeddings=MAX_MODEL_LEN,
                bos_token_id=ADDED_TOKENS.index("<s>"),
                eos_token_id=ADDED_TOKENS.index("</s>"),
            )
        )
    # Trained models have these too: defaults for sampling parameters that a prompt does not set.
    model.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=1, do_sample=True, temperature=0.7, top_p=0.95
    )
    # No progress bar: saving one small file takes milliseconds.
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if shown:
        logging.enable_progress_bar()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rhapsody.testing.tiny_llama FOLDER")
    make_tiny_llama(sys.argv[1])
