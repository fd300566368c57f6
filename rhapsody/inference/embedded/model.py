"""A small n-gram language model in plain Python.

It is deliberately not a real model: it strings together words in the order in which its corpus has
them, begins with the words of the prompt, and knows nothing. What it does have is the behaviour of
one towards its callers: tokens, limits, sampling, stop strings, reproducible seeds.

The corpus (`corpus.txt`, about 4,200 words) is text of this project's own about science and
computing, and a few passages of books whose copyright has ended everywhere: Newton's words on
himself and his rules of reasoning, the best known sentences of Austen, Carroll, Darwin, Dickens and
Melville, and two of Conan Doyle's.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from itertools import islice

from rhapsody.inference.embedded.choices import Choices, choices_from
from rhapsody.inference.embedded.errors import RequestError
from rhapsody.inference.embedded.sampling import DEFAULT_MAX_TOKENS, Sampling
from rhapsody.inference.embedded.tokens import (
    ORDER,
    Context,
    Token,
    last_question,
    sentences_of,
    stem,
    tokenize,
    tokens_of,
    topic_of,
)
from rhapsody.inference.embedded.writer import Writer

DEFAULT_MAX_MODEL_LEN = 2048

_STARTS = 12  # sentence openings that compete for the next sentence of an answer
_OPENINGS = (" About", " On", " As for")


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model has read it.

    Args:
        length: How many tokens it has.
        max_tokens: Most tokens that the answer may have.
        context: The tokens that the answer continues; empty where a new sentence begins.
        spaced: Whether the answer needs no space before its first word.
        opening: Tokens that the answer begins with.
        topic: The telling words of the prompt, as tokens: likelier than others, once each.
        starts: Sentences of the corpus that suit the prompt, the best first, with weights.
        salt: A number that is particular to the prompt.
    """

    length: int
    max_tokens: int
    context: Context
    spaced: bool
    opening: tuple[Token, ...]
    topic: frozenset[Token]
    starts: Choices | None
    salt: int


@dataclass(frozen=True)
class Completion:
    """One finished answer.

    Args:
        text: What was written.
        finish_reason: `stop` for an end or a stop string, `length` at `max_tokens`.
        tokens: How many tokens were written.
    """

    text: str
    finish_reason: str
    tokens: int


class NgramModel:
    """The model: counts of which token follows which, and the sentences to begin with.

    Args:
        text: What to learn from; None takes the corpus of the package.
        max_model_len: Most tokens that a prompt and its answer may have together.
    """

    def __init__(self, text: str | None = None, max_model_len: int = DEFAULT_MAX_MODEL_LEN) -> None:
        """Learn the text (milliseconds for the corpus of the package)."""
        if text is None:
            text = resources.files(__package__).joinpath("corpus.txt").read_text("utf-8")
        self.max_model_len = max_model_len
        self.sentences = sentences_of(text)
        if not self.sentences:
            raise ValueError("the text to learn from holds no sentence")
        self._followers = _count_followers(self.sentences)
        self._merged: dict[Context, Choices] = {}
        self._mentions: dict[str, list[int]] = defaultdict(list)
        for number, sentence in enumerate(self.sentences):
            for word in {stem(token) for token in sentence}:
                self._mentions[word].append(number)

    def read(self, text: str, sampling: Sampling) -> Prompt:
        """Read a prompt, and see that the answer has room.

        Args:
            text: The prompt, a rendered chat or a text to continue.
            sampling: What the request asks for.

        Returns:
            The prompt as `Writer` wants it.

        Raises:
            RequestError: The prompt is empty, or longer than the context with the answer.
        """
        if not text:
            raise RequestError("The prompt must not be empty.", "prompt")
        # One token more than fits is enough to know, however long the text is.
        tokens = list(islice(tokens_of(text), self.max_model_len + 1))
        max_tokens = self._room(len(tokens), sampling)
        salt = zlib.crc32(text.encode("utf-8", "surrogatepass"))
        question = last_question(tokens)
        words = topic_of(tokens if question is None else question)
        opening: tuple[Token, ...] = ()
        context: Context = ()
        if question is None:
            # Corpus words carry a space before them: a first word without one is the same word.
            end = "".join(tokens[-ORDER:]).strip()
            context = tuple(tokenize(" " + end))[1 - ORDER :] if end else ()
        else:
            opening = self._opening(words, salt)
        topic = frozenset(" " + word for word in words)
        starts = self._starts(words, salt)
        spaced = question is not None or text[-1].isspace()
        return Prompt(len(tokens), max_tokens, context, spaced, opening, topic, starts, salt)

    def generate(self, prompt: str, **sampling: object) -> list[Completion]:
        """Answer a prompt at once, without a server.

        Args:
            prompt: The prompt, a rendered chat or a text to continue.
            **sampling: Sampling parameters, see `Sampling`.

        Returns:
            The answers, `n` of them.

        Raises:
            RequestError: The prompt or a parameter is not acceptable.

        Example:
            >>> model = NgramModel()
            >>> [answer] = model.generate("The capital of", temperature=0, max_tokens=5)
            >>> answer.tokens
            5
        """
        parsed = Sampling.parse(sampling)
        read = self.read(prompt, parsed)
        answers = []
        for writer in self.writers(read, parsed):
            while writer.finish_reason is None:
                writer.advance()
            answers.append(Completion(writer.text, writer.finish_reason, writer.count))
        return answers

    def writers(
        self, prompt: Prompt, sampling: Sampling, default_seed: int | None = None
    ) -> list[Writer]:
        """Begin the answers to a prompt.

        Args:
            prompt: The prompt, from `read`.
            sampling: What the request asks for.
            default_seed: The seed for a request that names none; None draws one.

        Returns:
            One writer per answer, each with its own source of chance.
        """
        seed = default_seed if sampling.seed is None else sampling.seed
        return [
            Writer(
                self,
                prompt,
                sampling,
                random.Random() if seed is None else random.Random(f"{seed}/{index}"),
            )
            for index in range(sampling.n)
        ]

    def following(self, context: Context) -> Choices | None:
        """What may follow a context, from the longest part of it that the corpus knows.

        Args:
            context: The last tokens.

        Returns:
            The choices, None where not even the last token is known.
        """
        for start in range(max(0, len(context) - ORDER + 1), len(context)):
            known = context[start:]
            if known in self._followers:
                break
        else:
            return None
        # Kept by what the corpus knows, not by what was asked: the memory has a bound.
        if known not in self._merged:
            self._merged[known] = self._merge(known)
        return self._merged[known]

    def other_starts(self, turn: int) -> Choices:
        """Sentences to go on with when those that suit the prompt are used up.

        Args:
            turn: Which ones; the same turn gives the same sentences.

        Returns:
            Equally likely indices of sentences.
        """
        total = len(self.sentences)
        numbers = list(dict.fromkeys((turn + 61 * step) % total for step in range(_STARTS)))
        return Choices(numbers, [1.0] * len(numbers))

    def _merge(self, known: Context) -> Choices:
        merged: Counter[Token] = Counter()
        # A match of three tokens weighs eight times a match of two: sensible, yet not verbatim.
        for context, weight in ((known, 8), (known[-2:], 1)):
            counts = self._followers[context]
            total = sum(counts.values())
            for token, count in counts.items():
                # Whole numbers: what is equally likely stays exactly equal.
                merged[token] += 10_000 * weight * count // total + 1
        return choices_from(merged)

    def _room(self, prompt_tokens: int, sampling: Sampling) -> int:
        limit = self.max_model_len
        asked = sampling.max_tokens
        if prompt_tokens >= limit or prompt_tokens + (asked or sampling.min_tokens) > limit:
            answer = asked or max(sampling.min_tokens, 1)
            many = "more than " if prompt_tokens > limit else ""
            counted = min(prompt_tokens, limit)
            raise RequestError(
                f"This model's maximum context length is {limit} tokens. However, you requested "
                f"{many}{counted + answer} tokens ({many}{counted} in the prompt, {answer} in the "
                "completion). Please shorten the prompt or the completion.",
                "prompt" if prompt_tokens >= limit else "max_tokens",
            )
        default = max(DEFAULT_MAX_TOKENS, sampling.min_tokens)
        return asked or min(default, limit - prompt_tokens)

    def _opening(self, words: list[str], salt: int) -> tuple[Token, ...]:
        if not words:
            return ()
        tokens = [_OPENINGS[salt % len(_OPENINGS)]]
        for position, word in enumerate(words):
            if position:
                tokens.append(" and" if position == len(words) - 1 else ",")
            tokens.append(" " + word)
        return (*tokens, ":")

    def _starts(self, words: list[str], salt: int) -> Choices | None:
        scores: Counter[int] = Counter()
        for word in words:
            numbers = self._mentions.get(stem(word), [])
            for number in numbers:
                # The fewer sentences mention a word, the more it says.
                scores[number] += 10_000 // len(numbers)
        if not scores:
            return None
        total = len(self.sentences)
        best = sorted(scores.items(), key=lambda item: (-item[1], (item[0] + salt) % total))
        best = best[:_STARTS]
        return Choices([number for number, _ in best], [score + 1.0 for _, score in best])


def _count_followers(sentences: Iterable[list[Token]]) -> dict[Context, Counter[Token]]:
    followers: dict[Context, Counter[Token]] = defaultdict(Counter)
    for sentence in sentences:
        for length in range(1, ORDER):
            for start in range(len(sentence) - length):
                context = tuple(sentence[start : start + length])
                followers[context][sentence[start + length]] += 1
    return dict(followers)
