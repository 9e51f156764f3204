"""Folders and tables of pictures: labels, and their files. No picture is decoded."""

import dataclasses
import hashlib
import os
from typing import NamedTuple

import numpy as np
from absl import logging

from mlc_jax import paths
from mlc_jax.data.source import UNKNOWN, Source
from mlc_jax.errors import InputError
from mlc_jax.files.images import pillow
from mlc_jax.files.images.listing import ENDINGS, pictures_below
from mlc_jax.files.label_columns import LabelColumns, Said
from mlc_jax.files.own import FIELD, LabelledFile, Labels
from mlc_jax.files.packed import Packed, is_packed, local_directory
from mlc_jax.files.pictures import Files, Geometry, Pictures, Store
from mlc_jax.files.tables import Table

# Directories that hold a directory for each class.
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}


class Part(NamedTuple):
    """One folder or table.

    Attributes:
      file: its labels; its source has pictures that are not decoded yet.
      root: the directory that names are relative to.
      names: the pictures' names, bytes `[N]`.
    """

    file: LabelledFile
    root: str
    names: np.ndarray

    @classmethod
    def of(cls, file: LabelledFile, root: str, names: np.ndarray) -> "Part":
        def create_source() -> Source:
            return Pictures(stored(root, names), Geometry(), file.ids)

        return cls(dataclasses.replace(file, create_source=create_source), root, names)

    def take(self, keep: np.ndarray) -> "Part":
        """The pictures of a mask, bool `[N]`."""

        def of_kept(labels: Labels | None) -> Labels | None:
            return labels and labels._replace(numbers=labels.numbers[keep])

        rows, file = np.flatnonzero(keep), self.file
        ids, name_row = file.ids, file.name_row
        assert ids is not None
        new = np.cumsum(keep) - 1
        return Part.of(
            dataclasses.replace(
                file,
                labels=file.labels._replace(numbers=file.labels.numbers[keep]),
                checked=of_kept(file.checked),
                given=of_kept(file.given),
                split=of_kept(file.split),
                drawn=of_kept(file.drawn),
                votes=of_kept(file.votes),
                ids=ids[keep],
                name_row=lambda row: name_row(int(rows[row])),
                aliases={x: int(new[row]) for x, row in file.aliases.items() if keep[row]},
            ),
            self.root,
            self.names[keep],
        )


def read(name: str, path: str, said: Said) -> Part:
    """A folder with a sub-directory for each class, or a table; see `image_folder.load`.

    Args:
      name: the setting: data, noisy, clean or test.
      path: its value.
      said: names of a table's label columns.

    Raises:
      InputError: it cannot be read.
    """
    place = paths.absolute(path, FIELD + name)
    if place.is_dir():
        return _read_folder(FIELD + name, path, said.classes)
    if not place.exists():
        raise InputError(
            f"{FIELD}{name}: no file or directory {path!r}; expected a directory with a "
            "sub-directory for each class, or a table with columns path and label"
        )
    return _read_table(said.table(FIELD + name, path), said)


def joined(data: Part, clean: Part) -> Part:
    """Joins doubtful pictures with others whose labels somebody checked.

    A picture whose content is in both becomes one row, with a given and a checked label.

    Args:
      data: doubtful pictures.
      clean: pictures with right labels.

    Raises:
      InputError: one part is packed, or a picture has two different checked labels.
    """
    for part in (data, clean):
        if is_packed(part.root):
            part.file.fail("is packed; expected files, beside dataset.clean")
    file, other = data.file, clean.file
    assert file.ids is not None and other.ids is not None
    same = _same(data, clean)
    new = np.setdiff1d(np.arange(len(other.ids)), [*same])
    texts = np.array([*other.labels.names, ""])[other.labels.numbers]
    checked = np.full(len(file.ids), "", object)
    if file.checked is not None:
        checked[:] = np.array([*file.checked.names, ""])[file.checked.numbers]
    for row, place in same.items():
        if checked[place] not in ("", texts[row]):
            other.fail(
                f"{other.name_row(row)} is checked as {str(texts[row])!r}, and as "
                f"{checked[place]!r} in {file.path!r}; expected one label"
            )
        checked[place] = str(texts[row])
    number, rows = len(new), len(file.ids)

    def longer(labels: Labels | None) -> Labels | None:
        if labels is None:
            return None
        more = np.full((number, *labels.numbers.shape[1:]), UNKNOWN, labels.numbers.dtype)
        return labels._replace(numbers=np.concatenate([labels.numbers, more]))

    labels = longer(file.labels)
    assert labels is not None
    return Part.of(
        dataclasses.replace(
            file,
            labels=labels,
            checked=Labels.of(np.concatenate([checked, texts[new]]).astype(str)),
            given=longer(file.given),
            split=longer(file.split),
            drawn=longer(file.drawn),
            votes=longer(file.votes),
            ids=np.concatenate([file.ids, other.ids[new]]),
            name_row=lambda row: (
                file.name_row(row) if row < rows else other.name_row(int(new[row - rows]))
            ),
        ),
        "",
        np.array([*_whole(data), *(_whole(clean)[row] for row in new)]),
    )


def stored(root: str, names: np.ndarray) -> Store:
    """Pictures by name, in files or packed, not decoded yet."""
    if is_packed(root):
        return Packed(root, names)
    return Files(root, names, np.zeros(len(names), np.int64))


def below(field: str, root: str) -> list[str]:
    """Relative paths of all pictures in a directory, packed or not, in order."""
    if is_packed(root):
        return sorted(os.fsdecode(bytes(name)) for name in Packed(root, field=field).names)
    return sorted(pictures_below(field, root, ""))


def _same(data: Part, clean: Part) -> dict[int, int]:
    """Maps rows of `clean` to the first row of `data` with the same picture."""

    def size_of(path: bytes) -> int:
        try:
            return os.stat(path).st_size
        except OSError:  # Decoding reports it.
            return -1

    def digest(path: bytes) -> bytes:
        try:
            return hashlib.blake2b(pillow.read_file(path), digest_size=16).digest()
        except pillow.BadPicture:
            return os.urandom(16)

    of_clean = _whole(clean)
    sizes = {size_of(path) for path in of_clean}
    places: dict[bytes, int] = {}
    for row, path in enumerate(_whole(data)):
        if size_of(path) in sizes:
            places.setdefault(digest(path), row)
    found = {row: places.get(digest(path)) for row, path in enumerate(of_clean)}
    return {row: place for row, place in found.items() if place is not None}


def _whole(part: Part) -> list[bytes]:
    """Absolute paths of the pictures."""
    root = os.fsencode(os.path.abspath(part.root))
    return [os.path.join(root, bytes(name)) for name in part.names]


def _read_table(table: Table, said: Said) -> Part:
    columns = LabelColumns(table, said)
    names: list[bytes] = []
    place = len(columns.required) + columns.optional.index("id")
    lines: dict[str, int] = {}
    aliases: dict[str, int] = {}
    for line, (path, *values) in table.rows(["path", *columns.required], columns.optional):
        if not path or path.isspace():
            table.fail("path is empty, expected that of a picture", line)
        plain = os.path.normpath(path)
        if values[place] is None:
            values[place] = path
            if lines.setdefault(plain, line) != line:
                table.fail(
                    f"id {path!r} is that of {table.place(lines[plain])}, too; expected one each",
                    line,
                )
        aliases.setdefault(plain, len(names))
        columns.add(line, values)
        names.append(os.fsencode(path))

    root = local_directory(table.field, os.path.dirname(table.path))
    file = columns.finish(lambda ids: _not_yet())
    return Part.of(dataclasses.replace(file, aliases=aliases), root, np.array(names))


def _read_folder(field: str, path: str, classes: tuple[str, ...]) -> Part:
    root = local_directory(field, path)
    there = below(field, root)
    names = [name for name in there if os.sep in name]
    labels = [name.split(os.sep)[0] for name in names]
    if len(names) < len(there):
        logging.warning(
            "%d pictures in %r itself are left out: they are in no sub-directory of a class.",
            len(there) - len(names), path,
        )  # fmt: skip
    if not names:
        raise InputError(
            f"{field}: {path!r} has no picture; expected a sub-directory for each class, with "
            f"files that end in {', '.join(ENDINGS)}"
        )
    if {x.lower() for x in labels} <= _SPLITS and all(name.count(os.sep) > 1 for name in names):
        raise InputError(
            f"{field}: {path!r} has {labels[0]!r} in the place of a class, with {names[0]!r}; "
            f"expected a directory of classes, such as {os.path.join(path, labels[0])!r}"
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{field}: {path!r} has a file whose name is not UTF-8 ({os.fsencode(name)!r}); "
                "expected it renamed"
            ) from None
    joined_ids = [os.path.join(path, name) for name in names]
    # `data` may be moved: its ids are relative. Other ids begin with the folder, to differ.
    ids, others = (names, joined_ids) if field == f"{FIELD}data" else (joined_ids, names)
    file = LabelledFile(
        field=field,
        path=path,
        labels=Labels.of(np.array(labels)),
        checked=None,
        given=None,
        split=None,
        ids=np.array(ids),
        name_row=lambda row: f"picture {names[row]!r}",
        create_source=_not_yet,
        aliases={name: row for row, name in enumerate(others)},
        classes=classes,
    )
    return Part.of(file, root, np.array([os.fsencode(name) for name in names]))


def _not_yet() -> Source:
    raise AssertionError("`Part.of` says what it is")
