"""Maps a user's picture files to a classifier's features."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mlc_jax import paths
from mlc_jax.data.dataset import Dataset
from mlc_jax.data.source import Source
from mlc_jax.encoders.image_models import CONFIG, open_model
from mlc_jax.encoders.picture_features import EncodedPictures, PictureEncoder
from mlc_jax.errors import InputError
from mlc_jax.files import image_folder
from mlc_jax.files.pictures import Geometry
from mlc_jax.methods import Method

FOLDER = "encoder"  # The folder of a workdir with the files that later pictures need.
FUNCTION = "function"  # The name of a user's function begins with this.


@dataclasses.dataclass(frozen=True)
class PictureReader:
    """Maps paths of pictures to a classifier's features, `[N, H]` float32.

    Attributes:
      encoder: a pretrained image model that `transformers` loads, as a directory or a name on the
        Hugging Face hub; weights of a ResNet-50 (`.safetensors`, `.pth`); or a function. A function
        maps a list of n pictures (of Pillow, in RGB) to features `[n, H]`. They are cached if it
        has an attribute `fingerprint`, a text that differs if its features would differ.
      feature: the output of a model of `transformers`: `image_features`, `pooler`, `mean`, `cls`;
        None takes the first of these that it has.
      cache_dir: directory for features; None is ~/.cache/mlc_jax.
      bad: `refuse` or `leave_out` pictures that cannot be decoded.
    """

    kind: ClassVar[str] = "image_folder"

    encoder: Any
    feature: str | None = None
    cache_dir: str | None = None
    bad: str = "refuse"

    def __call__(self, pictures: Any, field: str = "x", names: Any = None) -> Source:
        """A source of a list of paths, of all pictures below a directory, or of a table of paths.

        Args:
          pictures: see above.
          field: the name in messages.
          names: a table's columns, see `image_folder.listed`.

        Raises:
          InputError: there is no picture, one cannot be decoded, or the encoder cannot be loaded.
        """
        if isinstance(pictures, pathlib.Path):
            pictures = str(pictures)
        if not isinstance(pictures, str):
            pictures = [*pictures]
        return self.read(image_folder.listed(pictures, field, names), field)

    def read(self, pictures: image_folder.Listed, field: str = "x") -> Source:
        """A source of listed pictures; errors as for a call."""
        return image_folder.looked_at(pictures, self.options, field)

    def cached(self, pictures: Sequence[Any], ids: Any = None) -> Source:
        """A source of a list of pictures, none of them left out; `ids` are names, or None."""
        source = dataclasses.replace(self, bad="refuse")(pictures)
        if ids is None:
            return source
        assert isinstance(source, EncodedPictures)
        return source.named(np.asarray(ids))

    @property
    def options(self) -> image_folder.Options:
        """How pictures are read; see `image_folder.Options`."""
        encode = _load(self.encoder, self.feature, self.cache_dir)
        return image_folder.Options(Geometry(), self.bad, self.cache_dir, encode=encode)

    def to_json(self) -> dict[str, Any]:
        """The settings that a run depends on, for its workdir."""
        return {"encoder": name_of(self.encoder), "feature": self.feature, "bad": self.bad}

    def with_states(self, dataset: Dataset, method: Method) -> Dataset:
        """Returns the dataset unchanged: no layer of the encoder is trained."""
        del method
        return dataset


def name_of(encoder: Any) -> str:
    """The encoder's name in a description."""
    if not callable(encoder):
        return str(encoder)
    return f"{FUNCTION} {getattr(encoder, '__qualname__', type(encoder).__qualname__)}"


@functools.lru_cache(maxsize=1)  # Runs of one process share it and its model.
def _load(encoder: Any, feature: str | None, cache_dir: str | None) -> PictureEncoder:
    return PictureEncoder(open_model(encoder, feature, "config.dataset.encoder"), cache_dir)


def picture_reader(config: ConfigDict) -> PictureReader | None:
    """The reader of a config with a frozen encoder of pictures; else None."""
    c = config.dataset
    if not c.encoder:
        return None
    return PictureReader(c.encoder, c.encoder_feature, c.cache_dir, c.bad_images)


def save(reader: PictureReader, workdir: epath.Path) -> None:
    """Copies an encoder to `FOLDER` of a workdir, unless it is a user's function.

    Raises:
      InputError: it cannot be written.
    """
    folder = workdir / FOLDER
    if (folder / CONFIG).exists() or callable(reader.encoder):  # The config is written last.
        return
    try:
        with paths.written_locally(folder) as local:
            _load(reader.encoder, reader.feature, reader.cache_dir).model.save(local)
    except OSError as error:
        raise InputError(
            f"--workdir: cannot write to {str(folder)!r} ({error.strerror}); expected a directory "
            "with room for the encoder"
        ) from error


def from_workdir(workdir: epath.Path) -> str | None:
    """The encoder that `save` copied to a workdir, or None."""
    if not (workdir / FOLDER / CONFIG).exists():
        return None
    return str(paths.local(workdir / FOLDER, "--workdir"))
