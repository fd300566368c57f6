"""A prompt as the embedded model reads it: its tokens, its topic, and the room for a completion."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import islice

from rhapsody.inference.embedded.candidates import Candidates
from rhapsody.inference.embedded.chat import ASSISTANT, END, IMAGE, TOOL, USER
from rhapsody.inference.embedded.ngrams import Ngrams
from rhapsody.inference.embedded.sampling import DEFAULT_MAX_TOKENS, Sampling
from rhapsody.inference.embedded.tokens import (
    ORDER,
    Context,
    Token,
    iterate_tokens,
    last_question,
    tokenize,
    topic_of,
)
from rhapsody.inference.protocol.errors import RequestError

__all__ = ["Prompt"]

_OPENINGS = (" About", " On", " As for")
_QUESTION = 200
"""Tokens at the end of a text that count as the question."""
_LONGEST_RESULT = 400
"""Characters of the results of tools that are repeated."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model has read it.

    Args:
        length: Its number of tokens.
        max_tokens: Maximum number of tokens of a completion.
        context: The tokens that a completion continues; empty if it begins a new sentence.
        spaced: Whether the first word of a completion needs no space before it.
        opening: The first tokens of every completion.
        topic: The prompt's topic words, as tokens; a completion prefers each of them once.
        starts: Indices of sentences about the topic, best first.
        salt: A number that depends on the prompt's text only.
        question: The last message of a user, or the end of a text to continue.
    """

    length: int
    max_tokens: int
    context: Context
    spaced: bool
    opening: tuple[Token, ...]
    topic: frozenset[Token]
    starts: Candidates | None
    salt: int
    question: str = ""

    @classmethod
    def read(cls, text: str, sampling: Sampling, ngrams: Ngrams, max_model_len: int) -> Prompt:
        """Read a prompt and check that a completion fits after it.

        Args:
            text: A rendered chat, or a text to continue.
            sampling: The request's sampling parameters.
            ngrams: The n-grams of the model.
            max_model_len: Maximum number of tokens of the prompt and a completion together.

        Raises:
            RequestError: The prompt is empty, or too long together with the completion.
        """
        if not text:
            raise RequestError("The prompt must not be empty.", "prompt")
        # Reading stops one token after the limit, however long the text is.
        tokens = list(islice(iterate_tokens(text), max_model_len + 1))
        max_tokens = _room(len(tokens), sampling, max_model_len)
        salt = zlib.crc32(text.encode("utf-8", "surrogatepass"))
        question = last_question(tokens)
        images: list[str] = []
        if question is not None:
            images, question = _without_images(question)
        words = topic_of(tokens if question is None else question)
        opening: tuple[Token, ...] = ()
        context: Context = ()
        if question is None:
            # Tokens of the corpus carry a space before them: the first word gets one to match.
            end = "".join(tokens[-ORDER:]).strip()
            context = tuple(tokenize(" " + end))[1 - ORDER :] if end else ()
        else:
            opening = _results(tokens) or (*_images(images), *_opening(words, salt))
        return cls(
            length=len(tokens),
            max_tokens=max_tokens,
            context=context,
            spaced=question is not None or text[-1].isspace(),
            opening=opening,
            topic=frozenset(" " + word for word in words),
            starts=ngrams.sentences_about(words, salt),
            salt=salt,
            question="".join(tokens[-_QUESTION:] if question is None else question),
        )


def _room(prompt_tokens: int, sampling: Sampling, limit: int) -> int:
    asked = sampling.max_tokens
    if prompt_tokens >= limit or prompt_tokens + (asked or sampling.min_tokens) > limit:
        completion = asked or max(sampling.min_tokens, 1)
        many = "more than " if prompt_tokens > limit else ""
        counted = min(prompt_tokens, limit)
        # OpenAI's words, which some clients match on.
        raise RequestError(
            f"This model's maximum context length is {limit} tokens. However, you requested "
            f"{many}{counted + completion} tokens ({many}{counted} in the prompt, {completion} in "
            "the completion). Please shorten the prompt or the completion.",
            "prompt" if prompt_tokens >= limit else "max_tokens",
        )
    default = max(DEFAULT_MAX_TOKENS, sampling.min_tokens)
    if sampling.response_format is not None:  # JSON that is cut would be of no use
        default = limit
    return asked or min(default, limit - prompt_tokens)


def _results(tokens: list[Token]) -> tuple[Token, ...]:
    """Return a sentence with the results of tools, if the prompt ends with some."""
    results: list[str] = []
    end = len(tokens)
    while TOOL in tokens[:end]:
        start = end - 1 - tokens[:end][::-1].index(TOOL)
        if USER in tokens[start:end] or (results and ASSISTANT in tokens[start + 1 : end]):
            break
        text = tokens[start + 1 : end]
        results.append("".join(text[: text.index(END) if END in text else None]).strip())
        end = start
    if not results:
        return ()
    said = "; ".join(reversed(results))[:_LONGEST_RESULT]
    return tuple(tokenize(f" The tools returned: {said}."))


def _without_images(question: list[Token]) -> tuple[list[str], list[Token]]:
    """Return the descriptions of a question's images, and its other tokens."""
    images: list[str] = []
    rest: list[Token] = []
    while IMAGE in question:
        start = question.index(IMAGE)
        rest += question[:start]
        inside, question = question[start + 1 :], []
        if IMAGE in inside:
            end = inside.index(IMAGE)
            inside, question = inside[:end], inside[end + 1 :]
        images.append("".join(inside))
    return images, rest + question


def _images(images: list[str]) -> tuple[Token, ...]:
    if not images:
        return ()
    said = "; ".join(images)[:_LONGEST_RESULT]
    noun = "The image is" if len(images) == 1 else "The images are"
    return tuple(tokenize(f" {noun} {said}."))


def _opening(words: list[str], salt: int) -> tuple[Token, ...]:
    if not words:
        return ()
    tokens = [_OPENINGS[salt % len(_OPENINGS)]]
    for position, word in enumerate(words):
        if position:
            tokens.append(" and" if position == len(words) - 1 else ",")
        tokens.append(" " + word)
    return (*tokens, ":")
