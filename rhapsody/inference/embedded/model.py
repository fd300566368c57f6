"""A small n-gram language model in plain Python.

It is deliberately not a real model: it strings together words in the order in which its corpus has
them, begins with the words of the prompt, and knows nothing. What it does have is the behaviour of
one towards its callers: tokens, limits, sampling, stop strings, reproducible seeds.

The corpus (`corpus.txt`, about 4,200 words) is text of this project's own about science and
computing, and a few passages of books whose copyright has ended everywhere: Newton's words on
himself and his rules of reasoning, Austen's, Dickens', Melville's, Carroll's and Darwin's best known
sentences, and two of Conan Doyle's.
"""

from __future__ import annotations

import random
import re
import zlib
from bisect import bisect
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import accumulate, islice

from rhapsody.inference.embedded.chat import ASSISTANT, END, USER
from rhapsody.inference.embedded.errors import RequestError
from rhapsody.inference.embedded.sampling import DEFAULT_MAX_TOKENS, Sampling

DEFAULT_MAX_MODEL_LEN = 2048
ORDER = 4

# Every character belongs to exactly one token, so that the tokens joined are the text again.
# Lengths are bounded: the number of tokens then says something about the size of any text.
_TOKEN = re.compile(
    r"<\|[a-z]{1,16}\|>"  # marks of the chat template
    r"| ?\d{1,16}(?:\.\d{1,16})?"
    r"| ?[^\W\d]\w{0,31}(?:['\u2019]\w{1,8})?"
    r"| ?[^\w\s]"
    r"|\s{1,16}(?!\S)"
    r"|\s"
)
_SENTENCE_ENDS = frozenset({".", "!", "?"})
_LONGEST_SENTENCE = 60
_STARTS = 12  # sentence openings that compete for the next sentence of an answer
_OPENINGS = (" About", " On", " As for")
_TOPIC_WORDS = 4

# Words that say nothing about what a prompt is about.
_COMMON = frozenset(
    "a about after again all also am an and any are as at be because been before being but by can "
    "could describe did do does each every explain few for from give had has have he her here him "
    "his how i if in into is it its just let like list make many me more most much must my name no "
    "not now of on one only or other our out over please same say she should show so some such tell "
    "than that the their them then there these they this those to too up us very was we were what "
    "when where which who why will with would write yes you your answer question sentence".split()
)

Token = str
Context = tuple[Token, ...]


@dataclass(frozen=True)
class Choices:
    """What may come next, the likeliest first.

    Args:
        options: The tokens (or indices of sentences) to choose from.
        weights: Their weights, none of them zero, in descending order.
    """

    options: Sequence[Token] | Sequence[int]
    weights: Sequence[float]

    @cached_property
    def cumulative(self) -> list[float]:
        """Running sums of the weights."""
        return list(accumulate(self.weights))

    @cached_property
    def ties(self) -> int:
        """How many share the first place."""
        return sum(1 for weight in self.weights if weight == self.weights[0])

    def pick(self, sampling: Sampling, rng: random.Random, turn: int) -> int:
        """Choose one.

        Args:
            sampling: Temperature, top_p and top_k.
            rng: Source of chance; not asked when greedy.
            turn: Decides between equals without chance.

        Returns:
            The position of the chosen one.
        """
        if len(self.weights) == 1:
            return 0
        if sampling.greedy:
            return _spread(turn) % self.ties
        if sampling.temperature == 1 and sampling.top_p == 1 and not sampling.top_k:
            cumulative = self.cumulative
        else:
            cumulative = self._shaped(sampling)
            if len(cumulative) == 1:
                return _spread(turn) % self.ties
        return bisect(cumulative, rng.random() * cumulative[-1], 0, len(cumulative) - 1)

    def _shaped(self, sampling: Sampling) -> list[float]:
        first = self.weights[0]
        power = 1 / sampling.temperature
        weights = [(weight / first) ** power for weight in self.weights[: sampling.top_k or None]]
        cumulative = list(accumulate(weights))
        if sampling.top_p < 1:
            kept = bisect(cumulative, sampling.top_p * cumulative[-1], 0, len(cumulative) - 1)
            del cumulative[kept + 1 :]
        return cumulative


def _spread(turn: int) -> int:
    # Knuth's multiplicative hash: consecutive turns in one phrase do not fall into its rhythm.
    return (turn * 2_654_435_761 & 0xFFFFFFFF) >> 12


def _choices(counts: Counter[Token]) -> Choices:
    ranked = counts.most_common()
    return Choices([token for token, _ in ranked], [float(count) for _, count in ranked])


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model has read it.

    Args:
        tokens: Its tokens.
        max_tokens: Most tokens that the answer may have.
        context: The tokens that the answer continues; empty where a new sentence begins.
        opening: Tokens that the answer begins with.
        topic: The telling words of the prompt, as tokens: likelier than others, once each.
        starts: Sentences of the corpus that suit the prompt, the best first, with weights.
        salt: A number that is particular to the prompt.
    """

    tokens: list[Token]
    max_tokens: int
    context: Context
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

    def __init__(
        self, text: str | None = None, max_model_len: int = DEFAULT_MAX_MODEL_LEN
    ) -> None:
        """Learn the text (milliseconds for the corpus of the package)."""
        if text is None:
            text = resources.files(__package__).joinpath("corpus.txt").read_text("utf-8")
        self.max_model_len = max_model_len
        self.sentences = _sentences(text)
        if not self.sentences:
            raise ValueError("the text to learn from holds no sentence")
        self._followers = _count_followers(self.sentences)
        self._merged: dict[Context, Choices | None] = {}
        self._mentions: dict[str, list[int]] = defaultdict(list)
        for number, sentence in enumerate(self.sentences):
            for word in {_stem(token) for token in sentence}:
                self._mentions[word].append(number)

    def tokenize(self, text: str) -> list[Token]:
        """Split a text into tokens.

        Args:
            text: Any text.

        Returns:
            The tokens; joined they are the text again.
        """
        return _TOKEN.findall(text)

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
        matches = islice(_TOKEN.finditer(text), self.max_model_len + 1)
        tokens = [match.group() for match in matches]
        max_tokens = self._room(len(tokens), sampling)
        salt = zlib.crc32(text.encode("utf-8", "surrogatepass"))
        question = _last_question(tokens)
        words = _topic(tokens if question is None else question)
        opening: tuple[Token, ...] = ()
        context: Context = ()
        if question is None:
            # Corpus words carry a space before them: a first word without one is the same word.
            context = tuple(_TOKEN.findall(" " + "".join(tokens[-ORDER:]).lstrip()))[1 - ORDER :]
        else:
            opening = self._opening(words, salt)
        topic = frozenset(" " + word for word in words)
        starts = self._starts(words, salt)
        return Prompt(tokens, max_tokens, context, opening, topic, starts, salt)

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
        context = context[1 - ORDER :]
        try:
            return self._merged[context]
        except KeyError:
            pass
        merged: Counter[Token] = Counter()
        # A match of three tokens counts eight times a match of two: sensible, yet not verbatim.
        for length, weight in ((3, 8), (2, 1)):
            if len(context) >= length and (counts := self._followers.get(context[-length:])):
                total = sum(counts.values())
                for token, count in counts.items():
                    # Whole numbers: what is equally likely stays exactly equal.
                    merged[token] += 10_000 * weight * count // total + 1
        if not merged and context:
            merged = self._followers.get(context[-1:], merged)
        choices = _choices(merged) if merged else None
        # Only contexts made of known words recur; others would fill the memory for nothing.
        if choices is not None:
            self._merged[context] = choices
        return choices

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
            numbers = self._mentions.get(_stem(word), [])
            for number in numbers:
                # The fewer sentences mention a word, the more it says.
                scores[number] += 10_000 // len(numbers)
        if not scores:
            return None
        total = len(self.sentences)
        best = sorted(scores.items(), key=lambda item: (-item[1], (item[0] + salt) % total))
        best = best[:_STARTS]
        return Choices([number for number, _ in best], [score + 1.0 for _, score in best])


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
        # A chat answer begins with a word, a continuation with what stands between the words.
        self.text += token if self.text or self._prompt.context else token.lstrip(" ")
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
        ended = self._context and self._context[-1] in _SENTENCE_ENDS
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
        numbers, weights = [], []
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


def _sentences(text: str) -> list[list[Token]]:
    sentences: list[list[Token]] = []
    current: list[Token] = []
    for token in _TOKEN.findall(" " + " ".join(text.split())):
        current.append(token)
        if token in _SENTENCE_ENDS:
            sentences.append(current)
            current = []
    if current:
        sentences.append([*current, "."])
    return sentences


def _count_followers(sentences: Iterable[list[Token]]) -> dict[Context, Counter[Token]]:
    followers: dict[Context, Counter[Token]] = defaultdict(Counter)
    for sentence in sentences:
        for length in range(1, ORDER):
            for start in range(len(sentence) - length):
                context = tuple(sentence[start : start + length])
                followers[context][sentence[start + length]] += 1
    return dict(followers)


def _stem(token: Token) -> str:
    word = token.strip().casefold()
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


def _last_question(tokens: list[Token]) -> list[Token] | None:
    """The last user message of a rendered chat, None for a text to continue."""
    if ASSISTANT not in tokens[-2:]:
        return None
    if USER not in tokens:
        return []
    start = len(tokens) - tokens[::-1].index(USER)
    length = tokens[start:].index(END) if END in tokens[start:] else None
    return tokens[start:][:length]


def _topic(tokens: list[Token]) -> list[str]:
    """The last few words that say what a prompt is about, each once, in their order."""
    words = (token.strip() for token in tokens)
    telling = [word for word in words if word[:1].isalnum() and word.casefold() not in _COMMON]
    distinct = dict.fromkeys(reversed(telling))
    return list(islice(distinct, _TOPIC_WORDS))[::-1]
