"""One answer in the making."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rhapsody.inference.embedded.choices import Choices
from rhapsody.inference.embedded.sampling import Sampling
from rhapsody.inference.embedded.tokens import ORDER, SENTENCE_ENDS, Token

if TYPE_CHECKING:
    from rhapsody.inference.embedded.model import NgramModel, Prompt

_LONGEST_SENTENCE = 60


class Writer:
    """One answer in the making: a token at a time, and the text that may be shown so far.

    Args:
        model: The model.
        prompt: What is answered.
        sampling: How.
        rng: Source of chance of this answer alone.
    """

    __slots__ = (
        "_context",
        "_forced",
        "_length",
        "_model",
        "_opening",
        "_position",
        "_prompt",
        "_rng",
        "_sampling",
        "_sentences_left",
        "_shown",
        "_starts",
        "_topic",
        "_used",
        "_watched_from",
        "count",
        "finish_reason",
        "text",
    )

    def __init__(
        self, model: NgramModel, prompt: Prompt, sampling: Sampling, rng: random.Random
    ) -> None:
        """Nothing is written before the first `advance`."""
        self._model = model
        self._prompt = prompt
        self._sampling = sampling
        self._rng = rng
        self._context = prompt.context
        self._opening = deque(prompt.opening)
        self._forced: deque[Token] = deque()
        self._starts = prompt.starts
        self._topic = set(prompt.topic)
        self._used: set[int] = set()
        self._length = 0
        self._shown = 0
        self._watched_from = 0
        chance = 0 if sampling.greedy else rng.randrange(3)
        self._position = prompt.salt
        self._sentences_left = 1 + (prompt.salt + chance) % 3
        self.text = ""
        self.count = 0
        self.finish_reason: str | None = None

    def advance(self) -> str:
        """Write one more token, or end.

        Returns:
            The text that can be shown since the last call: possibly none, since what may be the
            beginning of a stop string is held back.
        """
        token = self._next()
        if token is None:
            return self._finish("stop")
        self.count += 1
        self._position += 1
        self.text += token if self.text or not self._prompt.spaced else token.lstrip(" ")
        if self._sampling.stop:
            if self.count <= self._sampling.min_tokens:
                self._watched_from = len(self.text)
            elif self._cut():
                return self._finish("stop")
        if self.count >= self._prompt.max_tokens:
            return self._finish("length")
        return self._show(self._held_back())

    def _next(self) -> Token | None:
        if self._opening:
            return self._opening.popleft()
        if self._forced:
            return self._keep(self._forced.popleft())
        choices = None
        ended = self._context and self._context[-1] in SENTENCE_ENDS
        if self._context and not ended and self._length < _LONGEST_SENTENCE:
            choices = self._model.following(self._context)
            if choices is None and self.count and self._length > 1:
                return self._keep(".")
        elif self._length >= _LONGEST_SENTENCE and not ended:
            return self._keep(".")
        if choices is not None:
            return self._keep(self._pick(choices))
        if self.count and ended:
            self._sentences_left -= 1
            may_end = not self._sampling.ignore_eos and self.count >= self._sampling.min_tokens
            if may_end and self._sentences_left <= 0:
                return None
        self._forced.extend(self._next_sentence())
        self._context = ()
        self._length = 0
        return self._keep(self._forced.popleft())

    def _pick(self, choices: Choices) -> Token:
        options = choices.options
        if len(options) > 1 and self._topic:
            for option in options:
                if option in self._topic:
                    self._topic.remove(str(option))
                    return str(option)
        return str(options[choices.pick(self._sampling, self._rng, self._position)])

    def _keep(self, token: Token) -> Token:
        self._context = (*self._context[2 - ORDER :], token)
        self._length += 1
        return token

    def _next_sentence(self) -> Iterable[Token]:
        """The first words of the sentence to go on with; the n-grams take it from there."""
        numbers: list[int] = []
        weights: list[float] = []
        for choices in (self._starts, self._model.other_starts(self._position)):
            if choices is not None:
                for number, weight in zip(choices.options, choices.weights, strict=True):
                    if number not in self._used:
                        numbers.append(int(number))
                        weights.append(weight)
            if numbers:
                break
        if not numbers:
            # Everything near has been said: an answer this long may repeat itself.
            self._used.clear()
            numbers = [self._position % len(self._model.sentences)]
            weights = [1.0]
        picked = Choices(numbers, weights).pick(self._sampling, self._rng, self._position)
        self._used.add(numbers[picked])
        return self._model.sentences[numbers[picked]][: ORDER - 1]

    def _cut(self) -> bool:
        """Cut the text before the first stop string in it, if there is one."""
        found = [
            at
            for stop in self._sampling.stop
            if (at := self.text.find(stop, max(self._watched_from, self._shown))) >= 0
        ]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)

    def _held_back(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        if not self._sampling.stop:
            return 0
        tail = self.text[max(self._watched_from, self._shown) :]
        longest = 0
        for stop in self._sampling.stop:
            for size in range(min(len(stop) - 1, len(tail)), longest, -1):
                if tail.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _show(self, held_back: int) -> str:
        end = len(self.text) - held_back
        shown = self.text[self._shown : end]
        self._shown = max(end, self._shown)
        return shown

    def _finish(self, reason: str) -> str:
        self.finish_reason = reason
        return self._show(0)
