"""What may be imported where."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "mlc_jax"
# From the bottom up: each may import those before it. The package's own face is lazy.
LAYERS = [
    "errors", "paths", "supervisor", "config", "command_line", "presets", "core", "models",
    "estimators", "methods", "data", "files", "benchmarks", "examples", "build", "description",
    "encoders", "workdir", "training", "report", "result", "api", "labels", "commands", "main",
    "__main__",
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


def test_files_are_judged_without_jax_or_tensorflow(tmp_path):
    """What is wrong with a file is said at once: the import of either takes seconds."""
    file = tmp_path / "all.csv"
    rows = [f"{i},{i % 7},{'ab'[i % 2]},{'ab'[i % 2] if i < 20 else ''}" for i in range(60)]
    file.write_text("\n".join(["u,v,label,checked_label", *rows]))
    program = (
        "import importlib, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[1]).parent\n"
        "for path in [*folder.glob('files/**/*.py'), *(folder / 'data' / f'{name}.py' for name in\n"
        "    ('__init__', 'source', 'dataset', 'folds', 'votes', 'show', 'order', 'prepare'))]:\n"
        "    parts = path.relative_to(folder.parent).with_suffix('').parts\n"
        "    importlib.import_module('.'.join(parts).removesuffix('.__init__'))\n"
        "from mlc_jax.files import table_files\n"
        "options = table_files.Options((), None)\n"
        "own = table_files.load(sys.argv[2], None, None, None, options)\n"
        "assert len(own.noisy) == 40 and len(own.clean) == 20\n"
        "print([x for x in ('jax', 'tensorflow', 'scipy.stats') if x in sys.modules])\n"
    )
    face = PACKAGE / "__init__.py"
    result = subprocess.run(
        [sys.executable, "-c", program, face, file], capture_output=True, text=True
    )
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.slow
def test_what_is_in_memory_needs_no_tensorflow(tmp_path):
    """Checkpoints, TensorBoard's events, the report and predictions included.

    That takes a process of its own: here TensorFlow is imported by other tests.
    """
    program = (
        "import sys\n"
        "import numpy as np\n"
        "import mlc_jax as mlc\n"
        "rng = np.random.default_rng(0)\n"
        "x = rng.normal(size=(300, 4))\n"
        "y = (x[:, 0] > 0).astype(int)\n"
        "doubtful, checked = mlc.Examples(x[60:], y[60:]), mlc.Examples(x[:60], y[:60], y[:60])\n"
        "mlp = mlc.models.MLP(2, (8,))\n"
        "lcn = mlc.models.LabelCorrectionNetwork(2, 8, 8)\n"
        "settings = dict(steps_per_round=4, num_rounds=1)\n"
        "for number, method in enumerate([\n"
        "    mlc.methods.cross_fit(model=mlc.models.MLP(2, ()), **settings),\n"
        "    mlc.methods.mlc(model=mlp, lcn=lcn, tx=mlc.sgd(0.1), meta_tx=mlc.adam(1e-3)),\n"
        "]):\n"
        "    workdir = f'{sys.argv[1]}/{number}'\n"
        "    result = mlc.fit(method, doubtful, checked, test=checked, num_epochs=1,\n"
        "                     workdir=workdir, progress=False)\n"
        "    again = mlc.load(workdir).predict_proba(x[:5])\n"
        "    np.testing.assert_allclose(result.predict_proba(x[:5]), again, rtol=1e-5)\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(name for name in names if name.startswith(('tensorflow', 'keras'))))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True
    )
    assert result.stdout.endswith("[]\n"), result.stderr
    assert (tmp_path / "0" / "report.html").exists()


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
