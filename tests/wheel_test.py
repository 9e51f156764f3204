"""What a user installs: sdist and wheel, in environments of their own, by README's first page."""

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


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_the_first_page_prints_what_it_says(version, wheel, tmp_path):
    """Its commands and its lines of Python, as they stand, in an empty directory."""
    readme = (ROOT / "README.md").read_text()
    commands = re.search(r"```sh\npip install \.\n(.*?)```", readme, re.DOTALL)[1]
    printed = re.search(r"```\n(Percent right of .*?)```", readme, re.DOTALL)[1]
    lines = re.search(r"```python\n(import pandas.*?)```", readme, re.DOTALL)[1]
    environment, directory = tmp_path / "environment", tmp_path / "empty"
    _run(_python(version), "-m", "venv", environment, cwd=tmp_path)
    bin = environment / "bin"
    install = (
        bin / "python",
        "-m",
        "pip",
        "install",
        "--no-compile",
        "-c",
        ROOT / "constraints.txt",
    )
    _run(*install, wheel, cwd=tmp_path)
    directory.mkdir()
    (directory / "examples").symlink_to(ROOT / "examples")
    env = ENV | {"PATH": f"{bin}:{ENV['PATH']}"}
    for command in commands.splitlines():
        out = _run("bash", "-c", command, cwd=directory, env=env)
    assert out.endswith(printed)
    verdict = printed[: printed.index("\n\n") + 1]
    assert _run("python", "-c", lines, cwd=directory, env=env).endswith(verdict)
    assert (directory / "corrected.csv").exists()
    # The installed presets are found without the clone, and neither needs its folder.
    settings = _run("mlc-jax", "settings", "table", cwd=directory, env=env)
    assert "checked" in settings
