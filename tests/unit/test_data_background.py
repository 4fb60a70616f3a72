"""Work done ahead in threads: in order, bounded, and over when nobody wants it any more."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from trainer.data.background import Background, ordered_map


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def running(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())


def test_items_arrive_in_order_and_the_end_stays_the_end() -> None:
    items = Background(iter(range(50)), depth=3, name="bg-order")
    assert list(items) == list(range(50))
    assert list(items) == []
    assert not running("bg-order")


def test_it_begins_at_once_and_stays_within_its_depth() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    items = Background(source(), depth=2, name="bg-depth")
    assert until(lambda: len(made) == 3), "two in the queue and one in the hand"
    time.sleep(0.2)
    assert len(made) == 3
    items.close()
    assert not running("bg-depth")


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    items = Background(source(), depth=2, name="bg-error")
    assert next(items) == 1
    with pytest.raises(KeyError, match="broken"):
        next(items)
    assert list(items) == []
    assert not running("bg-error")


def test_an_abandoned_iterator_ends_its_thread_and_cleans_up() -> None:
    cleaned = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            cleaned.set()

    items = Background(source(), depth=2, name="bg-abandoned")
    next(items)
    del items
    gc.collect()
    assert cleaned.wait(10)
    assert until(lambda: not running("bg-abandoned"))


def test_ordered_map_keeps_order_and_bounds_what_waits() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.002 * (number % 3))
        return number

    with ThreadPoolExecutor(3) as executor:
        results = ordered_map(executor, work, range(1000), window=5)
        assert [next(results) for _ in range(20)] == list(range(20))
        time.sleep(0.05)
        assert len(begun) <= 20 + 5
        results.close()


def test_ordered_map_raises_in_its_turn() -> None:
    def work(number: int) -> float:
        return 1 / (number - 3)

    with ThreadPoolExecutor(2) as executor:
        results = ordered_map(executor, work, range(10), window=8)
        assert [next(results) for _ in range(3)] == [1 / -3, 1 / -2, -1.0]
        with pytest.raises(ZeroDivisionError):
            next(results)
