"""The relay, in a process of its own: it keeps its port until that process ends."""

import subprocess
import sys

ECHO = """
import socket, threading
from urllib.parse import urlsplit

from rhapsody.inference.launchers.relay import Relay

relay = Relay(socket.AF_INET, "127.0.0.1")
address = urlsplit(relay.url)


def connect():
    return socket.create_connection((address.hostname, address.port), timeout=10)


def echo(listening):
    connection, _ = listening.accept()
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


with connect() as early:
    print("before the server:", early.recv(1))
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(str(relay.path))
    listening.listen()
    threading.Thread(target=echo, args=(listening,), daemon=True).start()
    with connect() as client:
        client.sendall(b"hello")
        print("with the server:", client.recv(5))
with socket.socket() as thief:
    try:
        thief.bind((address.hostname, address.port))
    except OSError as error:
        print("the port is taken:", type(error).__name__)
relay.close()
print("folder left:", relay.path.parent.exists())
"""


def test_relay_holds_its_port_and_passes_data_on() -> None:
    run = subprocess.run(
        [sys.executable, "-c", ECHO], capture_output=True, text=True, timeout=50, check=False
    )
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        "before the server: b''",
        "with the server: b'hello'",
        "the port is taken: OSError",
        "folder left: False",
    ]
