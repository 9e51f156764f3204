"""README, pages, notebooks and the site; `wheel_test` runs the commands of README and Start."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import mlc_jax
from mlc_jax import config, methods

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts),
]  # fmt: skip
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
_LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def _anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    bare = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in bare}


def _prose(notebook):
    """The Markdown of a notebook."""
    cells = json.loads(notebook.read_text())["cells"]
    return "\n".join("".join(x["source"]) for x in cells if x["cell_type"] == "markdown")


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = _prose(page) if page.suffix == ".ipynb" else page.read_text()
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for target, anchor in _LINK.findall(text):
        place = (page.parent / target) if target else page
        assert place.exists(), target
        if anchor and place.suffix == ".md":
            assert anchor[1:] in _anchors(place), target + anchor


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_number_of_the_readme_stands_in_a_results_page():
    table = re.search(r"^\| data \|.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL | re.M)[0]
    for row in table.splitlines()[2:]:
        pages = re.findall(r"\(docs/([^)#]*)", row)
        text = "".join((DOCS / page).read_text() for page in pages)
        # What a label says of the kind of noise, such as FLIP 0.4, is no result.
        for number in re.findall(r"\d+\.\d(?: ± \d+\.\d)?", re.sub(r"FLIP \S+", "", row)):
            assert number in text, (number, pages)


def test_the_reference_has_the_whole_public_face():
    text = (DOCS / "reference.md").read_text()
    for name in set(mlc_jax.__all__) - {"__version__"}:
        kind = "module" if name in ("estimators", "methods", "models") else "(class|function)"
        assert re.search(rf"auto{kind}:: (mlc_jax\.)?{name}$", text, re.MULTILINE), name


@pytest.mark.parametrize("name", ["method", "verdict", "rounds", "suite", "many", "estimators"])
def test_plots_are_drawn_from_tables_that_pages_have(load_program, name):
    file, draw = load_program("experiments.site_plots").PLOTS[name]
    command = f"python -m experiments.site_plots --only={name}"
    pages = [page for page in PAGES if f"images/{file})" in page.read_text()]
    assert pages and all(command in page.read_text() for page in pages)
    (axes,) = draw().axes
    marks = {"method": len(axes.patches), "suite": len(axes.containers)}
    assert marks.get(name, len(axes.lines)) == {
        "method": 13, "verdict": 10, "rounds": 2, "suite": 30, "many": 4, "estimators": 3,
    }[name]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebooks_run_and_say_what_is_stored(notebook, tmp_path):
    """From top to bottom; what they print is what they were stored with."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    shutil.copytree(notebook.parent, tmp_path / "notebooks")
    code = (
        "import nbclient, nbformat, sys\n"
        "notebook = nbformat.read(sys.argv[1], 4)\n"
        "nbclient.NotebookClient(notebook, timeout=900, kernel_name='python3').execute()\n"
        "nbformat.write(notebook, sys.argv[1])\n"
    )
    env = {k: x for k, x in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    again = tmp_path / "notebooks" / notebook.name
    subprocess.run([sys.executable, "-c", code, again], cwd=again.parent, env=env, check=True)
    (words, numbers), (stored, others) = _printed(again), _printed(notebook)
    assert words == stored
    assert numbers == pytest.approx(others, rel=0.02, abs=0.02)  # Machines round otherwise.


def _printed(notebook):
    """All text that the cells of a notebook print, without its decimal numbers; and these."""
    cells = json.loads(notebook.read_text())["cells"]
    outputs = [x for cell in cells for x in cell.get("outputs", ())]
    text = "".join("".join(x["text"]) for x in outputs if x["output_type"] == "stream")
    number = r" *\d+\.\d+"
    return re.sub(number, " #", text), [float(x) for x in re.findall(number, text)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as it is, and as it would be in a repository that is not there."""
    pytest.importorskip("sphinx", reason="the site needs the extra [docs]")
    pytest.importorskip("myst_nb", reason="the site needs the extra [docs]")
    directory = tmp_path_factory.mktemp("site")
    repository = "https://github.com/nobody/made-up"
    for name, options in (("bare", []), ("linked", ["-D", f"repository={repository}"])):
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", *options]
        built = subprocess.run(
            [*command, "-d", directory / f"{name}_trees", DOCS, directory / name],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert built.returncode == 0, built.stderr
    return directory


@pytest.mark.slow
def test_the_site_knows_the_repository_from_one_variable(site):
    repository = "https://github.com/nobody/made-up"
    bare, linked = (
        {page.relative_to(site / x): page.read_text() for page in (site / x).rglob("*.html")}
        for x in ("bare", "linked")
    )
    assert bare.keys() == linked.keys()
    assert not [page for page, text in bare.items() if "nobody/made-up" in text or "colab" in text]
    notebook = pathlib.Path("notebooks/doubtful_table.html")
    assert "github/nobody/made-up/blob/main/docs/notebooks/doubtful_table.ipynb" in linked[notebook]
    assert f"{repository}/blob/main/tests/imports_test.py" in linked[pathlib.Path("design.html")]
    pages = [text for page, text in linked.items() if page.parts[0] != "_static"]
    assert all(repository in text for text in pages)


@pytest.mark.slow
def test_the_site_has_every_setting_and_the_outputs_of_notebooks(site):
    settings = (site / "bare/settings.html").read_text()
    assert [x for x in config.SETTINGS if f">{x}<" not in settings.replace("</span>", "<")] == []
    notebook = (site / "bare/notebooks/doubtful_table.html").read_text()
    assert "Verdict: Take the corrected labels." in notebook


@pytest.mark.slow
def test_the_reference_has_the_arguments_of_every_method(site):
    page = (site / "bare/reference.html").read_text()
    assert "alias of" not in page
    assert [x for x in methods.METHODS if f'id="mlc_jax.methods.{x}"' not in page] == []
