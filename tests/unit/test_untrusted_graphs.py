"""A graph comes out of a registry that others write to: one that could run code when torch reads it is refused."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

from trainer.errors import ConfigError
from trainer.export.program import load_program
from trainer.export.untrusted import OPERATORS, read_archive, suspect


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small graph, by name."""
    path = tmp_path_factory.mktemp("graph") / "model.pt2"
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()
    example = (torch.zeros(2, 3, 4, 4),)
    torch.export.save(torch.export.export(model, example, dynamic_shapes=({0: Dim("n", min=1)},)), path)
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


class Harmful:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return open, (str(self.path), "w")


def written(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


def test_what_torch_saves_is_let_through(archive: dict[str, bytes]) -> None:
    assert suspect(archive) is None


NUMBERS = {"torch.ops.aten._assert_scalar.default", "torch.ops.aten.sym_constrain_range_for_size.default"}


def test_every_operator_on_the_list_exists_and_takes_a_tensor_or_a_number() -> None:
    for name in OPERATORS - {"_operator.ge", "_operator.le", "_operator.getitem"}:
        packet, overload = name.removeprefix("torch.ops.aten.").split(".")
        schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
        # from_file makes its tensor out of the name of a file.
        assert "Tensor" in str(schema.arguments[0].type) or name in NUMBERS, name


def test_pickled_objects_are_refused_before_anything_reads_them(tmp_path: Path, archive: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    torch.save((Harmful(tmp_path / "harm"),), buffer)
    for harmful in (buffer.getvalue(), pickle.dumps(Harmful(tmp_path / "harm"))):
        name = next(name for name in archive if name.endswith("sample_inputs/model.pt"))
        path = written(tmp_path / "a.pt2", archive | {name: harmful})
        with pytest.raises(ConfigError, match="holds pickled objects as its example"):
            load_program(path)
    assert not (tmp_path / "harm").exists()


def changed(content: bytes, change: Callable[[dict], None]) -> bytes:
    graph = json.loads(content)
    change(graph)
    return json.dumps(graph).encode()


def test_text_that_torch_would_evaluate_is_refused(archive: dict[str, bytes]) -> None:
    model = next(name for name in archive if name.endswith("models/model.json"))
    size = re.compile(rb"Symbol\('s\d+', positive=True, integer=True\)")
    assert size.search(archive[model])

    def graph_with(change: Callable[[dict], None]) -> dict[str, bytes]:
        return {model: changed(archive[model], lambda graph: change(graph["graph_module"]))}

    def of_signature(key: str, value: object) -> dict[str, bytes]:
        return graph_with(lambda graph: graph["module_call_graph"][0]["signature"].update({key: value}))

    def of_node(key: str, value: object) -> dict[str, bytes]:
        return graph_with(lambda graph: graph["graph"]["nodes"][0].update({key: value}))

    def hidden(graph: dict) -> None:
        values = graph["graph"]["tensor_values"]
        values["metadata"] = values.pop(next(iter(values)))

    def import_by_shape(kind: str, context: object) -> str:
        return json.dumps([1, {"type": kind, "context": json.dumps(context), "children_spec": []}])

    cases = {
        "a size": {model: size.sub(b"__import__('os').system('true')", archive[model])},
        "guards": {model: changed(archive[model], lambda graph: graph.update(guards_code=["print()"]))},
        "an operator": {model: archive[model].replace(b"torch.ops.aten.conv2d.default", b"torch.ops.evil.run.default")},
        "a symbol": {model: changed(archive[model], lambda graph: graph.update(range_constraints={"print()": {}}))},
        "an operator 'torch.ops.aten.from_file": of_node("target", "torch.ops.aten.from_file.default"),
        "an operator '#evil": of_node("target", "#evil:run"),
        "an operator \"['torch": of_node("target", ["torch.ops.evil.run"]),
        "an operator's part": of_node("inputs", [{"name": "f", "arg": {"as_operator": "torch.load"}}]),
        "inputs or outputs": of_signature(
            "out_spec", import_by_shape("collections.defaultdict", {"default_factory_module": "evil"})
        ),
        'a name "x=print': of_signature("forward_arg_names", ["x=print('harm')"]),
        "a name 'torch.load": of_node("name", "torch.load"),
        "a name 'x\")": graph_with(
            lambda graph: graph["signature"]["input_specs"][0]["parameter"].update(parameter_name='x"),print("')
        ),
        "metadata": graph_with(hidden),
        "a file": {model.replace("models/model.json", "data/aotinductor/model/a.so"): b"\x7fELF"},
    }
    for what, files in cases.items():
        found = suspect(archive | files)
        assert found is not None, what
        assert found.startswith(what)


def test_a_pickle_is_refused_in_whatever_way_it_is_marked(tmp_path: Path, archive: dict[str, bytes]) -> None:
    config = next(name for name in archive if name.endswith("model_weights_config.json"))
    buffer = io.BytesIO()
    torch.save(Harmful(tmp_path / "harm"), buffer)

    def marked(key: str, value: object) -> Path:
        def mark(config: dict) -> None:
            next(iter(config["config"].values()))[key] = value

        files = {
            config: changed(archive[config], mark),
            config.replace(config.split("/")[-1], "weight_0"): buffer.getvalue(),
        }
        return written(tmp_path / "a.pt2", archive | files)

    for key, value in (("use_pickle", True), ("use_pickle", 1), ("use_pickle", "no"), ("path_name", "opaque_obj_0")):
        with pytest.raises(ConfigError, match="holds pickled tensors"):
            load_program(marked(key, value))
    assert not (tmp_path / "harm").exists()


def test_torch_reads_the_very_bytes_that_were_looked_at(tmp_path: Path, archive: dict[str, bytes]) -> None:
    weights = next(name for name in archive if name.endswith("model_weights_config.json"))
    for other in (weights, weights.upper()):
        path = tmp_path / "two.pt2"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written(path, archive)
            with zipfile.ZipFile(path, "a") as made:
                made.writestr(other, archive[weights])
        with pytest.raises(ValueError, match="two files are called"):
            read_archive(path)
        with pytest.raises(ConfigError, match="two files are called"):
            load_program(path)
