"""Damaged files end a run by name, and an abandoned loader holds nothing up."""

from __future__ import annotations

import builtins
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from image_tree import make_tree, photo, save_jpeg

from trainer.data.dali import DaliLoader
from trainer.data.index import load_index
from trainer.data.order import Augment, EvalOrder, Plan, TrainOrder, train_kind
from trainer.data.prepare.folder import prepare_folder
from trainer.data.torchvision import TorchvisionLoader
from trainer.errors import ConfigError, DataError

LOADERS = [DaliLoader, TorchvisionLoader]
both = pytest.mark.parametrize("kind", LOADERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_tree(tmp_path_factory.mktemp("faults"), train=24, val=6, size=(120, 100))
    prepare_folder(root, workers=2)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tree"))


def open_loader(
    kind: type, root: Path, *, crop: str = "none", **options: object
) -> tuple[DaliLoader | TorchvisionLoader, TrainOrder]:
    index = load_index(root, "train")
    augment = Augment(32, crop=crop)
    order = TrainOrder(index, augment, seed=4, batch_size=5)
    settings = {"image_size": 32, "kind": train_kind(augment), "max_batch": 5, "rank": 3, **options}
    return kind(index, root, **settings), order


def fault(kind: type, root: Path, *, crop: str = "none") -> str:
    loader, order = open_loader(kind, root, crop=crop)
    try:
        with pytest.raises(DataError) as caught:
            list(loader.load(order.plans(0, 5)))
    finally:
        loader.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


VICTIM = 13


def victim(root: Path) -> Path:
    return root / load_index(root, "train").paths[VICTIM]


@both
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda old: old[: len(old) // 2], "truncated"),
        (lambda old: b"", "changed since"),
        (lambda old: b"<html>not found</html>", "changed since"),
        (lambda old: old[:2] + bytes(60) + old[62:], "changed since"),
    ],
)
def test_a_damaged_file_is_named_with_sample_and_rank(kind: type, root: Path, content, says: str) -> None:
    file = victim(root)
    file.write_bytes(content(file.read_bytes()))
    found = fault(kind, root)
    assert str(file) in found
    assert f"sample {VICTIM} of train" in found
    assert "rank 3" in found
    assert says in found
    assert "changed since it was indexed" in found


@both
def test_a_missing_file_is_named(kind: type, root: Path) -> None:
    victim(root).unlink()
    found = fault(kind, root)
    assert str(victim(root)) in found
    assert "mounted" in found


@both
@pytest.mark.parametrize("size", [(64, 64), (300, 200), (100, 120)])
def test_a_file_of_another_size_is_named(kind: type, size: tuple[int, int], root: Path) -> None:
    save_jpeg(photo(1, size=size), victim(root))
    found = fault(kind, root)
    assert str(victim(root)) in found
    assert f"{size[0]} x {size[1]} pixels, 120 x 100 when it was indexed" in found


@both
@pytest.mark.parametrize("crop", ["none", "pad"])
def test_a_header_that_claims_more_pixels_than_the_index_takes_no_memory(kind: type, crop: str, root: Path) -> None:
    content = bytearray(victim(root).read_bytes())
    at = content.find(b"\xff\xc0")
    content[at + 5 : at + 9] = (9_000).to_bytes(2, "big") * 2
    victim(root).write_bytes(content)
    open_loader(kind, root)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "9000 x 9000 pixels, 120 x 100 when it was indexed" in fault(kind, root, crop=crop)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB; decoding takes 230 MiB


@both
def test_the_batches_before_a_damaged_file_arrive_and_the_loader_can_go_on(kind: type, root: Path) -> None:
    victim(root).write_bytes(b"no")
    loader, order = open_loader(kind, root)
    plans = list(order.plans(0, 5))
    bad = next(number for number, plan in enumerate(plans) if VICTIM in plan.ids)
    stream = loader.load(plans)
    for plan in plans[:bad]:
        assert next(stream).ids.tolist() == plan.ids.tolist()
    with pytest.raises(DataError):
        next(stream)
    good = [plan for number, plan in enumerate(plans) if number != bad]
    assert [batch.ids.tolist() for batch in loader.load(good)] == [plan.ids.tolist() for plan in good]
    loader.close()


@both
def test_an_abandoned_stream_ends_and_the_next_one_starts_clean(kind: type, root: Path) -> None:
    loader, order = open_loader(kind, root)
    expected = [batch.images for batch in loader.load(order.plans(7, 9))]
    before = threading.active_count()
    for _ in range(3):
        next(loader.load(order.plans(0, 10_000)))
    stream = loader.load(order.plans(0, 10_000))
    next(stream)
    again = [batch.images for batch in loader.load(order.plans(7, 9))]
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    assert list(stream) == [], "a stream that was replaced is over"
    # The thread of a stream that was dropped ends when it next looks.
    deadline = time.monotonic() + 10
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before + 1
    start = time.monotonic()
    loader.close()
    loader.close()
    assert time.monotonic() - start < 5


@both
def test_an_abandoned_stream_with_a_damaged_file_ahead_does_not_matter(kind: type, root: Path) -> None:
    victim(root).write_bytes(b"no")
    loader, order = open_loader(kind, root)
    plans = list(order.plans(0, 5))
    good = next(plan for plan in plans if VICTIM not in plan.ids)
    bad = next(plan for plan in plans if VICTIM in plan.ids)
    stream = loader.load([good, bad, good])
    next(stream)
    del stream
    assert [batch.ids.tolist() for batch in loader.load([good])] == [good.ids.tolist()]
    loader.close()


@both
def test_an_error_in_the_plans_comes_out_after_the_batches_before_it(kind: type, root: Path) -> None:
    loader, order = open_loader(kind, root)

    def plans() -> Iterator[Plan]:
        yield from order.plans(0, 4)
        raise LookupError("no more")

    stream = loader.load(plans())
    assert [next(stream).plan.step for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(LookupError, match="no more"):
        next(stream)
    assert len(list(loader.load(order.plans(0, 2)))) == 2
    loader.close()


@both
def test_no_more_than_the_wanted_batches_are_made_ahead(kind: type, root: Path) -> None:
    loader, order = open_loader(kind, root, prefetch=2)
    pulled: list[int] = []

    def plans() -> Iterator[Plan]:
        for plan in order.plans(0, 500):
            pulled.append(plan.step)
            yield plan

    stream = loader.load(plans())
    next(stream)
    time.sleep(1.0)
    assert len(pulled) <= 12
    loader.close()


def test_one_pipeline_serves_every_epoch_and_evaluation(root: Path, monkeypatch) -> None:
    import nvidia.dali

    built = []
    original = nvidia.dali.Pipeline.build
    monkeypatch.setattr(nvidia.dali.Pipeline, "build", lambda self: (built.append(self), original(self))[1])
    index = load_index(root, "val")
    loader = DaliLoader(index, root, image_size=32, kind="resize", max_batch=4)
    order = EvalOrder(index, Augment(32), batch_size=4)
    for _ in range(4):
        assert [len(batch.ids) for batch in loader.load(order.plans())] == [4, 2]
    assert len({id(pipeline) for pipeline in built}) == 1
    loader.close()


def test_without_dali_the_error_names_the_other_loader(root: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ConfigError, match=r"data\.loader=torchvision") as caught:
        open_loader(DaliLoader, root)
    assert "\n" not in str(caught.value)


def test_importing_the_data_package_does_not_import_dali(monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("nvidia.dali", "trainer.data"))]:
        monkeypatch.delitem(sys.modules, name)
    original = builtins.__import__

    def guarded(name: str, *arguments: object, **options: object) -> object:
        assert not name.startswith("nvidia.dali"), "imported too early"
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", guarded)
    import trainer.data.dali
    import trainer.data.torchvision  # noqa: F401
