"""One batch, and the file that keeps it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rhapsody.inference.http.batches.batch import Batch, load_batches


def new() -> Batch:
    return Batch.new("alice", "/v1/chat/completions", "file-1", "24h", {"run": "3"})


def test_states_have_times() -> None:
    batch = new()
    assert (batch.status, batch.ended) == ("validating", False)
    batch.enter("in_progress")
    assert batch.fields["in_progress_at"] >= batch.fields["created_at"]
    batch.fail("no server is left")
    assert batch.ended
    assert batch.fields["errors"]["data"][0]["message"] == "no server is left"


def test_owner_sees_no_private_fields() -> None:
    assert not [name for name in new().shown() if name.startswith("_")]
    assert new().shown()["metadata"] == {"run": "3"}


def test_batch_is_saved_by_several_threads(tmp_path: Path) -> None:
    batch = new()
    with ThreadPoolExecutor(8) as pool:
        for saving in [pool.submit(batch.save, tmp_path) for _ in range(500)]:
            saving.result()
    assert load_batches(tmp_path)[0].fields == batch.fields


def test_batch_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    batch = new()
    batch.save(tmp_path)
    (tmp_path / "batch_other.json").write_text('{"id": "../other"}')
    (tmp_path / "batch_bad.json").write_text("{")
    [loaded] = load_batches(tmp_path)
    assert (loaded.fields, loaded.owner) == (batch.fields, "alice")
