"""A small n-gram language model in plain Python.

It is deliberately not a real model: it strings together words in the order of its corpus, begins
with the words of the prompt, and knows nothing. Towards its callers it behaves like a real model:
tokens, limits, sampling, stop strings, reproducible seeds.

The corpus (`corpus.txt`, about 4,200 words) is this project's own text about science and computing,
and a few passages of books in the public domain: Newton on himself and his rules of reasoning, and
well-known sentences of Austen, Carroll, Conan Doyle, Darwin, Dickens and Melville.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from rhapsody.inference.embedded.generation import Generation, Steps
from rhapsody.inference.embedded.ngrams import Ngrams
from rhapsody.inference.embedded.prompt import Prompt
from rhapsody.inference.embedded.sampling import Sampling
from rhapsody.inference.embedded.structure.schema import JsonWriter
from rhapsody.inference.embedded.structure.steps import KnownText

__all__ = ["DEFAULT_LABELS", "DEFAULT_MAX_MODEL_LEN", "NgramCompletion", "NgramModel"]

DEFAULT_MAX_MODEL_LEN = 2048
DEFAULT_LABELS = ("computing", "physics", "story")
"""The labels that it classifies texts by."""


@dataclass(frozen=True)
class NgramCompletion:
    """A finished completion of a prompt.

    Args:
        text: Its text.
        finish_reason: `stop` at the model's own end or a stop string, `length` at `max_tokens`.
        tokens: Its number of tokens.
    """

    text: str
    finish_reason: str
    tokens: int


class NgramModel:
    """An n-gram language model.

    Args:
        text: The text to learn; None: the corpus of this package, which takes milliseconds.
        max_model_len: Maximum number of tokens of a prompt and a completion together.
        labels: The labels that it classifies texts by.

    Raises:
        ValueError: The text holds no sentence.
    """

    def __init__(
        self,
        text: str | None = None,
        max_model_len: int = DEFAULT_MAX_MODEL_LEN,
        labels: Sequence[str] = DEFAULT_LABELS,
    ) -> None:
        if text is None:
            text = resources.files(__package__).joinpath("corpus.txt").read_text("utf-8")
        self.max_model_len = max_model_len
        self.labels = tuple(labels)
        self.ngrams = Ngrams(text)

    def read(self, text: str, sampling: Sampling) -> Prompt:
        """Read a prompt and check that a completion fits after it.

        Args:
            text: A rendered chat, or a text to continue.
            sampling: The request's sampling parameters.

        Raises:
            RequestError: The prompt is empty, or too long together with the completion.
        """
        return Prompt.read(text, sampling, self.ngrams, self.max_model_len)

    def generate(self, prompt: str, **sampling: object) -> list[NgramCompletion]:
        """Complete a prompt at once, without a server.

        Args:
            prompt: A rendered chat, or a text to continue.
            **sampling: Sampling parameters, see `Sampling`.

        Returns:
            The `n` completions.

        Raises:
            RequestError: The prompt or a parameter is invalid.

        Example:
            >>> model = NgramModel()
            >>> [completion] = model.generate("The capital of", temperature=0, max_tokens=5)
            >>> completion.tokens
            5
        """
        parsed = Sampling.parse(sampling)
        completions = []
        for generation in self.generations(self.read(prompt, parsed), parsed):
            while generation.finish_reason is None:
                generation.advance()
            completions.append(
                NgramCompletion(generation.text, generation.finish_reason, generation.tokens)
            )
        return completions

    def generations(
        self, prompt: Prompt, sampling: Sampling, default_seed: int | None = None
    ) -> list[Steps]:
        """Start the completions of a prompt.

        Args:
            prompt: The prompt, from `read`.
            sampling: The request's sampling parameters.
            default_seed: The seed of a request that names none; None: a random one.

        Returns:
            One generation per completion, each with its own random numbers.

        Raises:
            RequestError: The JSON schema of the response cannot be used.
        """
        seed = default_seed if sampling.seed is None else sampling.seed
        sources = [
            random.Random() if seed is None else random.Random(f"{seed}/{index}")
            for index in range(sampling.n)
        ]
        if sampling.response_format is None:
            return [Generation(self.ngrams, prompt, sampling, rng) for rng in sources]
        if sampling.greedy:
            sources = [random.Random(prompt.salt) for _ in sources]
        schema, question = sampling.response_format, prompt.question
        words = sorted(word.strip() for word in prompt.topic)
        values = [JsonWriter(schema, question, words, rng).write() for rng in sources]
        return [KnownText(json.dumps(value), prompt.max_tokens) for value in values]
