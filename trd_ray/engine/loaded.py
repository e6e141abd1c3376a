"""The LoRA adapters that one engine holds: the one it serves, and older ones until their last request has ended.

    files --load--> held beside the served one --serve(version)--> served; the one before: held while a request uses it
                                               --give_up--> removed; the served one stays
    a request --using--> the served adapter, or the base model, until the request has ended

vLLM takes an adapter with each request, so that nothing pauses for a new one:

- A request ends on the adapter that it began with. The keys in vLLM's prefix cache belong to one adapter by its name,
  so no adapter has the name of another.
- An adapter that a request uses keeps its files, since vLLM may read them again.
- At most `at_once` adapters are held. A load of one more waits until a request that uses the oldest one ends, and
  the learner's sync.timeout_s ends that wait.
- The served adapter may come again: after the death of another engine the learner sends it to all. Then nothing is
  loaded and nothing is waited for. It is known by its files, since the versions of another run may begin anew.

At shutdown `cleanup` removes the files. When the actor is killed they stay in its node's temporary folder.
"""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(eq=False)
class Adapter:
    number: int
    folder: Path
    version: int = -1  # the policy version that it makes of the base, once it is served
    ready: bool = False  # vLLM holds it
    requests: int = 0  # that use it

    @property
    def request(self) -> Any:
        """What vLLM takes with a request."""
        from vllm.lora.request import LoRARequest

        return LoRARequest(f"student-{self.number}", self.number, str(self.folder))


@dataclass
class LoadedAdapters:
    """`add` and `remove` are vLLM's calls: they take an adapter, and its number."""

    at_once: int
    add: Callable[[Any], Awaitable]
    remove: Callable[[int], Awaitable]
    served: Adapter | None = None
    held: list[Adapter] = field(default_factory=list)  # the oldest first

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trd_ray-adapters-")
        self._coming: Adapter | None = None  # loaded or being loaded, or the served one that came again
        self._numbers = 0
        self._changed = asyncio.Condition()
        self._removals: set[asyncio.Task] = set()

    @contextlib.contextmanager
    def using(self) -> Iterator[Adapter | None]:
        """The served adapter, which stays until the block is left; None before the first."""
        adapter = self.served
        if adapter is None:
            yield None
            return
        adapter.requests += 1
        try:
            yield adapter
        finally:
            adapter.requests -= 1
            if adapter is not self.served and not adapter.requests:
                task = asyncio.ensure_future(self._drop(adapter))
                self._removals.add(task)
                task.add_done_callback(self._removals.discard)

    async def load(self, files: dict[str, bytes]) -> None:
        """Hold another adapter, which nobody uses before `serve`. What vLLM says against it is raised.

        The files of the served adapter take no place: `serve` goes on with it.
        """
        await self.give_up()
        self._numbers += 1
        adapter = self._coming = Adapter(self._numbers, Path(self._folder.name) / str(self._numbers))
        again = self.served and await asyncio.to_thread(_read, self.served.folder) == files
        if again and self._coming is adapter:
            self._coming = self.served
            return
        async with self._changed:
            await self._changed.wait_for(lambda: self._coming is not adapter or len(self.held) < self.at_once)
        if self._coming is adapter:
            self.held.append(adapter)
            try:
                await asyncio.to_thread(_write, adapter.folder, files)
                await self.add(adapter.request)
            except Exception:
                self._coming = None if self._coming is adapter else self._coming
                await self._drop(adapter)
                raise
            if self._coming is adapter:
                adapter.ready = True
                return
            await self._drop(adapter)
        raise RuntimeError(f"adapter {adapter.number} was given up while it was loaded")

    async def serve(self, version: int) -> None:
        """Requests that come from now on use the adapter that was loaded last."""
        if self._coming is None or not self._coming.ready:
            raise RuntimeError(f"no adapter was loaded that version {version} could be served with")
        before, self.served, self._coming = self.served, self._coming, None
        self.served.version = version
        if before and before is not self.served and not before.requests:
            await self._drop(before)

    async def give_up(self) -> None:
        """Forget an adapter that is loaded, or being loaded, and not served."""
        adapter, self._coming = self._coming, None
        if adapter and adapter is not self.served and adapter.ready:
            await self._drop(adapter)
        async with self._changed:
            self._changed.notify_all()

    async def _drop(self, adapter: Adapter) -> None:
        with contextlib.suppress(Exception):  # of an engine that has died, or that never held it
            await self.remove(adapter.number)
        shutil.rmtree(adapter.folder, ignore_errors=True)
        self.held.remove(adapter)
        async with self._changed:
            self._changed.notify_all()

    def cleanup(self) -> None:
        self._folder.cleanup()


def _read(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def slots(at_once: int, on_gpu: bool) -> int:
    """vLLM's max_loras for so many adapters.

    On a CPU vLLM computes a request without an adapter with the last slot, where another request of the batch has one:
    its index -1 counts from the end (lora/ops/torch_ops). One slot more than is ever taken stays all zeros. The kernels
    of GPUs skip such a request.
    """
    return at_once if on_gpu else at_once + 1
