"""Own pictures: a directory with a sub-directory for each class, or a table of paths and labels."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mlc_jax import paths
from mlc_jax.data.dataset import Benchmark
from mlc_jax.data.prepare import Normalize
from mlc_jax.data.source import Source
from mlc_jax.errors import InputError
from mlc_jax.files.arrays import scale
from mlc_jax.files.images import parts as parts_
from mlc_jax.files.images.listing import ENDINGS
from mlc_jax.files.label_columns import Said
from mlc_jax.files.own import FIELD, LabelledFile, OwnData, combine
from mlc_jax.files.packed import Packed, is_packed, local_directory
from mlc_jax.files.pictures import (
    PREPARE,
    Files,
    Geometry,
    Pictures,
    Store,
    check_pictures,
)
from mlc_jax.files.tables import Table
from mlc_jax.files.values.checks import read_checks

# (pictures, their ids) -> the source of features of those that can be decoded, and the problems of
# the others by row.
Encode = Callable[[Store, np.ndarray], tuple[Source, dict[int, str]]]

_NAMED = 5  # The most bad files that a message names.


class Options(NamedTuple):
    """How pictures are read.

    Attributes:
      geometry: the part of a picture that is used.
      bad: `refuse` or `leave_out` pictures that cannot be decoded.
      cache_dir: see `check_pictures`.
      normalize: whether pixels are normalised by ImageNet's mean and deviation; else in [0, 1].
      encode: maps pictures to features for training; None trains on pixels.
    """

    geometry: Geometry
    bad: str = "refuse"
    cache_dir: str | None = None
    normalize: bool = True
    encode: Encode | None = None

    @property
    def prepare(self) -> Normalize:
        if self.encode is not None:  # `load` scales features when they are known.
            return Normalize()
        return PREPARE if self.normalize else Normalize(255.0)


def load(
    data: str | None,
    noisy: str | None,
    clean: str | None,
    test: str | None,
    options: Options,
    checked: Sequence[str] = (),
    drawn: str | None = None,
    said: Said = Said(),  # noqa: B008
    *,
    benchmark: bool = False,
) -> OwnData | Benchmark:
    """Reads one folder or table, or two, and maybe one to judge by.

    A folder has a sub-directory for each class. Files in it, at any depth, that end in one of
    `ENDINGS` are pictures of that class; their paths are their ids. A table (`.csv`, `.tsv`,
    `.jsonl`, `.parquet`) has the columns `path`, relative to the table or absolute, and `label`.
    Without a column `id`, paths as written are the ids.

    Args:
      data: a folder or a table, maybe with checks in its column `checked_label`.
      noisy, clean, test: see `text_files.load`; folders or tables. `clean` may come with `data`: it
        has further pictures, or some of the same, with right labels.
      options: see `Options`.
      checked: see `read_checks`.
      drawn: see `how_drawn`.
      said: where given labels of `data` are.
      benchmark: whether all labels of `data` are true.

    Raises:
      InputError: a file that cannot be read, or labels that do not fit together.
    """
    parts = {
        name: parts_.read(name, path, said if name == "data" else said.elsewhere)
        for name, path in (("data", data), ("noisy", noisy), ("clean", clean), ("test", test))
        if path
    }
    if data and clean:
        parts["data"] = parts_.joined(parts["data"], parts.pop("clean"))

    def combined(files: dict[str, LabelledFile]) -> OwnData | Benchmark:
        checks = read_checks(checked, files["data"], drawn) if checked else None
        return combine(files, options.prepare, checks=checks, drawn=drawn, benchmark=benchmark)

    # Problems with labels are reported first, because decoding pictures takes long.
    combined({name: part.file for name, part in parts.items()})
    looked = {name: _looked_at(part, options) for name, part in parts.items()}
    left_out = [bad for _, of_part in looked.values() for bad in of_part]
    own = combined({name: file for name, (file, _) in looked.items()})
    if isinstance(own, Benchmark):
        return dataclasses.replace(own, left_out=tuple(left_out))
    if options.encode is not None:
        own = own._replace(prepare=scale(own.scaled_by, True))
    return own._replace(left_out=tuple(left_out))


def read_labels(data: str, said: Said, clean: str | None = None) -> LabelledFile:
    """The labels of doubtful pictures alone, without a look at any; see `load`."""
    part = parts_.read("data", data, said)
    if clean:
        part = parts_.joined(part, parts_.read("clean", clean, said.elsewhere))
    return part.file


def unlabelled(
    path: str | Sequence[str],
    options: Options,
    field: str,
    names: Mapping[str, str] | None = None,
) -> Source:
    """Pictures to predict; see `listed`, and `Options` for the rest.

    Raises:
      InputError: there is none, or it cannot be read.
    """
    return looked_at(listed(path, field, names), options, field)


class Listed(NamedTuple):
    """Pictures that are not decoded yet.

    Attributes:
      path: where they were found, for messages.
      root: the directory that names are relative to.
      names: bytes `[N]`.
    """

    path: str
    root: str
    names: np.ndarray

    def take(self, part: slice) -> "Listed":
        return self._replace(names=self.names[part])


def listed(path: str | Sequence[str], field: str, names: Mapping[str, str] | None = None) -> Listed:
    """All pictures below a directory, those of a table's column `path`, or a list of paths.

    Args:
      path: of a directory or a table, or the paths of pictures.
      field: what messages call it.
      names: of a table's columns, see `Table`.

    Raises:
      InputError: there is none.
    """
    root, files = "", [] if isinstance(path, str) else [os.fsencode(str(x)) for x in path]
    if isinstance(path, str) and paths.absolute(path, field).is_dir():
        root = local_directory(field, path)
        files = [os.fsencode(x) for x in parts_.below(field, root)]
    elif isinstance(path, str):
        root = local_directory(field, os.path.dirname(path))
        table = Table(field, path, names=names)
        files = [os.fsencode(str(x)) for _, (x,) in table.rows(["path"])]
    path = path if isinstance(path, str) else "the list"
    if not files:
        raise InputError(f"{field}: {path!r} has no picture, expected some ({', '.join(ENDINGS)})")
    return Listed(path, root, np.array(files))


def looked_at(pictures: Listed, options: Options, field: str) -> Source:
    """The source of the pictures that can be decoded; their names are the ids.

    Raises:
      InputError: some cannot be decoded, and `options` refuse them.
    """
    path, root, names = pictures
    ids = np.array([os.fsdecode(bytes(name)) for name in names])
    if options.encode is not None:
        encoded, problems = _encoded(field, root, names, ids, options.encode)
        kept(field, path, ids, problems, options)
        return encoded
    store, problems = open_store(field, root, names, options)
    keep = kept(field, path, ids, problems, options)
    return Pictures(store.take(keep), options.geometry, ids[keep])


def _encoded(
    field: str, root: str, names: np.ndarray, ids: np.ndarray, encode: Encode
) -> tuple[Source, dict[int, str]]:
    """Calls `encode` for pictures by name, in files or packed."""
    if not is_packed(root):
        return encode(parts_.stored(root, names), ids)
    packed = Packed(root, names, field)
    good = np.setdiff1d(np.arange(len(names)), [*packed.problems])
    source, problems = encode(packed.take(good), ids[good])
    return source, packed.problems | {int(good[row]): x for row, x in problems.items()}


def open_store(
    field: str, root: str, names: np.ndarray, options: Options
) -> tuple[Store, dict[int, str]]:
    """Pictures by name, in files or packed, and the problems of bad ones by row.

    Args:
      field: for messages.
      root: the directory that names are relative to.
      names: bytes `[N]`.
      options: how they are read.
    """
    if is_packed(root):  # All were decoded when they were packed.
        packed = Packed(root, names, field)
        return packed, packed.problems
    sizes, problems = check_pictures(root, names, options.cache_dir)
    return Files(root, names, sizes), problems


def kept(
    field: str, path: str, ids: np.ndarray, problems: dict[int, str], options: Options
) -> np.ndarray:
    """The pictures to keep, `[N]` bool.

    Args:
      field, path: for messages.
      ids: `[N]`.
      problems: see `check_pictures`.
      options: say whether bad pictures are refused.

    Raises:
      InputError: there are bad pictures, and they are refused.
    """
    keep = np.ones(len(ids), bool)
    if not problems:
        return keep
    listed = "; ".join(f"{str(ids[row])!r} {problems[row]}" for row in [*problems][:_NAMED])
    more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    if options.bad == "refuse":
        raise InputError(
            f"{field}: {path!r}: {listed}{more}; expected pictures that can be decoded, or "
            f"{FIELD}bad_images=leave_out, which goes on without these {len(problems)}"
        )
    logging.warning("%d of %d pictures are left out: %s%s", len(problems), len(ids), listed, more)
    keep[[*problems]] = False
    return keep


def _looked_at(part: parts_.Part, options: Options) -> tuple[LabelledFile, list[tuple[str, str]]]:
    """The pictures of a part that can be decoded, and (id, problem) of the others."""
    file, ids = part.file, part.file.ids
    assert ids is not None
    if options.encode is not None:
        source, problems = _encoded(file.field, part.root, part.names, ids, options.encode)
    else:
        store, problems = open_store(file.field, part.root, part.names, options)
    keep = kept(file.field, file.path, ids, problems, options)
    if not keep.any():
        file.fail("has no picture that can be decoded")
    if options.encode is None:
        source = Pictures(store.take(keep), options.geometry, ids[keep])
    left_out = [(str(ids[row]), problem) for row, problem in problems.items()]
    file = part.take(keep).file if left_out else file
    return dataclasses.replace(file, create_source=lambda: source), left_out
