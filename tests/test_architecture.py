"""The import law, read from the source of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("reste", "models", "trainer", "launch")
ONLY_IN = {
    "torch.distributed": ("trainer/distributed/",),
    "mlflow": ("trainer/tracking/",),
    "nvidia.dali": ("trainer/data/dali.py", "trainer/bench/bare_dali.py"),
    "matplotlib": ("trainer/study/", "trainer/report/"),
    "deepspeed": ("trainer/distributed/deepspeed.py",),
    "onnx": ("trainer/export/onnx_file.py",),
    "onnxruntime": ("trainer/export/onnx_file.py",),
    "triton": ("reste/kernels/",),
}
FORBIDDEN_IN_SCIENCE = ("os", "pathlib", "argparse", "time", "datetime", "shutil", "tempfile", "io", "sys")
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Absolute names of everything a file imports, inside functions too."""
    names: set[str] = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    to_the_right = LAYERS[LAYERS.index(layer) + 1 :]
    assert not [name for name in imported(path) for right in to_the_right if within(name, right)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_stay_in_their_place(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    for library, places in ONLY_IN.items():
        if not relative.startswith(places):
            assert not [name for name in imported(path) if within(name, library)], library


@pytest.mark.parametrize("layer", ["reste", "models"])
def test_science_reads_no_files_environment_or_clock(layer: str) -> None:
    for path in (ROOT / layer).rglob("*.py"):
        found = [name for name in imported(path) for bad in FORBIDDEN_IN_SCIENCE if within(name, bad)]
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name) and node.id == "open"
        ]
        assert not found, path
        assert not calls, path


RUNS_CODE = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv")
RUNS_MORE = ("runpy.run_path", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell")
UNPICKLES = ("pickle.load", "pickle.loads", "dill.load", "joblib.load", "marshal.loads", "shelve.open")
MAKES_OBJECTS = ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.safe_load")
RESTRICTED_UNPICKLER = "trainer/data/prepare/pickles.py"


def called(node: ast.Call) -> str:
    """Dotted name of what is called; empty if it is no name."""
    return ast.unparse(node.func) if isinstance(node.func, (ast.Name, ast.Attribute)) else ""


def argument(node: ast.Call, name: str) -> object:
    """Constant value of a keyword; ... if it is not a constant, None if it is not there."""
    found = [keyword.value for keyword in node.keywords if keyword.arg == name]
    return None if not found else getattr(found[0], "value", ...)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_comes_from_outside_can_be_run(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("pickle.Unpickler"):
            assert relative == RESTRICTED_UNPICKLER, node.lineno
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        assert name not in (*RUNS_CODE, *RUNS_MORE, *UNPICKLES, *MAKES_OBJECTS), node.lineno
        assert argument(node, "shell") in (None, False), node.lineno
        assert argument(node, "allow_pickle") in (None, False), node.lineno
        if name.endswith("torch.load"):
            assert argument(node, "weights_only") is True, node.lineno
        if name.endswith("np.load"):
            assert argument(node, "allow_pickle") is False, node.lineno
        if name.endswith("create_model"):
            assert argument(node, "pretrained") in (None, False), node.lineno
            assert argument(node, "checkpoint_path") is None, node.lineno


def test_those_who_unpickle_import_it_and_there_is_one() -> None:
    found = [p.relative_to(ROOT).as_posix() for p in SOURCES if imported(p) & {"pickle", "dill", "joblib", "marshal"}]
    assert found == [RESTRICTED_UNPICKLER]


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = ["torch", "timm", "numpy", "torchvision", "nvidia.dali", "mlflow", "deepspeed", "sklearn", "PIL"]
    heavy.append("matplotlib")
    code = f"import sys, launch.cli, launch.local; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_top_level_packages_are_ours() -> None:
    import models
    import trainer

    for package in (models, trainer):
        assert Path(package.__file__ or "").is_relative_to(ROOT)


def test_no_test_folder_is_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
