import socket
import threading
from pathlib import Path

import pytest

from rhapsody.gpus import PARTS, VARIABLES, GpuLedger, local_gpus, this_machine


@pytest.mark.parametrize("variable", VARIABLES)
def test_variable_of_each_vendor_lists_the_gpus(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "0, 2,GPU-5")
    assert this_machine().gpus == ("0", "2", "GPU-5")
    assert this_machine().gpu_variable == variable


def with_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a script named nvidia-smi on the path."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_gpus_with_most_free_memory_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_smi(tmp_path, monkeypatch, 'printf "0, 70000\\n1, 3\\n2, 500\\n3, 40000\\n"')
    assert local_gpus() == (1, 2, 3, 0)


@pytest.mark.parametrize("script", ["exit 9", "echo No devices were found"])
def test_failing_nvidia_smi_means_no_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    with_smi(tmp_path, monkeypatch, script)
    assert local_gpus() == ()


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [("2,3", ("2", "3")), ("", ()), ("-1", ()), ("GPU-ab,GPU-cd", ("GPU-ab", "GPU-cd"))],
)
def test_cuda_visible_devices_selects_gpus(
    monkeypatch: pytest.MonkeyPatch, variable: str, gpus: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert local_gpus() == gpus


def test_gpu_is_shared_until_it_is_full() -> None:
    ledger, gpu = GpuLedger(), [("node", 0)]
    assert ledger.take(gpu, PARTS // 2)
    assert ledger.take(gpu, PARTS // 2)
    assert not ledger.take(gpu, 1)
    ledger.release(gpu, PARTS // 2)
    assert ledger.free_parts("node", 0) == PARTS // 2


@pytest.mark.parametrize("node", ["host", "host.site.org", "this machine"])
def test_gpu_of_this_machine_is_the_same_under_all_names(
    monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "host")
    ledger = GpuLedger()
    assert ledger.take([(node, 0)])
    assert ledger.free_parts("this machine", "0") == 0
    assert ledger.free_parts("other", "0") == PARTS


def test_nodes_that_are_named_by_addresses_differ() -> None:
    ledger = GpuLedger()
    assert ledger.take([("10.0.0.1", 0)])
    assert ledger.free_parts("10.0.0.2", 0) == PARTS


def test_gpus_are_taken_all_or_none() -> None:
    ledger = GpuLedger()
    assert ledger.take([("node", 1)])
    assert not ledger.take([("node", 0), ("node", 1)])
    assert ledger.free_parts("node", 0) == PARTS


def test_listener_is_called_at_release_from_any_thread() -> None:
    ledger, released = GpuLedger(), threading.Event()
    ledger.add_listener(released.set)
    ledger.take([("node", 0)])
    thread = threading.Thread(target=ledger.release, args=([("node", 0)],))
    thread.start()
    thread.join()
    assert released.is_set()


def test_shortage_ends_when_no_account_is_short() -> None:
    class Owner:
        pass

    ledger, first, second = GpuLedger(), Owner(), Owner()
    ledger.set_short(first, True)
    ledger.set_short(second, True)
    ledger.set_short(first, False)
    assert ledger.is_short
    ledger.set_short(second, False)
    assert not ledger.is_short
