"""How `reste bench` measures: turns, ratios, goals, processors' time, bytes."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn

from reste import reste_sign
from trainer.bench.core import WARM_UP, Bench, Goal, ratio
from trainer.bench.memory import peak_bytes, saved_bytes
from trainer.bench.naive import NaiveSign
from trainer.bench.sweep import Tried, nearest
from trainer.bench.wire import bytes_sent
from trainer.processes import cpu_seconds

CPU = torch.device("cpu")


def test_a_rate_is_the_others_time_over_ours_and_a_cost_ours_over_the_others() -> None:
    # Rounds of (2, 6), (4, 4) and (1, 8): 3, 1 and 8 times as fast.
    rate = ratio("step", "a over b", "here", [2.0, 4.0, 1.0], [6.0, 4.0, 8.0])
    assert (rate.lowest, rate.median, rate.highest) == (1.0, 3.0, 8.0)
    assert (rate.ours, rate.other, rate.must, rate.reached) == (2.0, 6.0, None, "")
    cost = ratio("step", "a / b", "here", [2.0, 4.0, 1.0], [6.0, 4.0, 8.0], Goal(2.5, 1.5, "lower"))
    assert (cost.lowest, cost.median, cost.highest) == pytest.approx((1 / 8, 1 / 3, 1.0))


@pytest.mark.parametrize(
    ("better", "must", "aim", "verdicts"),
    [("higher", 0.85, 1.0, ["missed", "must", "aim"]), ("lower", 1.0, 0.85, ["aim", "must", "missed"])],
)
def test_a_ratio_reaches_its_aim_or_what_it_must_or_neither(better, must, aim, verdicts) -> None:
    for figure, verdict in zip((0.8, 0.9, 1.1), verdicts, strict=True):
        pair = ([1.0], [figure]) if better == "higher" else ([figure], [1.0])
        assert ratio("r", "w", "x", *pair, Goal(must, aim, better)).reached == verdict


def test_contestants_take_turns_and_each_round_begins_with_another() -> None:
    calls: list[str] = []
    names = ["a", "b", "c"]
    works = {name: (lambda name=name: calls.append(name)) for name in names}
    times = Bench(CPU, repeats=4).race(works)
    assert "".join(calls) == "abc" * WARM_UP + "abc" + "bca" + "cab" + "abc"
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys(names, 4)


def test_a_lead_is_not_timed_and_the_time_of_several_calls_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Bench, "_clock", lambda _: 2.0 * calls.count("s") + calls.count("q"))
    works = {name: (lambda name=name: calls.append(name)) for name in "sq"}
    times = Bench(CPU, repeats=2).race(works, calls=3, lead=True)
    assert "".join(calls) == "sq" * WARM_UP + "ssssqqqq" + "qqqqssss"
    assert times == {"s": [2000.0, 2000.0], "q": [1000.0, 1000.0]}


def test_the_clock_counts_waiting_and_processors_time_does_not() -> None:
    wall = Bench(CPU).milliseconds(lambda: time.sleep(0.2))
    busy = Bench(CPU, processor=True).milliseconds(lambda: time.sleep(0.2))
    assert wall >= 200
    assert busy < 100


def test_processors_time_counts_children() -> None:
    loop = (
        "import sys, time\nsys.stdin.readline()\nbegun = time.process_time()\n"
        "while time.process_time() < begun + 0.3: pass\nprint('done', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout

        def wait() -> None:
            child.stdin.write(b"begin\n")
            child.stdin.flush()
            assert child.stdout.readline() == b"done\n"

        spent = Bench(CPU, processor=True).milliseconds(wait)
        own = cpu_seconds(child.pid)
        child.stdin.close()
    assert own >= 0.28
    assert spent >= 280
    assert cpu_seconds(child.pid) == 0.0


def test_what_is_kept_for_the_backward_pass_is_counted_once_and_without_parameters() -> None:
    x = torch.randn(50, 20, requires_grad=True)
    linear = nn.Linear(20, 30)
    assert saved_bytes(lambda: x.exp(), nn.Identity()) == 50 * 20 * 4  # its result
    assert saved_bytes(lambda: x * x, nn.Identity()) == 50 * 20 * 4  # one tensor, kept twice
    assert saved_bytes(lambda: linear(x), linear) == 50 * 20 * 4  # its input; the weight is there anyway
    assert saved_bytes(lambda: x + 1, nn.Identity()) == 0


def test_a_compiled_functions_savings_are_seen() -> None:
    x = torch.randn(40, 25, requires_grad=True)
    # What the compiler's graph for the backward pass is given.
    compiled = torch.compile(lambda x: x.sin().exp().sum(), backend="aot_eager")
    compiled(x).backward()
    found = saved_bytes(lambda: compiled(x), nn.Identity())
    assert 40 * 25 * 4 <= found <= 2 * 40 * 25 * 4


def test_the_peak_is_what_is_alive_at_once_with_what_was_there_before() -> None:
    mib = 2**20
    before = torch.ones(mib // 4)
    passing = [torch.ones(5 * mib // 4)]

    def step() -> None:
        passing.clear()  # was there before, and is not the step's
        first = torch.ones(2 * mib // 4)
        second = torch.ones(4 * mib // 4)
        del first
        third = torch.ones(mib // 4)
        assert second[0] == third[0]

    peak = peak_bytes(step, CPU, [before, before[:10]])
    assert 7 * mib <= peak < 7 * mib + 4096


def test_the_peak_of_a_training_step_holds_parameters_gradients_and_momentum() -> None:
    model = nn.Linear(1000, 1000, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.ones(1, 1000)

    def step() -> None:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    peak = peak_bytes(step, CPU, [model, optimizer, x])
    assert 3 * 4_000_000 <= peak < 3.1 * 4_000_000


def test_the_naive_sign_is_restes() -> None:
    x = torch.randn(4000, dtype=torch.float64) * 1.2
    given = torch.randn_like(x)
    power = torch.tensor(2.0, dtype=torch.float64)
    (naive,) = torch.autograd.grad(NaiveSign.apply(leaf := x.clone().requires_grad_(), power), leaf, given)
    (ours,) = torch.autograd.grad(reste_sign(leaf := x.clone().requires_grad_(), power), leaf, given)
    torch.testing.assert_close(naive, ours, rtol=1e-12, atol=0)
    assert torch.equal(NaiveSign.apply(x, power), reste_sign(x, power))


def test_bytes_on_the_wire_are_those_of_this_process() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(server.getsockname()) as sender:
            receiver, _ = server.accept()
            with receiver:

                def take() -> None:
                    time.sleep(0.1)  # the window fills up, and a piece is sent twice
                    receiver.recv(300_000, socket.MSG_WAITALL)

                taken = threading.Thread(target=take)
                taken.start()
                before = bytes_sent()
                sender.sendall(bytes(300_000))
                taken.join()
                after = bytes_sent()
    assert before is not None
    assert after is not None
    assert after - before == 300_000


def test_the_first_setting_near_the_best_is_taken() -> None:
    rates = [(1, [50.0, 60.0, 55.0]), (2, [98.0, 97.5, 99.0]), (4, [99.0, 100.0, 200.0])]
    tried = [Tried({"data.workers": workers}, rate) for workers, rate in rates]
    # Medians 55, 98 and 100: two threads reach 97 % of what four do.
    assert nearest(tried).values == {"data.workers": 2}
    tried[1].images_per_s = [96.0]
    assert nearest(tried).values == {"data.workers": 4}
