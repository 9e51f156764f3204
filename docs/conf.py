"""The site: `make docs` builds it into docs/_build/html.

`repository` is the one place that says where the repository is. While it is empty, the site has no
links to source files, no badges and no Colab links.
"""

import os
import pathlib
import re
import sys
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import mlc_jax
from mlc_jax import config as settings
from mlc_jax import methods

# `mlc_jax.methods.mlc` is the class MLC: under its own name it would be an alias without arguments.
for public_name, method in methods.METHODS.items():
    method.__name__ = method.__qualname__ = public_name
    method.__module__ = methods.__name__

repository = ""  # Such as https://github.com/OWNER/NAME, without a slash at the end.

project, author = "mlc_jax", "The mlc_jax authors"
copyright = author
version = release = mlc_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "notebooks/data"]
highlight_language = "none"  # Of blocks that name none: what commands print.
default_role = "literal"  # `x` in docstrings.

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 4  # As GitHub makes them.
nb_execution_mode = "off"  # Notebooks are stored with their outputs; a test runs them.

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Docstrings say what arguments are, with shapes.
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = "mlc_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options: dict[str, Any] = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
}
linkcheck_anchors = False

# [text](../path) in a page: a file of the repository beside docs/.
_OUTSIDE = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")
_PAGES_OF = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def _link_outside(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to files that are no pages lead to the repository, or are plain text."""
    depth = page.count("/") + 1

    def link(match: re.Match[str]) -> str:
        text, up, path, anchor = match[1], match[2], match[3], match[4] or ""
        if up.count("../") < depth:
            return match[0]
        if path in _PAGES_OF:
            return f"[{text}]({'../' * (depth - 1)}{_PAGES_OF[path]}{anchor})"
        where = app.config.repository
        return f"[{text}]({where}/blob/main/{path})" if where else text

    source[0] = _OUTSIDE.sub(link, source[0])


def _link_repository(app: Sphinx, config: Config) -> None:
    if config.repository:
        icon = {"name": "Source", "url": config.repository, "icon": "fa-solid fa-code-branch"}
        config.html_theme_options["icon_links"] = [icon]


def _link_colab(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """A badge on top of every notebook, which opens it in Google Colab."""
    where = app.config.repository
    if page.startswith("notebooks/") and where.startswith("https://github.com/"):
        path = where.removeprefix("https://github.com/")
        url = f"https://colab.research.google.com/github/{path}/blob/main/docs/{page}.ipynb"
        badge = "https://colab.research.google.com/assets/colab-badge.svg"
        image = f'<img src="{badge}" alt="Open in Colab">'
        context["body"] = f'<p><a href="{url}">{image}</a></p>{context["body"]}'


class Settings(SphinxDirective):
    """Every setting of `mlc_jax.config`, a section of the page for each of theirs."""

    def run(self) -> list[nodes.Node]:
        """One definition list for each section."""
        lists: dict[str, nodes.definition_list] = {}
        for field, setting in settings.SETTINGS.items():
            section = field.rpartition(".")[0] or "general"
            term = nodes.term("", "", nodes.literal("", field), nodes.Text(" = "))
            term += nodes.literal("", repr(setting.default))
            paragraph = nodes.paragraph()
            for number, part in enumerate(setting.meaning.split("`")):  # `x` is a literal.
                paragraph += nodes.literal("", part) if number % 2 else nodes.Text(part)
            meaning = nodes.definition("", paragraph)
            item = nodes.definition_list_item("", term, meaning)
            lists.setdefault(section, nodes.definition_list()).append(item)
        sections: list[nodes.Node] = []
        for name, items in lists.items():
            section = nodes.section("", nodes.title("", name), items, ids=[f"settings-{name}"])
            self.state.document.note_implicit_target(section)
            sections.append(section)
        return sections


def setup(app: Sphinx) -> None:
    """What the site has beside its extensions."""
    app.add_config_value("repository", "", "env", str)
    app.add_directive("settings", Settings)
    app.connect("config-inited", _link_repository)
    app.connect("source-read", _link_outside)
    app.connect("include-read", lambda app, path, page, source: _link_outside(app, page, source))
    app.connect("html-page-context", _link_colab)
