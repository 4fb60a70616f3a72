"""Doing things ahead of time in threads, in order, with bounded memory and without hanging at the end."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_POLL_S = 0.1


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    pass


class Background(Generic[T], Iterator[T]):
    """Runs an iterator in a thread of its own, at most `depth` items ahead of whoever reads them.

    The thread begins at once. An exception of the iterator is raised where it is read. Dropping or closing
    this object ends the thread and closes the iterator (so its `finally` clauses run, in the thread).
    """

    def __init__(self, source: Iterator[T], *, depth: int, name: str) -> None:
        self._queue: queue.Queue[T | _Failure | _End] = queue.Queue(maxsize=max(depth, 1))
        self._stop = threading.Event()
        # The thread must not hold `self`: dropping the last reader's reference has to be able to end it.
        arguments = (source, self._queue, self._stop)
        self._thread = threading.Thread(target=_run, args=arguments, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Background[T]:
        return self

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, _End | _Failure):
            self.close()
            raise item.error if isinstance(item, _Failure) else StopIteration
        return item

    def close(self) -> None:
        """End the thread and wait for it; may be called twice, and from any thread."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __del__(self) -> None:
        self._stop.set()


def _run(source: Iterator[T], out: queue.Queue[T | _Failure | _End], stop: threading.Event) -> None:
    last: _Failure | _End = _End()
    try:
        for item in source:
            if not _put(out, item, stop):
                break
    except BaseException as error:  # raised again where the items are read
        last = _Failure(error)
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()
        _put(out, last, stop)


def _put(out: queue.Queue[T | _Failure | _End], item: T | _Failure | _End, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            out.put(item, timeout=_POLL_S)
            return True
        except queue.Full:
            continue
    return False


def ordered_map(executor: Executor, function: Callable[[T], R], items: Iterable[T], *, window: int) -> Iterator[R]:
    """`function` of each item, in order, with at most `window` items begun and not yet given out.

    Unlike `Executor.map`, a million items never wait as a million futures, and an abandoned iteration cancels
    what has not begun. An error of `items` is raised after the results of the items before it.
    """
    pending: deque[Future[R]] = deque()
    try:
        for future in _submissions(executor, function, items):
            pending.append(future)
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _submissions(executor: Executor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[Future[R]]:
    try:
        for item in items:
            yield executor.submit(function, item)
    except Exception as error:
        failed: Future[R] = Future()
        failed.set_exception(error)
        yield failed
