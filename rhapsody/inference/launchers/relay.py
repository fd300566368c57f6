"""A relay on a node: passes connections at a port on to a server's Unix socket.

The relay listens before the server starts and until it has stopped. So no other program of the node
can listen on the port in between and receive the key that every request carries.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from pathlib import Path

from rhapsody.scratch import Scratch

__all__ = ["Relay"]

CHUNK_BYTES = 256 * 1024
BACKLOG = 1024


class Relay:
    """Listens on a free port and passes connections on, in a thread of its own.

    Args:
        family: The address family of the host.
        host: The address to listen on.
    """

    def __init__(self, family: int, host: str) -> None:
        # Without SO_REUSEADDR, so that no other socket can be bound to this port.
        self._listening = socket.socket(family)
        self._listening.bind((host, 0))
        self._listening.listen(BACKLOG)
        self._scratch = Scratch("relay")
        self.path: Path = self._scratch.path / "server.sock"
        """The Unix socket that the server must listen on."""
        threading.Thread(target=self._run, name="rhapsody-relay", daemon=True).start()

    @property
    def url(self) -> str:
        """The URL of the port."""
        host, port = self._listening.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def close(self) -> None:
        """Remove the folder of the Unix socket. The port is released when the process ends."""
        self._scratch.remove()

    def _run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the interpreter exits
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._pass_on, sock=self._listening, backlog=BACKLOG)
        await server.serve_forever()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self.path)
            writers.append(server_writer)
            copies = [
                asyncio.ensure_future(_copy(reader, server_writer)),
                asyncio.ensure_future(_copy(server_reader, writer)),
            ]
            # Either side may end the connection, and the other one must notice.
            _, rest = await asyncio.wait(copies, return_when="FIRST_COMPLETED")
            for copy in rest:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
        except OSError:  # the server does not listen yet, or has exited
            pass
        finally:
            for each in writers:
                each.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
