"""A generation: one completion of a prompt while it is written, token by token."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from rhapsody.inference.embedded.candidates import Candidates
from rhapsody.inference.embedded.ngrams import Ngrams
from rhapsody.inference.embedded.prompt import Prompt
from rhapsody.inference.embedded.sampling import Sampling
from rhapsody.inference.embedded.tokens import ORDER, SENTENCE_ENDS, Token

__all__ = ["Generation", "Steps"]

_LONGEST_SENTENCE = 60


class Steps(Protocol):
    """What the scheduler does step by step: a completion, or the numbers of a text."""

    text: str
    tokens: int
    finish_reason: str | None

    def advance(self) -> str:
        """Do the next step, and return the new text that can be shown."""


class Generation:
    """One completion while it is written: its tokens, and the text that may be shown so far.

    Args:
        ngrams: The n-grams of the model.
        prompt: The prompt.
        sampling: The request's sampling parameters.
        rng: Random numbers for this completion only.
    """

    __slots__ = (
        "_context",
        "_forced",
        "_length",
        "_ngrams",
        "_opening",
        "_position",
        "_prompt",
        "_rng",
        "_sampling",
        "_sentences_left",
        "_shown",
        "_starts",
        "_stop_from",
        "_topic",
        "_used",
        "finish_reason",
        "text",
        "tokens",
    )

    def __init__(
        self, ngrams: Ngrams, prompt: Prompt, sampling: Sampling, rng: random.Random
    ) -> None:
        self._ngrams = ngrams
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
        self._stop_from = 0
        chance = 0 if sampling.greedy else rng.randrange(3)
        self._position = prompt.salt
        self._sentences_left = 1 + (prompt.salt + chance) % 3
        self.text = ""
        self.tokens = 0
        self.finish_reason: str | None = None

    def advance(self) -> str:
        """Write one more token, or finish.

        Returns:
            The text that can be shown since the last call. It may be empty, since a possible
            beginning of a stop string is held back.
        """
        token = self._next()
        if token is None:
            return self._finish("stop")
        self.tokens += 1
        self._position += 1
        self.text += token if self.text or not self._prompt.spaced else token.lstrip(" ")
        if self._sampling.stop:
            if self.tokens <= self._sampling.min_tokens:
                self._stop_from = len(self.text)
            elif self._cut():
                return self._finish("stop")
        if self.tokens >= self._prompt.max_tokens:
            return self._finish("length")
        return self._show(self._held_back())

    def _next(self) -> Token | None:
        if self._opening:
            return self._opening.popleft()
        if self._forced:
            return self._keep(self._forced.popleft())
        candidates = None
        ended = self._context and self._context[-1] in SENTENCE_ENDS
        if self._context and not ended and self._length < _LONGEST_SENTENCE:
            candidates = self._ngrams.following(self._context)
            if candidates is None and self.tokens and self._length > 1:
                return self._keep(".")
        elif self._length >= _LONGEST_SENTENCE and not ended:
            return self._keep(".")
        if candidates is not None:
            return self._keep(self._pick(candidates))
        if self.tokens and ended:
            self._sentences_left -= 1
            may_end = not self._sampling.ignore_eos and self.tokens >= self._sampling.min_tokens
            if may_end and self._sentences_left <= 0:
                return None
        self._forced.extend(self._next_sentence())
        self._context = ()
        self._length = 0
        return self._keep(self._forced.popleft())

    def _pick(self, candidates: Candidates) -> Token:
        options = candidates.options
        if len(options) > 1 and self._topic:
            for option in options:
                if option in self._topic:
                    self._topic.remove(str(option))
                    return str(option)
        return str(options[candidates.pick(self._sampling, self._rng, self._position)])

    def _keep(self, token: Token) -> Token:
        self._context = (*self._context[2 - ORDER :], token)
        self._length += 1
        return token

    def _next_sentence(self) -> Iterable[Token]:
        """Return the first tokens of the next sentence; the n-grams continue it."""
        numbers: list[int] = []
        weights: list[float] = []
        for candidates in (self._starts, self._ngrams.other_sentences(self._position)):
            if candidates is not None:
                for number, weight in zip(candidates.options, candidates.weights, strict=True):
                    if number not in self._used:
                        numbers.append(int(number))
                        weights.append(weight)
            if numbers:
                break
        if not numbers:
            # All candidates are used up: a completion this long may repeat itself.
            self._used.clear()
            numbers = [self._position % len(self._ngrams.sentences)]
            weights = [1.0]
        picked = Candidates(numbers, weights).pick(self._sampling, self._rng, self._position)
        self._used.add(numbers[picked])
        return self._ngrams.sentences[numbers[picked]][: ORDER - 1]

    def _cut(self) -> bool:
        """Cut the text before its first stop string; return whether there was one."""
        found = [
            at
            for stop in self._sampling.stop
            if (at := self.text.find(stop, max(self._stop_from, self._shown))) >= 0
        ]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)

    def _held_back(self) -> int:
        """Return how many of the last characters may begin a stop string."""
        if not self._sampling.stop:
            return 0
        tail = self.text[max(self._stop_from, self._shown) :]
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
