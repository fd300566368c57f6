"""Runs pytest in a Dragon runtime over two nodes on this machine: `make test-multinode`.

    python tests/multinode/nodes.py [OPTIONS OF PYTEST]

Each node has its own network, host name, processes, shared memory and ssh server; both share the
file system. Everything is in namespaces, which end with their first process: the machine's network,
mounts and files do not change. Exits with pytest's exit code.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

NODES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}
LAUNCHER = ("launcher", "10.77.0.254")
BRIDGE = "nodes0"
SHARED_MEMORY = "size=9G"
"""Dragon takes 4 GiB when it starts, and does not start with less than 6 GiB."""

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
SSH_SECONDS = 30.0
"""How long the ssh servers may take to start."""

LIMIT_SECONDS = float(os.environ.get("MULTINODE_SECONDS", "3600"))
"""How long the whole run may take."""


def missing() -> str:
    """Return a sentence that says what this machine lacks; empty if it lacks nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the two nodes are Linux namespaces, which only root can make"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    programs = ("ip", "mount", "ssh", "ssh-keygen", "sshd", "unshare")
    if lacking := [program for program in programs if not shutil.which(program, path=path)]:
        return (
            f"the two nodes need {', '.join(lacking)}: install iproute2, util-linux, "
            "openssh-client and openssh-server"
        )
    if not Path(sys.executable).with_name("dragon").exists():
        return "the two nodes need the `dragon` command: install dragonhpc"
    return ""


def main(arguments: Sequence[str]) -> int:
    """Make the namespaces and run `inside` in them."""
    if reason := missing():
        print(reason, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    new = ("--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
    with tempfile.TemporaryDirectory(prefix="rhapsody-nodes-") as folder:
        inside = subprocess.Popen(
            ["unshare", *new, sys.executable, __file__, "--inside", folder, *arguments],
            stdin=subprocess.PIPE,  # closed when this process ends
            cwd=CHECKOUT,
        )
        try:
            return inside.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"the tests did not end within {LIMIT_SECONDS:g} s", file=sys.stderr)
            return 124
        finally:
            inside.kill()  # which ends everything in the namespaces
            inside.wait()


def inside(folder: Path, arguments: Sequence[str]) -> int:
    """Set up the nodes and run pytest on them, as the first process of the namespaces."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    _write_files(folder)
    _run(f"mount --bind {folder}/hosts /etc/hosts")
    _run("mount -t tmpfs tmpfs /run")
    _run(f"mount -t tmpfs -o {SHARED_MEMORY} tmpfs /dev/shm")
    _run(f"hostname {LAUNCHER[0]}")
    Path("/run/sshd").mkdir()
    _connect_nodes()
    with contextlib.ExitStack() as stack:
        for node in NODES:
            stack.enter_context(_node(node, folder))
        for node, address in NODES.items():
            _wait_for_ssh(node, address, folder)
        return _run_pytest(folder, arguments)


def _end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


def _run(command: str) -> None:
    subprocess.run(shlex.split(command), check=True, stdin=subprocess.DEVNULL)


def _write_files(folder: Path) -> None:
    hosts = [("localhost", "127.0.0.1"), LAUNCHER, *NODES.items()]
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts))
    for key in ("host_key", "key"):
        _run(f"ssh-keygen -q -t ed25519 -N '' -f {folder}/{key}")
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/key.pub\n"
        "PermitRootLogin prohibit-password\n"
        "StrictModes no\n"
        "UsePAM no\n"
        "PidFile none\n"
    )
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/key\n"
        "IdentitiesOnly yes\n"
        "StrictHostKeyChecking no\n"
        "UserKnownHostsFile /dev/null\n"
        "LogLevel ERROR\n"
    )
    # Dragon calls `ssh` without an option for its configuration.
    programs = folder / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(
        f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n'
    )
    (programs / "ssh").chmod(0o755)


def _connect_nodes() -> None:
    _run("ip link set lo up")
    _run(f"ip link add {BRIDGE} type bridge")
    _run(f"ip address add {LAUNCHER[1]}/24 dev {BRIDGE}")
    _run(f"ip link set {BRIDGE} up")
    # The route leads nowhere; Dragon uses it to find the address that other nodes see.
    _run(f"ip route add default dev {BRIDGE}")
    for node, address in NODES.items():
        _run(f"ip netns add {node}")
        _run(f"ip link add to-{node} type veth peer name eth0 netns {node}")
        _run(f"ip link set to-{node} master {BRIDGE} up")
        _run(f"ip -n {node} address add {address}/24 dev eth0")
        for device in ("lo", "eth0"):
            _run(f"ip -n {node} link set {device} up")
        _run(f"ip -n {node} route add default via {LAUNCHER[1]}")


@contextlib.contextmanager
def _node(name: str, folder: Path) -> Iterator[None]:
    """Run the first process of a node, its ssh server."""
    # Dragon tells nodes apart by this file.
    boot_id = folder / f"boot_id-{name}"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    first = (
        f"hostname {name} && mount -t tmpfs -o {SHARED_MEMORY} tmpfs /dev/shm && "
        f"mount --bind {boot_id} /proc/sys/kernel/random/boot_id && "
        f"exec {shutil.which('sshd')} -D -e -f {folder}/sshd_config"
    )
    new = "--mount --uts --ipc --pid --fork --kill-child --mount-proc"
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*shlex.split(f"ip netns exec {name} unshare {new} sh -c"), first],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _wait_for_ssh(node: str, address: str, folder: Path) -> None:
    deadline = time.monotonic() + SSH_SECONDS
    while True:
        try:
            socket.create_connection((address, 22), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                log = (folder / f"{node}.log").read_text(errors="replace")
                sys.exit(f"the ssh server of {node} did not start within {SSH_SECONDS:g} s:\n{log}")
            time.sleep(0.1)


def _run_pytest(folder: Path, arguments: Sequence[str]) -> int:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DRAGON_")}
    environment["PATH"] = f"{folder}/bin:{environment['PATH']}"
    environment["PYTHONPATH"] = f"{HERE / 'site'}:{CHECKOUT}"
    code = folder / "exit_code"
    launcher = subprocess.Popen(  # type: ignore[call-overload]  # Python 3.11, as Dragon
        [
            *("dragon", "-m", "-w", "ssh", "-t", "tcp", "--hostlist", ",".join(NODES)),
            *("--network-prefix", f"^(eth0|{BRIDGE})$"),
            *(__file__, "--program", str(code)),
            *("-p", "no:cacheprovider", *arguments, str(HERE)),
        ],
        stdin=subprocess.DEVNULL,
        env=environment,
        cwd=CHECKOUT,
        process_group=0,  # Dragon hangs in its own session
    )
    launcher.wait()
    if not code.exists():
        print("pytest did not write its exit code", file=sys.stderr)
        return 1
    return int(code.read_text())


def run_program(code: Path, arguments: Sequence[str]) -> int:
    """Run pytest as the program of the Dragon runtime, whose launcher always exits with 0.

    Args:
        code: File for pytest's exit code.
        arguments: Arguments for pytest.
    """
    import pytest

    ended = int(pytest.main(list(arguments)))
    code.write_text(str(ended))
    return ended


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        sys.exit(inside(Path(sys.argv[2]), sys.argv[3:]))
    if sys.argv[1:2] == ["--program"]:
        sys.exit(run_program(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main(sys.argv[1:]))
