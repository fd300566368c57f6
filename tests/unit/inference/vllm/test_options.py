"""Configuration files for vLLM: flat keys, Dragon's sections, overrides, refusals."""

import logging
from typing import Any

import pytest
import yaml

from rhapsody.errors import ConfigurationError
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.vllm.options import options_from

KNOWN = frozenset(
    {"dtype", "hf-token", "max-model-len", "max-num-seqs", "model", "tensor-parallel-size", "uds"}
)
PARAMETERS = vars(InferenceConfig(model_name="ours", tp_size=1, num_nodes=1))


def read(text: str) -> dict[str, Any]:
    return options_from("config_file 'c.yaml'", yaml.safe_load(text), PARAMETERS, KNOWN)


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        read(text)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_known_keys_are_passed_on() -> None:
    assert read("dtype: bfloat16\nmax_model_len: 4096") == {
        "dtype": "bfloat16",
        "max-model-len": 4096,
    }


def test_unknown_key_suggests_the_nearest_known_one() -> None:
    assert refusal("max-num-seq: 4") == (
        "config_file 'c.yaml': unknown key 'max-num-seq'; did you mean 'max-num-seqs'?"
    )


def test_any_key_is_accepted_if_known_keys_are_missing() -> None:
    assert options_from("c", {"anything": 1}, PARAMETERS, frozenset()) == {"anything": 1}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("uds: /tmp/x", "the launcher chooses the sockets of replicas"),
        ("api-key: secret-value", "use the backend's api_key="),
        ("middleware: [a.b]", "the batch route must be the outermost middleware"),
        ("ssl-keyfile: k.pem", "replicas are private"),
        ("data_parallel_size: 2", "raise num_gpus or num_nodes"),
        ("pipeline-parallel-size: 2", "a replica spans its tp_size GPUs by tensor parallelism"),
    ],
)
def test_key_affecting_access_to_replicas_is_refused(line: str, says: str) -> None:
    message = refusal(line)
    assert says in message
    assert "secret-value" not in message


def test_constructor_overrides_the_file_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        options = read("model: theirs\ntensor-parallel-size: 4\nport: 8000\ndtype: auto")
    assert options == {"dtype": "auto"}
    assert "model='theirs' is ignored, the backend's model_name='ours' overrides it" in caplog.text
    assert "tensor-parallel-size=4 is ignored" in caplog.text
    assert "port" not in caplog.text  # equal in both


SECTIONS = """
run_type: backend_only
required: {model_name: theirs, hf_token: hf_secret, tp_size: 1, flask_secret_key: x}
hardware: {num_nodes: -1, num_gpus: 1, node_offset: 0}
llm: {dtype: bfloat16, max_model_len: 2048, max_tokens: 100, top_p: 0.9, padding_side: left}
input_batching: {toggle_on: true, max_batch_limit: 8}
guardrails: {toggle_on: false}
"""


def test_sections_of_dragon_are_translated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        options = read(SECTIONS)
    assert options == {
        "hf-token": "hf_secret",
        "dtype": "bfloat16",
        "max-model-len": 2048,
        "override-generation-config": {"max_new_tokens": 100, "top_p": 0.9},
    }
    assert "required.model_name='theirs' is ignored" in caplog.text
    assert "input_batching.max_batch_limit=8 is ignored" in caplog.text
    assert "these keys have no effect" in caplog.text
    assert "llm.padding_side" in caplog.text
    assert "num_nodes" not in caplog.text
    assert "hf_secret" not in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("required: {model_name: m}\nhardwear: {}", "unknown section 'hardwear'; did you mean"),
        ("llm: {max_token: 5}", "unknown key 'max_token' in section 'llm'; did you mean"),
    ],
)
def test_unknown_section_or_key_suggests_the_nearest_one(text: str, says: str) -> None:
    assert says in refusal(text)
