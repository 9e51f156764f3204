"""What a user installs: sdist and wheel, in environments of their own, by the first pages."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow
# An environment of a user's has none of what these tests are run with.
ENV = {
    name: value
    for name, value in os.environ.items()
    if name not in ("XLA_FLAGS", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
} | {"JAX_PLATFORMS": "cpu"}


# What the estimator's lines in README are given.
_READ = """
import pandas
import mlc_jax as mlc
X = pandas.read_csv("demo/tumours.csv")
y, checked = X.pop("label"), X.pop("checked_label")
X_new = X[:5]
"""


def _run(*command, cwd, env=ENV):
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the sdist, so that both are whole."""
    directory = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "mlc_jax"
    # A clean copy: the build writes beside what it builds, and packages what it finds there.
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "runs", "build")
    shutil.copytree(ROOT, source, ignore=ignored)
    _run(sys.executable, "-m", "build", "--outdir", directory, source, cwd=directory)
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    _run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, cwd=directory)
    return wheel


def _python(version):
    """A Python of this version; where pyenv's shims are in the path, it selects it."""
    name = f"python{version}"
    if shutil.which(name):
        env = ENV | {"PYENV_VERSION": version}
        command = (name, "-c", "import sys; print(sys.executable)")
        found = subprocess.run(command, env=env, text=True, capture_output=True)
        if found.returncode == 0:
            return found.stdout.strip()
    pytest.skip(f"no Python {version} here")


@pytest.fixture(scope="module", params=["3.11", "3.13"])
def installed(request, wheel, tmp_path_factory):
    """Variables of an environment with the wheel and nothing else."""
    directory = tmp_path_factory.mktemp("environment")
    _run(_python(request.param), "-m", "venv", directory, cwd=directory)
    install = ("-m", "pip", "install", "--no-compile", "-c", ROOT / "constraints.txt")
    _run(directory / "bin/python", *install, wheel, cwd=directory)
    return ENV | {"PATH": f"{directory / 'bin'}:{ENV['PATH']}"}


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_the_first_page_prints_what_it_says(page, installed, tmp_path):
    """Its commands and its lines of Python, as they stand, in an empty directory."""
    text = (ROOT / page).read_text()
    commands = re.search(r"```sh\npip install \.\n(.*?)```", text, re.DOTALL)[1]
    printed = re.search(r"```\n(Percent of the .*?)```", text, re.DOTALL)[1]
    lines = re.search(r"```python\n(import pandas.*?)```", text, re.DOTALL)[1]
    shown = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| +\| (\w+) \| (\w* ?)\|$", text, re.MULTILINE)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for command in commands.splitlines():
        out = _run("bash", "-c", command, cwd=tmp_path, env=installed)
    _ends_with(out, printed)
    rows = [row.split(",") for row in (tmp_path / "demo/tumours.csv").read_text().splitlines()[1:]]
    assert len(shown) >= 4
    for cells, row in zip(shown, rows, strict=False):
        assert [cell.strip() for cell in cells] == [*row[:2], *row[-2:]]
    verdict = printed[: printed.index("\n\n") + 1]
    _ends_with(_run("python", "-c", lines, cwd=tmp_path, env=installed), verdict)
    assert (tmp_path / "corrected.csv").exists()
    shutil.copy(tmp_path / "demo/tumours.csv", tmp_path / "new.csv")
    _run("mlc-jax", "predict", "demo/tumours.mlc", "new.csv", cwd=tmp_path, env=installed)
    predicted = (tmp_path / "demo/tumours.mlc/predictions/new.csv").read_text().splitlines()
    assert predicted[0].startswith("id,label,confidence,p_benign") and len(predicted) == 570
    estimator = re.search(r"```python\n(corrector = .*?)```", text, re.DOTALL)
    if estimator:
        lines = f"{_READ}{estimator[1]}print(corrector.result_.verdict)"
        _ends_with(_run("python", "-c", lines, cwd=tmp_path, env=installed), verdict)


def _ends_with(out, printed):
    """The same lines at the end; numbers to 0.3, since other versions round networks otherwise."""
    wanted = printed.splitlines()
    found = out.splitlines()[-len(wanted) :]
    number = r"\d+(?:\.\d+)?"
    assert [re.sub(number, "#", x) for x in found] == [re.sub(number, "#", x) for x in wanted]
    values = [[float(x) for line in lines for x in re.findall(number, line)]
              for lines in (found, wanted)]  # fmt: skip
    assert values[0] == pytest.approx(values[1], abs=0.3), found


def test_presets_are_found_without_the_clone(installed, tmp_path):
    assert "checked" in _run("mlc-jax", "settings", "table", cwd=tmp_path, env=installed)
