"""Large data of a backend's calls, in shared memory that its Dask workers see."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from distributed import Client

from rhapsody.backends.dask.worker_data import TAKE_BACK, TRIM
from rhapsody.backends.dask.worker_plugin import follow_orders, number_for_data
from rhapsody.backends.data.guard import StoreGuard
from rhapsody.backends.data.ledger import PROGRAM
from rhapsody.backends.data.packing import MakePickler, Packed
from rhapsody.backends.data.segments import Folders
from rhapsody.backends.data.store import DataStore

__all__ = ["SharedData"]

logger = logging.getLogger(__name__)


class SharedData:
    """The large arguments and results of a backend's calls, in segments of this machine.

    A result is written once, by its worker, and only its description travels through Dask. Results
    of workers on other machines travel through Dask, and so do arguments while there are any.

    A call holds the segments of its arguments and of its result until it is released. A worker
    holds those of the values that it has loaded. It reports them in events of its plugin.

    Args:
        loop: The loop that all methods but `pack` and `load` are called on.
        client: The client of the backend, of this loop.
        plugin: The name of the backend's plugin on the workers.
        memory_limit: Maximum number of bytes in shared memory; None: half of it.

    Raises:
        OSError: The store cannot be created.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: Client,
        plugin: str,
        memory_limit: int | None,
    ) -> None:
        self._loop = loop
        self._client = client
        self._plugin = plugin
        self._store = DataStore(loop, memory_limit, self._give_back, self._trim)
        self._guard: StoreGuard | None = None
        self._guard_start = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._addresses: dict[int, str] = {}
        self._calls: dict[str, tuple[int, set[str]]] = {}
        self._new_call = itertools.count(-1, -1)
        self._orders: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
        self._senders: dict[int, asyncio.Task[None]] = {}

    @property
    def folders(self) -> Folders:
        """The directories of the store."""
        return self._store.folders

    async def find_workers(self) -> None:
        """Ask all workers whether they see the store, once their plugins are installed."""
        numbers = await self._client.run(number_for_data, self._plugin, on_error="ignore")
        for worker, number in numbers.items():
            self._note_worker(worker, number)

    async def close(self) -> None:
        """Remove the store. Values that were loaded stay valid."""
        for sender in self._senders.values():
            sender.cancel()
        await asyncio.gather(*self._senders.values(), return_exceptions=True)
        await self._store.close()
        if self._guard is not None:
            await asyncio.to_thread(self._guard.stop)

    # -- in any thread ----------------------------------------------------------------------------

    @property
    def takes_arguments(self) -> bool:
        """Whether every worker sees the store, so that a call may run on any of them."""
        numbers = tuple(self._numbers.values())
        return bool(numbers) and all(numbers)

    def pack(self, token: str, value: Any, make_pickler: MakePickler) -> bytes | Packed:
        """Pickle the arguments of a call, which holds their segments; see `Packer.pack`."""
        packed = self._store.pack_for_call(value, make_pickler)
        if isinstance(packed, Packed):
            self._start_guard()
            self._loop.call_soon_threadsafe(self.hold, token, packed.segments)
        return packed

    def discard(self, token: str) -> None:
        """Do without the arguments of a call that is not submitted."""
        self._loop.call_soon_threadsafe(self.release, token)

    def load(self, packed: Packed) -> Any:
        """Load a result that `hold_to_load` has got; see `Packer.load`."""
        self._start_guard()
        return self._store.load_held(packed)

    def _start_guard(self) -> None:
        with self._guard_start:
            if self._guard is None:
                self._guard = StoreGuard(self.folders)

    # -- calls ------------------------------------------------------------------------------------

    def hold(self, token: str, segments: Iterable[str]) -> None:
        """Keep segments for a call, until it is released."""
        call = self._calls.get(token)
        if call is None:
            call = self._calls[token] = next(self._new_call), set()
        number, held = call
        held.update(segments)
        self._store.hold(number, segments)

    def release(self, token: str, reusable: bool = True) -> None:
        """Note that a call has ended, and that its result is held to be loaded.

        Args:
            token: The call.
            reusable: Whether its segments may be written again. False for a call that may still
                begin to read its arguments.
        """
        call = self._calls.pop(token, None)
        if call is not None:
            self._store.release(*call, reusable)

    def hold_to_load(self, packed: Packed) -> None:
        """Keep the segments of a result for the program, which must load it then."""
        self._store.hold(PROGRAM, packed.segments)

    # -- workers ----------------------------------------------------------------------------------

    def on_event(
        self, event: Mapping[str, Any], results: Iterable[tuple[str, Iterable[str]]] = ()
    ) -> None:
        """Note what a worker has reported.

        Args:
            event: Has the worker's number, and the segments that it uses and uses no longer.
            results: The calls of the event that have ended, and the segments of their results. The
                token of a call that is not waited for is empty.
        """
        number = event.get("number")
        if number is not None:
            self._note_worker(event["worker"], number)
            self._store.hold(number, event.get("held", ()))
        for token, segments in results:  # they may be among those that the worker has dropped
            self.hold(token, segments)
            if not token:
                self.release(token)
        if number is not None:
            self._store.drop(number, event.get("dropped", ()))

    def _note_worker(self, address: str, number: int) -> None:
        self._numbers[address] = number
        if number and number not in self._addresses:
            self._addresses[number] = address
            self._store.admit_now(number)

    def on_out_of_reach(self, address: str) -> None:
        """Note that a worker does not see the store."""
        self._numbers[address] = 0

    def on_cluster_event(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Forget a worker that has left the cluster."""
        message = event[1]
        if message.get("action") == "remove-worker":
            number = self._numbers.pop(message["worker"], 0)
            if self._addresses.pop(number, None) is not None:
                self._orders.pop(number, None)
                self._store.forget(number)

    def _give_back(self, worker: int, segment: str, reusable: bool) -> None:
        self._order(worker, TAKE_BACK, segment, reusable)

    def _trim(self, worker: int) -> None:
        self._order(worker, TRIM)

    def _order(self, worker: int, *order: Any) -> None:
        self._orders[worker].append(order)
        if worker not in self._senders:
            self._senders[worker] = self._loop.create_task(self._send_orders(worker))

    async def _send_orders(self, worker: int) -> None:
        # For each worker on its own: Dask tries for half a minute to reach a worker that was killed
        # or whose task does not let other threads run.
        while orders := self._orders.pop(worker, None):
            try:
                await self._client.run(
                    follow_orders,
                    self._plugin,
                    worker,
                    orders,
                    workers=[self._addresses[worker]],
                    on_error="ignore",
                )
            except Exception as error:  # the scheduler or the worker has gone
                logger.debug("orders for large data did not reach a worker: %r", error)
        del self._senders[worker]
