"""The code of the page on Dragon runs."""

from pathlib import Path

import pytest

from tests.integration.test_docs import UNDER_DRAGON, run_code_of


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_code_of(UNDER_DRAGON)
