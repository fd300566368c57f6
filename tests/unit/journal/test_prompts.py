"""The key of a prompt: which fields belong to it."""

from pydantic import BaseModel

from rhapsody.api import AITask
from rhapsody.journal.key import call_key
from rhapsody.journal.prompts import prompt_arguments


class Answer(BaseModel):
    text: str


def key(model: str | None = "small", **fields: object) -> bytes:
    task = AITask(prompt=fields.pop("prompt", "Why?"), **fields)  # type: ignore[arg-type]
    return call_key(b"ai", prompt_arguments(model, task), {})


def test_equal_prompts_have_equal_keys() -> None:
    assert key() == key(uid="other", timeout=3.0, backend="elsewhere")


def test_fields_that_change_the_response_belong_to_the_key() -> None:
    variants = [
        key(),
        key("large"),
        key(prompt="How?"),
        key(prompt=[{"role": "user", "content": "Why?"}]),
        key(system_prompt="Be brief."),
        key(adapter="tuned"),
        key(temperature=0.1),
        key(n=2),
        key(logprobs=1),
        key(response_format=Answer),
        key(response_format={"type": "json_object"}),
    ]
    assert len(set(variants)) == len(variants)


def test_kind_belongs_to_the_key() -> None:
    kinds = [key(), key(kind="embed"), key(kind="classify")]
    assert len(set(kinds)) == 3
    assert key(kind="generate") == key()
