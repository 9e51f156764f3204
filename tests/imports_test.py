"""What may be imported where."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "mlc_jax"
# From the bottom up: each may import those before it. The package's own face is lazy.
LAYERS = [
    "errors", "paths", "supervisor", "command_line", "config", "presets", "core", "models",
    "estimators", "methods", "data", "files", "benchmarks", "examples", "build", "description",
    "encoders", "workdir", "training", "report", "api", "commands", "main", "__main__",
]  # fmt: skip
# Neither knows the other: a method sees arrays, a source knows no training.
APART = {
    "methods": {"config"},
    "data": {"models", "estimators", "methods", "config"},
    "files": {"models", "estimators", "methods", "config"},
    "benchmarks": {"models", "estimators", "methods", "config"},
    "workdir": {"data", "files", "benchmarks", "encoders", "models", "methods"},
}


def test_the_step_does_not_need_tensorflow():
    """GPU machines without it run the step, the models and the benchmarks.

    Nor does it wait for the import of what only tokenizers and downloads need.
    """
    program = (
        "import sys\n"
        "import mlc_jax.core, mlc_jax.methods, mlc_jax.models\n"
        "import mlc_jax.core.optimizers, mlc_jax.models.bert_checkpoint\n"
        "others = ('tensorflow', 'torch', 'transformers', 'huggingface_hub')\n"
        "print([name for name in sys.modules if name.split('.')[0].startswith(others)])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def _imported(path):
    """Layers that a file imports, at its top or inside of a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mlc_jax":
            assert node.level == 0
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else (alias.name for alias in node.names)
        if isinstance(node, ast.Import):
            names = (alias.name.split(".") for alias in node.names)
            yield from (name[1] for name in names if name[0] == "mlc_jax" and len(name) > 1)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_downward(layer):
    place = PACKAGE / layer
    files = sorted(place.rglob("*.py")) if place.is_dir() else [PACKAGE / f"{layer}.py"]
    imported = {name for file in files for name in _imported(file)}
    lower = {*LAYERS[: LAYERS.index(layer) + 1], "__version__"} - APART.get(layer, set())
    assert imported <= lower


def test_no_folder_is_larger_than_one_can_hold_in_the_head():
    """But for methods, of which each is a file."""
    for folder in {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE / "methods"}:
        modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(modules) <= 12, folder


def test_every_module_has_a_layer():
    names = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()
    }
    assert names - {"__init__"} == set(LAYERS)


def test_the_core_knows_no_config_and_writes_no_files():
    for path in (PACKAGE / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                assert name.split(".")[0] not in {
                    "ml_collections", "etils", "logging", "os", "pathlib", "tensorflow", "tqdm",
                }, path  # fmt: skip
