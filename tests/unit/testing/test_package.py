import subprocess
import sys

import pytest

import rhapsody.testing
from rhapsody.testing.conformance import BackendConformance


def test_conformance_class_is_exported() -> None:
    assert rhapsody.testing.BackendConformance is BackendConformance


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        rhapsody.testing.nothing  # noqa: B018


def test_samples_do_not_import_pytest() -> None:
    script = "import sys, rhapsody.testing.samples; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
