import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody.inference.embedded import NgramModel, RequestError, Sampling
from rhapsody.inference.embedded.chat import render_prompt
from rhapsody.inference.embedded.tokens import tokenize

MODEL = NgramModel()
QUESTION = render_prompt("What does a simulation of water at 300 K tell us?")
ANY_TEXT = st.text(st.characters(exclude_categories=()), min_size=1, max_size=200)


def text(prompt=QUESTION, **sampling):
    [answer] = MODEL.generate(prompt, **sampling)
    return answer.text


def pieces(prompt, **sampling):
    """The answer as it is streamed."""
    parsed = Sampling.parse(sampling)
    [writer] = MODEL.writers(MODEL.read(prompt, parsed), parsed)
    found = []
    while writer.finish_reason is None:
        found.append(writer.advance())
    return found, writer


def test_learning_the_corpus_takes_well_under_half_a_second():
    start = time.process_time()
    NgramModel()
    assert time.process_time() - start < 0.5


def test_an_answer_is_made_of_sentences_about_the_prompt():
    answer = text(render_prompt("What is the capital of France?"), temperature=0)
    assert "France" in answer
    assert answer.endswith(".")
    assert not answer.startswith(" ")


def test_greedy_is_deterministic():
    assert text(temperature=0) == text(temperature=0)


def test_a_new_model_says_the_same():
    [answer] = NgramModel().generate(QUESTION, temperature=0.9, seed=5)
    assert answer.text == text(temperature=0.9, seed=5)


def test_greedy_answers_to_different_prompts_differ():
    answers = {text(render_prompt(f"Summarise run {i}."), temperature=0) for i in range(50)}
    assert len(answers) == 50


def test_the_same_seed_gives_the_same_text():
    assert text(seed=11) == text(seed=11)


def test_different_seeds_give_different_texts():
    assert len({text(seed=seed, max_tokens=40) for seed in range(20)}) > 10


def test_without_a_seed_texts_differ():
    assert len({text(max_tokens=40, temperature=1.5) for _ in range(20)}) > 1


def test_the_answers_of_one_request_differ_and_are_repeated_by_the_seed():
    first = [answer.text for answer in MODEL.generate(QUESTION, n=8, seed=3)]
    second = [answer.text for answer in MODEL.generate(QUESTION, n=8, seed=3)]
    assert first == second
    assert len(set(first)) > 4


def test_a_seeded_answer_does_not_depend_on_what_is_written_beside_it():
    parsed = Sampling.parse({"seed": 4, "ignore_eos": True})
    one, other = (MODEL.writers(MODEL.read(QUESTION, parsed), parsed)[0] for _ in range(2))
    noise = MODEL.writers(MODEL.read("Once upon", Sampling()), Sampling(ignore_eos=True))[0]
    while one.finish_reason is None:
        one.advance()
    while other.finish_reason is None:
        if noise.finish_reason is None:
            noise.advance()
        other.advance()
    assert one.text == other.text


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-9}])
def test_what_leaves_one_choice_is_greedy_within_a_sentence(sampling):
    prompt = "The sum of 2 and 2 is"
    assert text(prompt, max_tokens=2, seed=1, **sampling) == " 4."


def test_top_k_of_one_is_greedy():
    assert text(top_k=1, seed=8) == text(temperature=0)


def test_top_p_keeps_the_likeliest():
    prompt = "Two"  # followed by many words, all but a few of them rare
    all_of_them = {text(prompt, max_tokens=1, seed=seed, temperature=3) for seed in range(200)}
    some = {text(prompt, max_tokens=1, seed=seed, top_p=0.4) for seed in range(200)}
    assert some < all_of_them


def test_top_k_bounds_the_number_of_choices():
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
def test_any_valid_sampling_keeps_its_limit_and_repeats(**sampling):
    [first] = MODEL.generate(QUESTION, **sampling)
    assert 1 <= first.tokens <= sampling["max_tokens"]
    assert first.finish_reason in ("stop", "length")
    if sampling["seed"] != -1:
        assert MODEL.generate(QUESTION, **sampling) == [first]


@given(ANY_TEXT, st.booleans())
@settings(max_examples=100)
def test_any_text_is_a_prompt(prompt, chat):
    [answer] = MODEL.generate(render_prompt(prompt) if chat else prompt, temperature=0)
    assert answer.text
    assert answer.text.encode("utf-8")


def test_max_tokens_is_64_unless_said():
    [answer] = MODEL.generate(QUESTION, temperature=0, ignore_eos=True)
    assert (answer.tokens, answer.finish_reason) == (64, "length")


def test_ignore_eos_goes_on_to_the_limit():
    [answer] = MODEL.generate(QUESTION, seed=1, ignore_eos=True, max_tokens=1500)
    assert (answer.tokens, answer.finish_reason) == (1500, "length")


def test_min_tokens_puts_off_the_end():
    for seed in range(20):
        [answer] = MODEL.generate(QUESTION, seed=seed, min_tokens=100, max_tokens=300)
        assert answer.tokens >= 100
        assert answer.finish_reason == "stop"


def test_the_text_is_cut_before_a_stop_string():
    whole = text(temperature=0, max_tokens=60)
    stop = whole[20:23]
    [answer] = MODEL.generate(QUESTION, temperature=0, max_tokens=60, stop=stop)
    assert answer.text == whole[: whole.find(stop)]
    assert answer.finish_reason == "stop"


def test_of_several_stop_strings_the_first_in_the_text_counts():
    whole = text(temperature=0, max_tokens=60)
    assert text(temperature=0, max_tokens=60, stop=[whole[30:34], whole[10:14]]) == whole[:10]


def test_a_stop_string_within_min_tokens_is_passed_over():
    whole = text(temperature=0, max_tokens=60)
    answer = text(temperature=0, max_tokens=60, stop=whole[:4], min_tokens=10)
    assert answer.startswith(whole[:4])


@given(st.integers(0, 10_000), st.data())
@settings(max_examples=100)
def test_streamed_pieces_are_the_text_and_never_hold_part_of_a_stop_string(seed, data):
    sampling = {"seed": seed, "max_tokens": 50, "ignore_eos": True}
    whole = text(**sampling)
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = whole[start : start + data.draw(st.integers(1, 12))]
    found, writer = pieces(QUESTION, stop=[stop, "never in it"], **sampling)
    assert "".join(found) == writer.text == whole[: whole.find(stop)]
    assert writer.finish_reason == "stop"


def test_what_only_looked_like_a_stop_string_is_shown_after_all():
    whole = text(temperature=0, max_tokens=20)
    found, writer = pieces(QUESTION, temperature=0, max_tokens=20, stop=whole[-3:] + "#")
    assert "".join(found) == writer.text == whole


def test_without_stop_strings_every_token_is_shown_at_once():
    found, writer = pieces(QUESTION, temperature=0, max_tokens=30, ignore_eos=True)
    assert len(found) == writer.count == 30
    assert all(found)


def test_a_continuation_joins_the_text_it_continues():
    assert text("Paris is the capital of", temperature=0, max_tokens=1).startswith(" ")
    assert not text("Once upon ", temperature=0).startswith(" ")
    assert text("Once upon ", temperature=0).startswith("a time")


def test_an_empty_prompt_is_refused():
    with pytest.raises(RequestError, match="empty"):
        MODEL.generate("")


@pytest.mark.parametrize("words", [16, 17, 5000])
def test_a_prompt_that_leaves_no_room_is_refused_in_openai_s_words(words):
    small = NgramModel(max_model_len=16)
    with pytest.raises(RequestError, match=r"maximum context length is 16 tokens\. However"):
        small.generate("word " * words)


def test_a_prompt_and_answer_that_do_not_fit_together_are_refused_with_the_counts():
    small = NgramModel(max_model_len=16)
    with pytest.raises(RequestError, match=r"17 tokens \(10 in the prompt, 7 in") as caught:
        small.generate("word" + " word" * 9, max_tokens=7)
    assert caught.value.param == "max_tokens"


def test_the_default_length_of_an_answer_is_what_has_room():
    small = NgramModel(max_model_len=16)
    [answer] = small.generate("word" + " word" * 9, ignore_eos=True)
    assert answer.tokens == 6


def test_any_corpus_can_be_learned():
    model = NgramModel("Only this.")
    [answer] = model.generate("Only", temperature=0, ignore_eos=True, max_tokens=7)
    assert answer.text == " this. Only this. Only this"
    with pytest.raises(ValueError, match="no sentence"):
        NgramModel(" ")


def test_memory_does_not_grow_with_the_prompts():
    before = len(MODEL._merged)
    for number in range(300):
        MODEL.generate(f"zz{number} yy{number} is", max_tokens=1, temperature=0)
    assert len(MODEL._merged) <= before + 1


def test_an_answer_counts_as_many_tokens_as_it_has():
    [answer] = MODEL.generate(QUESTION, temperature=0, ignore_eos=True, max_tokens=200)
    assert len(tokenize(answer.text)) == answer.tokens


def test_fifty_thousand_tokens_a_second():
    start = time.process_time()
    tokens = sum(
        MODEL.generate(QUESTION, seed=seed, ignore_eos=True, max_tokens=1000)[0].tokens
        for seed in range(10)
    )
    assert tokens / (time.process_time() - start) > 50_000
