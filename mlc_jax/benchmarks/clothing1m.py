"""Clothing1M (Xiao et al. 2015) as it is distributed: shop pictures with labels from their texts.

    images/{0..9}/.../*.jpg
    noisy_label_kv.txt, clean_label_kv.txt       PATH LABEL in each line
    noisy_train_key_list.txt                     PATH in each line; 1,000,000
    clean_{train,val,test}_key_list.txt          47,570, 14,313 and 10,526

Nothing is copied or unpacked. No picture is in two lists. The truth of the noisy list is not known.
But some pictures of the clean lists have a noisy label as well; those of the validation and the
test list judge the corrections.
"""

import pathlib
from typing import NamedTuple, NoReturn

import numpy as np
from absl import logging

from mlc_jax.data.source import UNKNOWN, Source, Subset
from mlc_jax.errors import InputError
from mlc_jax.files.image_folder import Options, kept, open_store
from mlc_jax.files.own import FIELD
from mlc_jax.files.packed import local_directory
from mlc_jax.files.pictures import Pictures

CLASS_NAMES = (
    "T-shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket",
    "Down coat", "Suit", "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip
# The list of each part.
KEY_LISTS = {
    "noisy": "noisy_train_key_list.txt",
    "clean": "clean_train_key_list.txt",
    "validation": "clean_val_key_list.txt",
    "test": "clean_test_key_list.txt",
}
NOISY_LABELS, CLEAN_LABELS = "noisy_label_kv.txt", "clean_label_kv.txt"


class Clothing1M(NamedTuple):
    """The parts, rows of one source.

    Attributes:
      noisy: labels as given; truth where clean_label_kv.txt has one.
      clean, validation, test: true labels; those as given where noisy_label_kv.txt has one.
      left_out: (key, what is wrong) of pictures that cannot be read.
    """

    noisy: Subset
    clean: Subset
    validation: Subset
    test: Subset
    left_out: tuple[tuple[str, str], ...]

    @property
    def judged(self) -> Subset | None:
        """Validation and test pictures with both labels."""
        held_out = Subset(
            self.test.source,
            *(
                np.concatenate([getattr(self.validation, x), getattr(self.test, x)])
                for x in ("rows", "given", "truth")
            ),
        )
        both = np.flatnonzero(held_out.given != UNKNOWN)
        return held_out.take(both) if len(both) else None


def load(data_dir: str, options: Options) -> Clothing1M:
    """Reads the lists, and looks at all pictures unless they are known to be good.

    Args:
      data_dir: the directory of the data.
      options: how pictures are read.

    Raises:
      InputError: a file is missing or wrong, a key is in two lists or has no label, or pictures
        cannot be decoded and `options` refuses them.
    """
    root = pathlib.Path(local_directory(f"{FIELD}data_dir", data_dir))
    keys = {part: _read_keys(root / name) for part, name in KEY_LISTS.items()}
    _check_disjoint(root, keys)
    everything = [key for part in keys.values() for key in part]
    part_of = np.repeat(np.arange(len(keys)), [len(part) for part in keys.values()])
    given = _labels_of(everything, root / NOISY_LABELS)
    truth = _labels_of(everything, root / CLEAN_LABELS)
    for labels, name, number in ((given, NOISY_LABELS, [0]), (truth, CLEAN_LABELS, [1, 2, 3])):
        for row in np.flatnonzero((labels == UNKNOWN) & np.isin(part_of, number))[:1]:
            key_list = [*KEY_LISTS.values()][part_of[row]]
            _fail(
                root / name, f"has no label of {_text(everything[row])!r}, which is in {key_list}"
            )
    names = np.array(everything)
    store, problems = open_store(f"{FIELD}data_dir", str(root), names, options)
    ids = np.char.decode(names) if problems else names  # A million texts take a while.
    keep = kept(f"{FIELD}data_dir", str(root), ids, problems, options)
    left_out = tuple((_text(everything[row]), problem) for row, problem in problems.items())
    del everything
    names, part_of = names[keep], part_of[keep]
    source: Source = Pictures(store.take(keep), options.geometry, names)
    rows = Subset(source, np.arange(len(names)), given[keep], truth[keep])
    parts = [rows.take(np.flatnonzero(part_of == i)) for i in range(len(keys))]
    for part, name in zip(parts, KEY_LISTS.values(), strict=True):
        if not len(part):
            _fail(root / name, "has no picture that can be read; expected some")
    data = Clothing1M(parts[0], parts[1], parts[2], parts[3], left_out)
    logging.info(
        "Clothing1M: %s; corrections are judged by %d held-out pictures with both labels.",
        ", ".join(f"{len(part)} {name}" for name, part in zip(KEY_LISTS, parts, strict=True)),
        0 if data.judged is None else len(data.judged),
    )
    return data


def _lines(file: pathlib.Path) -> list[bytes]:
    try:
        return file.read_bytes().splitlines()
    except OSError as error:
        raise InputError(
            f"{FIELD}data_dir: {str(file)!r} cannot be read ({error.strerror}); expected images/, "
            f"{NOISY_LABELS}, {CLEAN_LABELS}, {', '.join(KEY_LISTS.values())} there"
        ) from error


def _read_keys(file: pathlib.Path) -> list[bytes]:
    keys = [line.strip() for line in _lines(file)]
    keys = [key for key in keys if key]
    if not keys:
        _fail(file, "is empty, expected the path of a picture in each line")
    return keys


def _check_disjoint(root: pathlib.Path, keys: dict[str, list[bytes]]) -> None:
    seen: dict[bytes, str] = {}
    for part, of_part in keys.items():
        name = KEY_LISTS[part]
        for key in of_part:
            if key in seen:
                also = "twice" if seen[key] == name else f"as {seen[key]} has it"
                _fail(root / name, f"has {_text(key)!r} {also}; expected it in one list, once")
            seen[key] = name


def _labels_of(keys: list[bytes], file: pathlib.Path) -> np.ndarray:
    """int32 `[N]`, UNKNOWN where the file has none."""
    labels: dict[bytes, int] = {}
    numbers = {str(i).encode(): i for i in range(len(CLASS_NAMES))}
    for number, line in enumerate(_lines(file), 1):
        key, _, label = line.strip().rpartition(b" ")
        if label not in numbers or not key:
            if not line.strip():
                continue
            _fail(
                file,
                f"line {number}: got {_text(line)!r}, expected a path and a label from 0 to "
                f"{len(CLASS_NAMES) - 1}",
            )
        if labels.setdefault(key, numbers[label]) != numbers[label]:
            _fail(file, f"line {number}: {_text(key)!r} has another label further up")
    return np.fromiter((labels.get(key, UNKNOWN) for key in keys), np.int32, len(keys))


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _fail(file: pathlib.Path, problem: str) -> NoReturn:
    raise InputError(f"{FIELD}data_dir: {str(file)!r} {problem}")
