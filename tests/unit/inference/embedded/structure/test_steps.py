"""Known texts, written token by token."""

from rhapsody.inference.embedded.structure.steps import KnownText


def test_pieces_join_to_the_text() -> None:
    known = KnownText('{"a": "one two"}', 100)
    pieces = []
    while known.finish_reason is None:
        pieces.append(known.advance())
    assert "".join(pieces) == known.text == '{"a": "one two"}'
    assert (known.finish_reason, known.tokens) == ("stop", len(pieces))


def test_text_is_cut_at_max_tokens() -> None:
    known = KnownText("one two three", 2)
    known.advance()
    known.advance()
    assert (known.text, known.finish_reason) == ("one two", "length")


def test_empty_text_ends_at_once() -> None:
    known = KnownText("", 5)
    assert (known.advance(), known.finish_reason) == ("", "stop")
