from typing import Any

import pytest

from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work

pytestmark = pytest.mark.dask


def work(**fields: Any) -> Work:
    options = fields.pop("options", {})
    task = {"uid": "task.1", "task_backend_specific_kwargs": options, **fields}
    return Work(task, Attachment(ignore), "")


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"function": len}, "len"),
        ({"function": len, "name": "step 2/b"}, "step_2_b"),
        ({"function": len, "name": "2nd"}, "task_2nd"),
        ({"executable": "/bin/echo"}, "echo"),
        ({"executable": "./7z"}, "task_7z"),
    ],
)
def test_label_is_one_word_made_from_the_name(fields: dict[str, Any], label: str) -> None:
    from rhapsody.backends.dask.client import _label

    assert _label(work(**fields)) == label


def test_split_limits_the_bytes_of_a_graph() -> None:
    from rhapsody.backends.dask.client import GRAPH_BYTES, _split

    half = GRAPH_BYTES // 2
    assert _split([3, 5, 8, 9], [half, half, 1, half]) == [[3, 5], [8, 9]]
    assert _split([1, 2, 3], [1, 3 * GRAPH_BYTES, 1]) == [[1], [2], [3]]
    assert _split([7], [3 * GRAPH_BYTES]) == [[7]]
