"""Names of classes in pictures: in a font that has their letters, or as escapes."""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from absl import logging

from mlc_jax.errors import readable


class Names(NamedTuple):
    """Names as a picture shows them.

    Attributes:
      names: in the order of those given.
      families: fonts that together have all their letters, the usual one first.
    """

    names: list[str]
    families: list[str]


def drawable(names: Sequence[str]) -> Names:
    """Names as matplotlib can draw them.

    A letter that the usual font lacks is looked for in all fonts of the machine. If none has it, it
    is shown as an escape, `\\u732b`, rather than as an empty box, and a message says so.
    """
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont

    shown = [readable(name) for name in names]
    usual = findfont(FontProperties(family=rcParams["font.family"]))
    missing = {x for name in shown for x in name} - _letters(usual)
    families = list(rcParams["font.family"])
    for family, path in _others(usual) if missing else ():
        found = missing & _letters(path)
        if found:
            families.append(family)
            missing -= found
        if not missing:
            break
    if missing:
        logging.warning(
            "No font of this machine has glyphs for %s: pictures show escapes in their place. A "
            "font such as Noto Sans CJK has most of them.", "".join(sorted(missing)[:10]),
        )  # fmt: skip
    return Names(["".join(_escaped(x) if x in missing else x for x in y) for y in shown], families)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def _others(usual: str) -> Iterable[tuple[str, str]]:
    """Names and files of all fonts but one; "Last Resort" has a box for every letter."""
    from matplotlib.font_manager import fontManager

    fonts = (
        (font.name, font.fname)
        for font in fontManager.ttflist
        if font.fname != usual and "Last Resort" not in font.name
    )
    return sorted(set(fonts), key=lambda font: "CJK" not in font[0])


@functools.cache
def _letters(path: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # A font that is damaged, or gone.
        return frozenset()
