"""Readers: they map a user's texts or pictures to a classifier's inputs."""

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
    """The reader of a run on texts or on features of pictures; None for other runs."""
    if config.model.name == "bert":
        return encoding.text_reader(config)
    return pictures.picture_reader(config)


def encode_of(config: ConfigDict) -> Callable[..., Any] | None:
    """The function from inputs to a frozen encoder's features, see `datasets.load`, or None."""
    reader = pictures.picture_reader(config)
    return encoding.frozen_encoder(config) if reader is None else reader.options.encode


def save(reader: Reader | None, dataset: Dataset, workdir: epath.Path) -> None:
    """Copies the files that later inputs need into a workdir.

    Raises:
      InputError: the workdir cannot be written.
    """
    if isinstance(reader, TextReader):
        encoding.save(reader.checkpoint, dataset, workdir)
    elif reader is not None:
        pictures.save(reader, workdir)


def from_workdir(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """The config of a run, changed to use the encoder that `save` copied to its workdir.

    Runs on texts that were trained together have no copy; their config does not change.
    """
    if config.dataset.encoder:
        config.dataset.encoder = pictures.from_workdir(workdir) or config.dataset.encoder
        return config
    return encoding.from_workdir(config, workdir)


def of_fit(described: dict[str, Any], workdir: epath.Path) -> Reader:
    """The reader of a call of `fit`, with the encoder that `save` copied to its workdir.

    Raises:
      InputError: the encoder was a user's function.
    """
    if "encoder" not in described:
        return encoding.reader_from_workdir(described, workdir)
    check_function(described["encoder"])
    kept = pictures.from_workdir(workdir)
    return PictureReader(**described | {"encoder": kept or described["encoder"]})


def check_function(encoder: str) -> None:
    """Raises InputError if the name stands for a user's function, see `pictures.name_of`."""
    expect(
        not encoder.startswith(f"{pictures.FUNCTION} "), "reader", None,
        f"the pictures' {encoder} again: mlc_jax.load(workdir, "
        "reader=mlc_jax.PictureReader(function))",
    )  # fmt: skip
