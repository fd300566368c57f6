"""Tokens: splitting a text, and finding the question and the topic of a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from rhapsody.inference.embedded.chat import ASSISTANT, END, USER

Token = str
Context = tuple[Token, ...]

# The next token depends on the three before it.
ORDER = 4

SENTENCE_ENDS = frozenset({".", "!", "?"})
_TOPIC_WORDS = 4

# Every character belongs to exactly one token: the tokens joined give the text. The length of a
# token is bounded, so that the number of tokens reflects the size of any text.
_TOKEN = re.compile(
    r"<\|[a-z]{1,16}\|>"  # marks of the chat template
    r"| ?\d{1,16}(?:\.\d{1,16})?"
    r"| ?[^\W\d]\w{0,31}(?:['\u2019]\w{1,8})?"
    r"| ?[^\w\s]"
    r"|\s{1,16}(?!\S)"
    r"|\s"
)
# Words that do not describe the topic of a prompt.
_COMMON_WORDS = """
    a about after again all also am an and any are as at be because been before being but by can
    could describe did do does each every explain few for from give had has have he her here him
    his how i if in into is it its just let like list make many me more most much must my name no
    not now of on one only or other our out over please same say she should show so some such tell
    than that the their them then there these they this those to too up us very was we were what
    when where which who why will with would write yes you your answer question sentence
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def tokenize(text: str) -> list[Token]:
    """Split a text into tokens; joined, they give the text.

    Args:
        text: Any text.
    """
    return _TOKEN.findall(text)


def iterate_tokens(text: str) -> Iterator[Token]:
    """Split a text into tokens lazily.

    Args:
        text: Any text.

    Yields:
        The tokens in order.
    """
    for match in _TOKEN.finditer(text):
        yield match.group()


def sentences_of(text: str) -> list[list[Token]]:
    """Split a text into sentences.

    Args:
        text: Prose; line breaks do not matter.

    Returns:
        The tokens of each sentence, its end mark last; every word starts with its space.
    """
    sentences: list[list[Token]] = []
    current: list[Token] = []
    for token in tokenize("".join(f" {word}" for word in text.split())):
        current.append(token)
        if token in SENTENCE_ENDS:
            sentences.append(current)
            current = []
    if current:
        sentences.append([*current, "."])
    return sentences


def stem(token: Token) -> str:
    """Return a word in lower case, without spaces and the s of a plural.

    Args:
        token: A token or a word.
    """
    word = token.strip().casefold()
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


def is_common(word: str) -> bool:
    """Return whether a word, in lower case, says little about what a text is about."""
    return word in _COMMON


def last_question(tokens: list[Token]) -> list[Token] | None:
    """Return the last user message of a prompt.

    Args:
        tokens: A whole prompt.

    Returns:
        The message's tokens; None if the prompt is not a chat but a text to continue.
    """
    if ASSISTANT not in tokens[-2:]:
        return None
    if USER not in tokens:
        return []
    start = len(tokens) - tokens[::-1].index(USER)
    length = tokens[start:].index(END) if END in tokens[start:] else None
    return tokens[start:][:length]


def topic_of(tokens: list[Token]) -> list[str]:
    """Return the words that describe what a prompt is about.

    Args:
        tokens: A message or a text.

    Returns:
        The last few uncommon words, each once, in order.
    """
    words = (token.strip() for token in tokens)
    uncommon = [word for word in words if word[:1].isalnum() and word.casefold() not in _COMMON]
    distinct = dict.fromkeys(reversed(uncommon))
    return list(islice(distinct, _TOPIC_WORDS))[::-1]
