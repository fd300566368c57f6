"""The n-gram model: texts, seeds, limits, stop strings."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody.inference.embedded import NgramModel, RequestError, Sampling
from rhapsody.inference.embedded.chat import render_prompt
from rhapsody.inference.embedded.generation import Steps
from rhapsody.inference.embedded.tokens import tokenize

MODEL = NgramModel()
QUESTION = render_prompt("What does a simulation of water at 300 K tell us?")
ANY_TEXT = st.text(st.characters(exclude_categories=()), min_size=1, max_size=200)


def text(prompt: str = QUESTION, **sampling: Any) -> str:
    [completion] = MODEL.generate(prompt, **sampling)
    return completion.text


def pieces(prompt: str, **sampling: Any) -> tuple[list[str], Steps]:
    """Return the pieces in which a completion is streamed."""
    parsed = Sampling.parse(sampling)
    [generation] = MODEL.generations(MODEL.read(prompt, parsed), parsed)
    found = []
    while generation.finish_reason is None:
        found.append(generation.advance())
    return found, generation


def test_model_starts_within_half_a_second() -> None:
    start = time.process_time()
    NgramModel()
    assert time.process_time() - start < 0.5


def test_completion_mentions_the_topic() -> None:
    completion = text(render_prompt("What is the capital of France?"), temperature=0)
    assert "France" in completion
    assert completion.endswith(".")
    assert not completion.startswith(" ")


def test_greedy_sampling_is_deterministic() -> None:
    assert text(temperature=0) == text(temperature=0)


def test_seeded_text_is_equal_across_models() -> None:
    [completion] = NgramModel().generate(QUESTION, temperature=0.9, seed=5)
    assert completion.text == text(temperature=0.9, seed=5)


def test_greedy_texts_of_different_prompts_differ() -> None:
    texts = {text(render_prompt(f"Summarise run {i}."), temperature=0) for i in range(50)}
    assert len(texts) == 50


def test_same_seed_gives_same_text() -> None:
    assert text(seed=11) == text(seed=11)


def test_different_seeds_give_different_texts() -> None:
    assert len({text(seed=seed, max_tokens=40) for seed in range(20)}) > 10


def test_texts_without_seed_differ() -> None:
    assert len({text(max_tokens=40, temperature=1.5) for _ in range(20)}) > 1


def test_n_completions_differ_and_seed_repeats_them() -> None:
    first = [completion.text for completion in MODEL.generate(QUESTION, n=8, seed=3)]
    second = [completion.text for completion in MODEL.generate(QUESTION, n=8, seed=3)]
    assert first == second
    assert len(set(first)) > 4


def test_seeded_text_is_independent_of_concurrent_generations() -> None:
    parsed = Sampling.parse({"seed": 4, "ignore_eos": True})
    one, other = (MODEL.generations(MODEL.read(QUESTION, parsed), parsed)[0] for _ in range(2))
    noise = MODEL.generations(MODEL.read("Once upon", Sampling()), Sampling(ignore_eos=True))[0]
    while one.finish_reason is None:
        one.advance()
    while other.finish_reason is None:
        if noise.finish_reason is None:
            noise.advance()
        other.advance()
    assert one.text == other.text


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-9}])
def test_sampling_with_one_candidate_is_greedy(sampling: Any) -> None:
    prompt = "The sum of 2 and 2 is"
    assert text(prompt, max_tokens=2, seed=1, **sampling) == " 4."


def test_top_k_of_one_is_greedy() -> None:
    assert text(top_k=1, seed=8) == text(temperature=0)


def test_top_p_keeps_the_likeliest_tokens() -> None:
    prompt = "Two"  # followed by many words, all but a few of them rare
    all_of_them = {text(prompt, max_tokens=1, seed=seed, temperature=3) for seed in range(200)}
    some = {text(prompt, max_tokens=1, seed=seed, top_p=0.4) for seed in range(200)}
    assert some < all_of_them


def test_top_k_limits_the_number_of_candidates() -> None:
    found = {text("It is", max_tokens=1, seed=s, top_k=2, temperature=5) for s in range(100)}
    assert len(found) == 2


@given(
    temperature=st.floats(0, 1e6),
    top_p=st.floats(1e-6, 1),
    top_k=st.integers(-1, 50),
    seed=st.integers(-(2**63), 2**63 - 1),
    max_tokens=st.integers(1, 80),
)
@settings(max_examples=60)
def test_any_valid_sampling_respects_limit_and_seed(**sampling: Any) -> None:
    [first] = MODEL.generate(QUESTION, **sampling)
    assert 1 <= first.tokens <= sampling["max_tokens"]
    assert first.finish_reason in ("stop", "length")
    if sampling["seed"] != -1:
        assert MODEL.generate(QUESTION, **sampling) == [first]


@given(ANY_TEXT, st.booleans())
@settings(max_examples=100)
def test_any_text_is_a_valid_prompt(prompt: Any, chat: bool) -> None:
    [completion] = MODEL.generate(render_prompt(prompt) if chat else prompt, temperature=0)
    assert completion.text
    assert completion.text.encode("utf-8")


def test_max_tokens_defaults_to_64() -> None:
    [completion] = MODEL.generate(QUESTION, temperature=0, ignore_eos=True)
    assert (completion.tokens, completion.finish_reason) == (64, "length")


def test_ignore_eos_continues_to_max_tokens() -> None:
    [completion] = MODEL.generate(QUESTION, seed=1, ignore_eos=True, max_tokens=1500)
    assert (completion.tokens, completion.finish_reason) == (1500, "length")


def test_min_tokens_delays_the_end() -> None:
    for seed in range(20):
        [completion] = MODEL.generate(QUESTION, seed=seed, min_tokens=100, max_tokens=300)
        assert completion.tokens >= 100
        assert completion.finish_reason == "stop"


def test_text_is_cut_before_stop_string() -> None:
    whole = text(temperature=0, max_tokens=60)
    stop = whole[20:23]
    [completion] = MODEL.generate(QUESTION, temperature=0, max_tokens=60, stop=stop)
    assert completion.text == whole[: whole.find(stop)]
    assert completion.finish_reason == "stop"


def test_first_of_several_stop_strings_cuts_the_text() -> None:
    whole = text(temperature=0, max_tokens=60)
    assert text(temperature=0, max_tokens=60, stop=[whole[30:34], whole[10:14]]) == whole[:10]


def test_stop_string_within_min_tokens_is_ignored() -> None:
    whole = text(temperature=0, max_tokens=60)
    completion = text(temperature=0, max_tokens=60, stop=whole[:4], min_tokens=10)
    assert completion.startswith(whole[:4])


@given(st.integers(0, 10_000), st.data())
@settings(max_examples=100)
def test_streamed_pieces_never_contain_part_of_a_stop_string(
    seed: Any, data: st.DataObject
) -> None:
    sampling = {"seed": seed, "max_tokens": 50, "ignore_eos": True}
    whole = text(**sampling)
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = whole[start : start + data.draw(st.integers(1, 12))]
    found, generation = pieces(QUESTION, stop=[stop, "never in it"], **sampling)
    assert "".join(found) == generation.text == whole[: whole.find(stop)]
    assert generation.finish_reason == "stop"


def test_held_back_text_is_shown_at_the_end() -> None:
    whole = text(temperature=0, max_tokens=20)
    found, generation = pieces(QUESTION, temperature=0, max_tokens=20, stop=whole[-3:] + "#")
    assert "".join(found) == generation.text == whole


def test_every_token_is_shown_at_once_without_stop_strings() -> None:
    found, generation = pieces(QUESTION, temperature=0, max_tokens=30, ignore_eos=True)
    assert len(found) == generation.tokens == 30
    assert all(found)


def test_continuation_starts_with_space_if_the_prompt_has_none() -> None:
    assert text("Paris is the capital of", temperature=0, max_tokens=1).startswith(" ")
    assert not text("Once upon ", temperature=0).startswith(" ")
    assert text("Once upon ", temperature=0).startswith("a time")


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        MODEL.generate("")


@pytest.mark.parametrize("words", [16, 17, 5000])
def test_prompt_without_room_is_refused_with_openai_text(words: int) -> None:
    small = NgramModel(max_model_len=16)
    with pytest.raises(RequestError, match=r"maximum context length is 16 tokens\. However"):
        small.generate("word " * words)


def test_prompt_and_max_tokens_beyond_context_are_refused_with_counts() -> None:
    small = NgramModel(max_model_len=16)
    with pytest.raises(RequestError, match=r"17 tokens \(10 in the prompt, 7 in") as caught:
        small.generate("word" + " word" * 9, max_tokens=7)
    assert caught.value.param == "max_tokens"


def test_default_max_tokens_fits_the_context() -> None:
    small = NgramModel(max_model_len=16)
    [completion] = small.generate("word" + " word" * 9, ignore_eos=True)
    assert completion.tokens == 6


def test_model_learns_a_given_text() -> None:
    model = NgramModel("Only this.")
    [completion] = model.generate("Only", temperature=0, ignore_eos=True, max_tokens=7)
    assert completion.text == " this. Only this. Only this"
    with pytest.raises(ValueError, match="no sentence"):
        NgramModel(" ")


def test_cache_does_not_grow_with_prompts() -> None:
    before = len(MODEL.ngrams._merged)
    for number in range(300):
        MODEL.generate(f"zz{number} yy{number} is", max_tokens=1, temperature=0)
    assert len(MODEL.ngrams._merged) <= before + 1


def test_completion_counts_its_tokens() -> None:
    [completion] = MODEL.generate(QUESTION, temperature=0, ignore_eos=True, max_tokens=200)
    assert len(tokenize(completion.text)) == completion.tokens


def test_generation_exceeds_50000_tokens_per_second() -> None:
    start = time.process_time()
    tokens = sum(
        MODEL.generate(QUESTION, seed=seed, ignore_eos=True, max_tokens=1000)[0].tokens
        for seed in range(10)
    )
    assert tokens / (time.process_time() - start) > 50_000
