"""A process without threads or time: an event loop that runs when told to, threads that are greenlets, and requests.

Nothing happens by itself. A process runs until all it does waits for the outside; every wait is a `Request`, and the
test decides when a request takes effect, whether its answer comes back, and who else does what in between.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import greenlet


class Died(BaseException):
    """`os._exit`: nothing of this process happens any more."""


class Later(Exception):
    """A request cannot be served yet: it goes on waiting."""


@dataclass
class Clock:
    """Virtual time, for all processes the same. Stands in for the module `time` too."""

    now: float = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, _seconds: float) -> None:
        """Waiting is free: what waits for something asks again when its process runs."""


CLOCK = Clock()
"""The one of this process; each run of the model sets it anew."""


@dataclass(eq=False)
class Request:
    """Something asked of the outside, on the wire until it is delivered."""

    process: Process
    kind: str
    effect: Callable[[], Any]
    resume: Callable[[Any, BaseException | None], None]
    idle: Callable[[], Any] | None = None
    """What it gives when it has waited long enough without being served (a poll)."""
    network: bool = True
    """It may arrive after its process is gone; else it goes with it (disk)."""

    def deliver(self) -> Callable[[], None] | None:
        """Let it take effect; gives what sends the answer, or None if it has to wait."""
        result, error = None, None
        try:
            result = self.effect()
        except Later:
            return None
        except Exception as e:  # noqa: BLE001 - the answer is the error
            error = e
        self.take()
        return lambda: self.process.answer(self, result, error)

    def take(self) -> None:
        """It is on the wire no longer."""
        if self in self.process.pending:
            self.process.pending.remove(self)


class Loop(asyncio.AbstractEventLoop):
    """As much of an event loop as tasks need. Runs until nothing is ready, in virtual time."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.queue: deque[asyncio.Handle] = deque()
        self.timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = itertools.count()
        self.tasks: set[asyncio.Task[Any]] = set()

    def idle(self) -> None:
        """Run everything that is ready."""
        clock = self.process.clock
        asyncio._set_running_loop(self)
        try:
            while not self.process.dead:
                while self.timers and self.timers[0][0] <= clock.now:
                    self.queue.append(heapq.heappop(self.timers)[2])
                if not self.queue:
                    return
                handle = self.queue.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(None)

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.queue.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self.timers, (when, next(self._count), handle))
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def time(self) -> float:
        return self.process.clock.now

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def close_tasks(self) -> None:
        """What still runs is gone with its process; closed here, so that Python does not warn of it some time later."""
        for task in self.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine: Any = task.get_coro()
            for _ in range(10):
                try:
                    coroutine.close()
                    break
                except RuntimeError:
                    pass  # a task group waits for its tasks once more
        self.tasks.clear()

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        return self.process.threads(executor).submit(func, *args)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Died | greenlet.GreenletExit) or self.process.dead:
            return
        if "never retrieved" in context.get("message", ""):
            return  # of a shielded or abandoned task; whoever waited for it has been told
        self.process.broken = error or RuntimeError(context["message"])


class Threads:
    """An executor: `serial` for one thread, else each call runs at once."""

    def __init__(self, process: Process, serial: bool) -> None:
        self.process, self.serial = process, serial
        self.waiting: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self.active = 0

    def submit(self, func: Any, *args: Any) -> asyncio.Future[Any]:
        future = self.process.loop.create_future()
        self.waiting.append((lambda: func(*args), future))
        self._next()
        return future

    def _next(self) -> None:
        while self.waiting and not (self.serial and self.active):
            func, future = self.waiting.popleft()
            if future.cancelled():
                continue
            self.active += 1
            self.process.loop.call_soon(greenlet.greenlet(self._run).switch, func, future)

    def _run(self, func: Any, future: asyncio.Future[Any]) -> None:
        error: BaseException | None = None
        result = None
        try:
            result = func()
        except (Exception, Died) as e:  # noqa: BLE001 - given to whoever waits for the future
            error = e
        if self.process.dead:
            return
        self.active -= 1
        if not future.done():
            future.set_exception(error) if error else future.set_result(result)
        self._next()

    # what the consumer asks of its CountingExecutor (hole l)
    def wait_idle(self, _timeout: float) -> bool:
        """Until no call runs."""
        self.process.call("threads.idle", self._check_idle, network=False)
        return True

    def _check_idle(self) -> None:
        if self.active:
            raise Later


@dataclass(eq=False)
class Process:
    """A worker's process."""

    clock: Clock
    name: str = ""
    dead: BaseException | None = None
    broken: BaseException | None = None
    """An error that no code took care of: the test fails."""
    pending: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop = Loop(self)
        self._threads: dict[int, Threads] = {}

    def threads(self, executor: Any) -> Threads:
        """The threads behind an executor (None: the default one)."""
        key = 0 if executor is None else id(executor)
        if key not in self._threads:
            self._threads[key] = Threads(self, serial=executor is not None)
        return self._threads[key]

    def call(self, kind: str, effect: Callable[[], Any], *, idle: Any = None, network: bool = True) -> Any:
        """A blocking request, made in a thread."""
        if self.dead:
            raise greenlet.GreenletExit
        me = greenlet.getcurrent()
        assert me.parent is not None, f"{kind} would block the event loop"

        def resume(result: Any, error: BaseException | None) -> None:
            me.switch((result, error))

        self.pending.append(Request(self, kind, effect, resume, idle, network))
        result, error = me.parent.switch()
        if error is not None:
            raise error
        return result

    async def acall(self, kind: str, effect: Callable[[], Any], *, idle: Any = None) -> Any:
        """A request made on the event loop."""
        if self.dead:
            raise Died
        future = self.loop.create_future()

        def resume(result: Any, error: BaseException | None) -> None:
            if not future.done():
                future.set_exception(error) if error else future.set_result(result)

        self.pending.append(Request(self, kind, effect, resume, idle))
        return await future

    def answer(self, request: Request, result: Any, error: BaseException | None) -> None:
        """The answer arrives, if there is still somebody to take it."""
        if not self.dead:
            self.loop.call_soon(request.resume, result, error)

    def die(self, error: BaseException) -> None:
        """End as `os._exit` does."""
        self.dead = self.dead or error
        raise Died

    def kill(self) -> list[Request]:
        """kill -9. Gives the requests that are on the wire."""
        self.dead = self.dead or Died()
        on_the_wire = [r for r in self.pending if r.network]
        self.pending = []
        self.loop.close_tasks()
        self.loop.queue.clear()
        self.loop.timers.clear()
        return on_the_wire
