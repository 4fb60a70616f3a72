"""What in a saved graph could run code when torch reads it. Graphs come out of registries that others write to.

torch unpickles what an archive marks as pickled and example inputs, evaluates the text of symbolic sizes and guards,
imports the modules that the shape of inputs and outputs names, writes the names of a graph into Python source, and
loads compiled libraries. Some operators open files. `save_program` needs none of this but plain names and the
operators below, so that nothing else need be let through.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_structure, treespec_dumps

_NAMES = re.compile(
    r"[^/]+/(models/model\.json|data/(weights|constants)/(weight_\d+|tensor_\d+|model_\w+_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/[\w.]+|archive_format|archive_version|byteorder|\.data/\w+)",
    re.ASCII,
)
_PAYLOAD = re.compile(r"(weight|tensor)_\d+", re.ASCII)
_WORD = re.compile(r"\w*", re.ASCII)
_PATH = re.compile(r"\w*(\.\w+)*", re.ASCII)
_SYMBOL = re.compile(r"s\d+|Symbol\('s\d+', positive=True, integer=True\)", re.ASCII)

_WORDS: Mapping[str, tuple[re.Pattern[str], str]] = {
    "expr_str": (_SYMBOL, "a size"),
    "parameter_name": (_PATH, "a name"),
    "buffer_name": (_PATH, "a name"),
    "tensor_constant_name": (_PATH, "a name"),
    "fqn": (_PATH, "a name"),
    # An argument, which gets into the source as a quoted text.
    "as_string": (re.compile(r"(?s:.*)"), "a text"),
    "torch_version": (re.compile(r"[\w.+-]*", re.ASCII), "a version"),
}
"""How the text under a key may look, and what to call it; everything else is a word."""

_SPECS = {"in_spec": treespec_dumps(tree_structure(((0,), {}))), "out_spec": treespec_dumps(tree_structure(0))}
"""One tensor goes in, one comes out: the only shape that is let through."""

_OVERLOADS = {
    "default": "_assert_scalar _assert_tensor_metadata abs adaptive_avg_pool2d alias avg_pool2d batch_norm bmm cat "
    "chunk clamp clone contiguous conv2d detach detach_ dropout dropout_ elu elu_ exp exp2 expand expand_as floor gelu "
    "gelu_ group_norm hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_ isnan layer_norm leaky_relu "
    "leaky_relu_ linear log log2 matmul max_pool2d maximum mean minimum mish mish_ neg pad permute pixel_shuffle "
    "prelu reciprocal relu relu6 relu6_ relu_ repeat reshape rms_norm roll round rsqrt scaled_dot_product_attention "
    "sigmoid sigmoid_ sign silu silu_ softplus sqrt square squeeze stack sym_constrain_range_for_size tanh tanh_ "
    "unsqueeze view view_as where",
    "Tensor": "add add_ clamp div div_ eq ge gt index le lt mul mul_ ne slice split sub sub_",
    "Scalar": "add add_ div div_ eq ge gt le lt masked_fill mul mul_ ne rsub sub sub_",
    "Tensor_Scalar": "pow",
    "ScalarOther": "where",
    "ScalarSelf": "where",
    "self": "where",
    "dim": "mean squeeze",
    "dim_IntList": "sum",
    "int": "select softmax log_softmax size sym_size transpose unbind",
    "using_ints": "flatten",
    "dtype": "to",
    "device": "to",
    "dtype_layout": "to",
    "sizes": "split",
    "vec": "upsample_bilinear2d upsample_nearest2d",
}
OPERATORS = frozenset(
    [f"torch.ops.aten.{name}.{overload}" for overload, names in _OVERLOADS.items() for name in names.split()]
    + ["_operator.ge", "_operator.le", "_operator.getitem"]
)
"""What a graph may call: arithmetic on tensors alone, nothing that opens files or takes memory by address."""


def read_archive(source: Path | io.BytesIO) -> dict[str, bytes]:
    """The files of an archive by name.

    Raises:
        zipfile.BadZipFile: it is none.
        ValueError: two of its files have one name, so that readers may differ in which they take.
    """
    with zipfile.ZipFile(source) as archive:
        files: dict[str, bytes] = {}
        taken: set[str] = set()
        for entry in archive.infolist():
            # torch's reader does not tell capitals from small letters.
            if entry.filename.casefold() in taken:
                raise ValueError(f"two files are called {entry.filename}")
            taken.add(entry.filename.casefold())
            files[entry.filename] = archive.read(entry)
        return files


def write_archive(files: Mapping[str, bytes]) -> io.BytesIO:
    """An archive of these files, for torch to read.

    Readers may differ in what they find in a strange archive; here torch finds what was looked at.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    copy.seek(0)
    return copy


def suspect(files: Mapping[str, bytes]) -> str | None:
    """What in the files of a graph might run code, in words; None if nothing can.

    Raises:
        ValueError: what should be JSON is not.
    """
    for name, content in files.items():
        if not _NAMES.fullmatch(name):
            return f"a file {name}"
        if "/sample_inputs/" in name and not _is_plain_example(content):
            return "pickled objects as its example"
        if name.endswith("_config.json") and not _is_plain_config(json.loads(content.decode())):
            return "pickled tensors"
        if name.endswith("/models/model.json"):
            found = _suspect_graph(json.loads(content.decode()))
            if found is not None:
                return found
    return None


def _is_plain_example(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # torch raises anything
        return not content
    return True


def _is_plain_config(config: Any) -> bool:
    # torch asks only whether use_pickle is true-ish: 1 or "no" is as good as true.
    return all(
        entry.get("use_pickle") is False and _PAYLOAD.fullmatch(str(entry.get("path_name"))) is not None
        for entry in config["config"].values()
    )


def _suspect_graph(graph: Any) -> str | None:
    if graph.get("guards_code"):
        return "guards, which are code"
    for symbol in graph.get("range_constraints", {}):
        if not _SYMBOL.fullmatch(symbol):
            return f"a symbol {symbol[:40]!r}"
    return next((found for key, value in _entries(graph) if (found := _suspect_entry(key, value)) is not None), None)


def _suspect_entry(key: str, value: Any) -> str | None:
    shown = f"{str(value)[:40]!r}"
    if key == "target":
        return None if isinstance(value, str) and value in OPERATORS else f"an operator {shown}"
    if key in ("as_operator", "as_graph", "as_custom_obj"):
        return f"an operator's part {shown}"
    if key == "metadata":
        return None if isinstance(value, dict) and all(map(_is_text, value.values())) else f"metadata {shown}"
    if key in _SPECS:
        return None if value == _SPECS[key] else f"inputs or outputs {shown}"
    pattern, what = _WORDS.get(key, (_WORD, "a name"))
    return f"{what} {shown}" if _is_text(value) and not pattern.fullmatch(value) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep; a list's items have its key.

    What `metadata` says, text of which no code is made, is left out.
    """
    waiting = [("", value)]
    while waiting:
        key, each = waiting.pop()
        yield key, each
        if isinstance(each, dict) and key != "metadata":
            waiting += each.items()
        elif isinstance(each, list):
            waiting += [(key, item) for item in each]
