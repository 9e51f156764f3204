"""Readers: from texts or pictures as a user has them to what a classifier reads."""

from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from mlc_jax.data.dataset import Dataset
from mlc_jax.encoders import encoding, pictures
from mlc_jax.encoders.encoding import TextReader
from mlc_jax.encoders.pictures import PictureReader
from mlc_jax.errors import expect

Reader = TextReader | PictureReader


def of_config(config: ConfigDict) -> Reader | None:
    """That of a run on texts, or on features of pictures; None of any other."""
    if config.model.name == "bert":
        return encoding.text_reader(config)
    return pictures.picture_reader(config)


def encode_of(config: ConfigDict) -> Callable[..., Any] | None:
    """To the features of a frozen encoder, see `datasets.load`; None of a config that has none."""
    reader = pictures.picture_reader(config)
    return encoding.frozen_encoder(config) if reader is None else reader.options.encode


def save(reader: Reader | None, dataset: Dataset, workdir: epath.Path) -> None:
    """Copies into a workdir what it takes to read inputs later.

    Raises:
      InputError: it cannot be written.
    """
    if isinstance(reader, TextReader):
        encoding.save(reader.checkpoint, dataset, workdir)
    elif reader is not None:
        pictures.save(reader, workdir)


def from_workdir(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """The config of a run, with the encoder that `save` left in its workdir.

    Runs that were trained together leave none of texts: theirs stay as they are.
    """
    if config.dataset.encoder:
        config.dataset.encoder = pictures.from_workdir(workdir) or config.dataset.encoder
        return config
    return encoding.from_workdir(config, workdir)


def of_fit(described: dict[str, Any], workdir: epath.Path) -> Reader:
    """The reader that `fit` was given, with the encoder that `save` left in its workdir.

    Raises:
      InputError: that of a user's own function.
    """
    if "encoder" not in described:
        return encoding.reader_from_workdir(described, workdir)
    check_function(described["encoder"])
    kept = pictures.from_workdir(workdir)
    return PictureReader(**described | {"encoder": kept or described["encoder"]})


def check_function(encoder: str) -> None:
    """Raises InputError for what stands for a function of a user's own, see `pictures.name_of`."""
    expect(
        not encoder.startswith(f"{pictures.FUNCTION} "), "reader", None,
        f"the pictures' {encoder} again: mlc_jax.load(workdir, "
        "reader=mlc_jax.PictureReader(function))",
    )  # fmt: skip
