"""The wheel: it has all files that the packages read, and their types, and nothing else."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = {".css", ".html", ".j2", ".js", ".json", ".txt", ".typed"}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_wheel_is_complete(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("no package index has hatchling, which builds the wheel")
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("rhapsody-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith("METADATA")]
        described = Parser().parsestr(archive.read(metadata).decode())
        [entries] = [name for name in names if name.endswith("entry_points.txt")]
        assert "rhapsody = rhapsody.command.app:main" in archive.read(entries).decode()
    expected = {
        str(path.relative_to(ROOT))
        for package in ("rhapsody", "asyncflow_ext")
        for path in (ROOT / package).rglob("*")
        if path.suffix in DATA | {".py"}
    }
    assert {"rhapsody/py.typed", "asyncflow_ext/py.typed"} <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"dask", "dragon", "telemetry"} <= set(described.get_all("Provides-Extra") or [])
