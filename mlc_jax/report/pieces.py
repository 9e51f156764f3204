"""Pieces of HTML pages that open offline, load nothing and run nothing; JAX is not imported."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mlc_jax.errors import readable

_THUMBNAIL = 96  # Pixels of the longer side.
_MOST_CHARACTERS = 400
_OF_TEXTS = "\n\t\u200e\u200f"  # Lines, and marks of direction, which some scripts need.

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem;
  color: #1a1a1a; background: #fff; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; } .wide > img { max-width: 100%; height: auto; }
table { border-collapse: collapse; } td, th { padding: .2rem .6rem; text-align: left;
  border-bottom: 1px solid #ddd; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.example { min-width: 12rem; max-width: 36rem; white-space: pre-wrap; }
.example, code { overflow-wrap: anywhere; }
.example img { width: 4rem; image-rendering: pixelated; }
.sheet { display: flex; flex-wrap: wrap; gap: .5rem; } .sheet figure { margin: 0; width: 5rem; }
.sheet img { width: 5rem; image-rendering: pixelated; } .sheet figcaption { font-size: .75rem; }
.bar { background: #4c78a8; height: .7rem; display: inline-block; } .after { background: #f58518; }
code, pre { background: #f4f4f4; padding: .1rem .3rem; overflow-x: auto; } pre { padding: .6rem; }
"""


def document(title: str, sections: Sequence[str]) -> bytes:
    """A page of HTML sections, UTF-8."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        # Whatever a text may say, a browser loads nothing for it.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    ).encode(errors="replace")


def text(value: Any, keep: str = "") -> str:
    """Anything as escaped text; `keep` are control characters that stay, see `readable`."""
    return html.escape(readable(str(value), keep))


def example(shown: str | np.ndarray) -> str:
    """The HTML of an example, from the result of `show`."""
    if isinstance(shown, np.ndarray):
        return image(_thumbnail(shown), "example")
    cut = shown if len(shown) <= _MOST_CHARACTERS else shown[:_MOST_CHARACTERS] + "…"
    return text(cut, keep=_OF_TEXTS)


def _thumbnail(pixels: np.ndarray) -> bytes:
    """A PNG or JPEG of pixels `[H, W, 3]`; no metadata of a user's file gets into the page."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    content = io.BytesIO()
    if max(image.size) <= _THUMBNAIL // 2:
        image.save(content, "PNG")
    else:
        image.save(content, "JPEG", quality=80)
    return content.getvalue()


def image(content: bytes, name: str) -> str:
    """The HTML of an encoded PNG or JPEG, with `name` as its alternative text."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(content).decode()
    return f'<img alt="{text(name)}" src="data:image/{kind};base64,{data}">'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """HTML of cells that are HTML; columns `numbers` are aligned to the right."""
    right = set(numbers)

    def line(cells: Sequence[str], tag: str) -> str:
        marks = (' class="n"' if i in right else "" for i in range(len(cells)))
        return "<tr>" + "".join(
            f"<{tag}{mark}>{cell}</{tag}>" for cell, mark in zip(cells, marks, strict=True)
        ) + "</tr>"  # fmt: skip

    body = "\n".join(line(row, "td") for row in rows)
    head = f"<thead>{line(header, 'th')}</thead>" if header else ""
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'
