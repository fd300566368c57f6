"""The code of the documentation pages that need the Dragon runtime."""

from pathlib import Path

import pytest

from tests.integration.test_docs import PAGE_SECONDS, UNDER_DRAGON, run_code_of
from tests.support.pages import name_of


@pytest.mark.timeout(PAGE_SECONDS)
@pytest.mark.parametrize("page", UNDER_DRAGON, ids=name_of)
def test_code_of_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_code_of(page)
