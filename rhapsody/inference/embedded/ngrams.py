"""N-grams of a text: which tokens follow which, and which sentences mention a word."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from rhapsody.inference.embedded.candidates import Candidates
from rhapsody.inference.embedded.tokens import ORDER, Context, Token, sentences_of, stem

__all__ = ["Ngrams"]

_STARTS = 12  # candidates for the next sentence of a completion


class Ngrams:
    """Token counts and sentences of a text.

    Args:
        text: The text to learn.

    Raises:
        ValueError: The text holds no sentence.
    """

    def __init__(self, text: str) -> None:
        self.sentences = sentences_of(text)
        if not self.sentences:
            raise ValueError("the text to learn from holds no sentence")
        self._followers = _count_followers(self.sentences)
        self._merged: dict[Context, Candidates] = {}
        self._mentions: dict[str, list[int]] = defaultdict(list)
        for number, sentence in enumerate(self.sentences):
            for word in {stem(token) for token in sentence}:
                self._mentions[word].append(number)

    def following(self, context: Context) -> Candidates | None:
        """Return the tokens that may follow a context.

        Args:
            context: The last tokens.

        Returns:
            The followers of the longest known end of the context; None if not even its last token
            is known.
        """
        for start in range(max(0, len(context) - ORDER + 1), len(context)):
            known = context[start:]
            if known in self._followers:
                break
        else:
            return None
        # Cached by the known n-gram, not by the context: the n-grams bound the cache.
        if known not in self._merged:
            self._merged[known] = self._merge(known)
        return self._merged[known]

    def sentences_about(self, words: Iterable[str], salt: int) -> Candidates | None:
        """Return the sentences that mention some words.

        Args:
            words: The words.
            salt: Decides between sentences of equal score.

        Returns:
            Indices of sentences, best first; None if no sentence mentions any of the words.
        """
        scores: Counter[int] = Counter()
        for word in words:
            numbers = self._mentions.get(stem(word), [])
            for number in numbers:
                # A rare word says more about a sentence than a frequent one.
                scores[number] += 10_000 // len(numbers)
        if not scores:
            return None
        total = len(self.sentences)
        best = sorted(scores.items(), key=lambda item: (-item[1], (item[0] + salt) % total))
        best = best[:_STARTS]
        return Candidates([number for number, _ in best], [score + 1.0 for _, score in best])

    def other_sentences(self, turn: int) -> Candidates:
        """Return equally likely sentences to continue with when none about the prompt is left.

        Args:
            turn: Selects the sentences; the same turn gives the same ones.

        Returns:
            Indices of sentences.
        """
        total = len(self.sentences)
        numbers = list(dict.fromkeys((turn + 61 * step) % total for step in range(_STARTS)))
        return Candidates(numbers, [1.0] * len(numbers))

    def _merge(self, known: Context) -> Candidates:
        merged: Counter[Token] = Counter()
        # A match of three tokens weighs eight times a match of two: sensible, yet not verbatim.
        for context, weight in ((known, 8), (known[-2:], 1)):
            counts = self._followers[context]
            total = sum(counts.values())
            for token, count in counts.items():
                # Integers keep equally likely tokens exactly equal.
                merged[token] += 10_000 * weight * count // total + 1
        return Candidates.from_counts(merged)


def _count_followers(sentences: Iterable[list[Token]]) -> dict[Context, Counter[Token]]:
    followers: dict[Context, Counter[Token]] = defaultdict(Counter)
    for sentence in sentences:
        for length in range(1, ORDER):
            for start in range(len(sentence) - length):
                context = tuple(sentence[start : start + length])
                followers[context][sentence[start + length]] += 1
    return dict(followers)
