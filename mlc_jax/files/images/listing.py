"""Lists the pictures in a directory."""

import os
from collections.abc import Iterator

from mlc_jax.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_IGNORED = ("__MACOSX", "Thumbs.db")  # Files that programs leave in folders.


def pictures_below(
    field: str, root: str, folder: str, parents: tuple[str, ...] = ()
) -> Iterator[str]:
    """Relative paths of pictures in a folder and below it; hidden files are ignored.

    Raises:
      InputError: a directory cannot be read, or links to one that contains it.
    """
    place = os.path.join(root, folder)
    real = os.path.realpath(place)
    if real in parents:
        raise InputError(
            f"{field}: {place!r} is a link to a directory that it lies in; expected none"
        )
    try:
        entries = list(os.scandir(place))
    except OSError as error:
        raise InputError(
            f"{field}: {place!r} cannot be read ({error.strerror}); expected a directory"
        ) from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _IGNORED:
            continue
        name = os.path.join(folder, entry.name)
        if _is_directory(entry):
            yield from pictures_below(field, root, name, (*parents, real))
        elif entry.name.lower().endswith(ENDINGS):
            yield name


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that leads to itself.
        return False
