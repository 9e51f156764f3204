"""From picture files as a user has them to the features that a classifier reads."""

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

FOLDER = "encoder"  # In a workdir: what it takes to read pictures later.
FUNCTION = "function"  # Of a user's own: what its name begins with.


@dataclasses.dataclass(frozen=True)
class PictureReader:
    """Paths of pictures -> features that a classifier reads, `[N, H]` float32.

    Attributes:
      encoder: a pretrained image model: a directory, or a name on the Hugging Face hub, of any that
        `transformers` loads; weights of a ResNet-50 (`.safetensors`, `.pth`); or any function from
        a list of pictures (of Pillow, in RGB) to their features. What a function makes is cached if
        it has an attribute `fingerprint`, a text that differs where its features would.
      feature: what a model of `transformers` says: `image_features`, `pooler`, `mean`, `cls`; None
        is the first of these that there is.
      cache_dir: where features are kept; None is ~/.cache/mlc_jax.
      bad: `refuse` or `leave_out`: what is done with pictures that cannot be decoded.
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
          field: what messages call it.
          names: of a table's columns, see `image_folder.listed`.

        Raises:
          InputError: there is none, one cannot be decoded, or the encoder cannot be loaded.
        """
        if isinstance(pictures, pathlib.Path):
            pictures = str(pictures)
        if not isinstance(pictures, str):
            pictures = [*pictures]
        return self.read(image_folder.listed(pictures, field, names), field)

    def read(self, pictures: image_folder.Listed, field: str = "x") -> Source:
        """The same of pictures that were listed before."""
        return image_folder.looked_at(pictures, self.options, field)

    def cached(self, pictures: Sequence[Any], ids: Any = None) -> Source:
        """The same of a list, none of which is left out; `ids` are their names, or None."""
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
        """What a workdir remembers, all that a run depends on."""
        return {"encoder": name_of(self.encoder), "feature": self.feature, "bad": self.bad}

    def with_states(self, dataset: Dataset, method: Method) -> Dataset:
        """The dataset as it is: no layer of the encoder is trained."""
        del method
        return dataset


def name_of(encoder: Any) -> str:
    """What a description calls it."""
    if not callable(encoder):
        return str(encoder)
    return f"{FUNCTION} {getattr(encoder, '__qualname__', type(encoder).__qualname__)}"


@functools.lru_cache(maxsize=1)  # Runs of one process share it, and the model it loads.
def _load(encoder: Any, feature: str | None, cache_dir: str | None) -> PictureEncoder:
    return PictureEncoder(open_model(encoder, feature, "config.dataset.encoder"), cache_dir)


def picture_reader(config: ConfigDict) -> PictureReader | None:
    """That of a config, if it has a frozen encoder of pictures."""
    c = config.dataset
    if not c.encoder:
        return None
    return PictureReader(c.encoder, c.encoder_feature, c.cache_dir, c.bad_images)


def save(reader: PictureReader, workdir: epath.Path) -> None:
    """Copies an encoder into a workdir, to `FOLDER`, if it is none of the user's own functions.

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
    """The encoder that `save` left in a workdir; None if there is none."""
    if not (workdir / FOLDER / CONFIG).exists():
        return None
    return str(paths.local(workdir / FOLDER, "--workdir"))
