"""What README and the pages say: links lead somewhere, and the first page prints what it says."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def _anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    bare = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in bare}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target, anchor in _LINK.findall(text):
        place = (page.parent / target) if target else page
        assert place.exists(), target
        if anchor and place.suffix == ".md":
            assert anchor[1:] in _anchors(place), target + anchor


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


@pytest.mark.slow
def test_the_first_page_prints_what_it_says(tmp_path):
    """Its commands and its lines of Python, as they stand, in an empty directory."""
    readme = (ROOT / "README.md").read_text()
    commands = re.search(r"```sh\npip install \.\n(.*?)```", readme, re.DOTALL)[1]
    printed = re.search(r"```\n(Percent right of .*?)```", readme, re.DOTALL)[1]
    lines = re.search(r"```python\n(import pandas.*?)```", readme, re.DOTALL)[1]
    env = {k: x for k, x in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    def run(command):
        return subprocess.run(
            command, cwd=tmp_path, env=env, shell=isinstance(command, str), check=True, text=True,
            capture_output=True,
        ).stdout  # fmt: skip

    for command in commands.splitlines():
        command = command.replace("python ", f"{sys.executable} ", 1)
        out = run(command.replace("mlc-jax ", f"{sys.executable} -m mlc_jax ", 1))
    assert out.endswith(printed)
    verdict = printed[: printed.index("\n\n") + 1]
    assert run([sys.executable, "-c", lines]).endswith(verdict)
    assert (tmp_path / "corrected.csv").exists()
