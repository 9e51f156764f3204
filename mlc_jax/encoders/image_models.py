"""Frozen image models: they map pictures to features.

There are three kinds: any model that `transformers` loads, which needs PyTorch; a ResNet-50, which
does not; and a user's function. PyTorch is imported when the first picture is encoded, so cached
features do not need it.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging
from PIL import Image

from mlc_jax import paths
from mlc_jax.errors import InputError

RESNET50_ENDINGS = (".pth", ".pt", ".safetensors")
CONFIG = "config.json"

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_SHARDS = "model-*.safetensors"
_RESNET50_SIZE = 224  # Side of the middle square of a picture of 256 pixels.
_RESNET50_BATCH = 32  # Pictures per batch.


class ImageModel(Protocol):
    """Maps pictures to features in two steps; the first runs in threads.

    Attributes:
      fingerprint: differs if features would differ. None if that is unknown: no feature is cached.
    """

    fingerprint: str | None

    def load(self) -> None:
        """Loads the model.

        Raises:
          InputError: it cannot be loaded.
        """
        ...

    def prepare(self, image: Image.Image) -> Any:
        """Prepares one picture in RGB, for `encode`."""
        ...

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """Features `[n, H]` float32 of n prepared pictures."""
        ...

    def save(self, folder: pathlib.Path) -> None:
        """Writes the files for `open_model` into an existing directory, `CONFIG` last."""
        ...


class Function:
    """A user's function from pictures (Pillow, RGB) to features `[n, H]`.

    Args:
      function: if it has an attribute `fingerprint`, a text, features are cached under that name.
    """

    def __init__(self, function: Callable[[list[Image.Image]], Any]):
        self._function = function
        self.fingerprint: str | None = getattr(function, "fingerprint", None)

    def load(self) -> None:
        """Does nothing: the function needs no loading."""

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def encode(self, prepared: Sequence[Image.Image]) -> np.ndarray:
        features = self._function([*prepared])
        if hasattr(features, "detach"):  # It is a PyTorch tensor.
            features = features.detach().cpu().float().numpy()
        features = np.asarray(features)
        if features.ndim != 2 or len(features) != len(prepared) or features.dtype.kind not in "fiu":
            raise InputError(
                f"encoder: made {features.dtype} {list(features.shape)} of {len(prepared)} "
                f"pictures; expected numbers [{len(prepared)}, H], a row of features for each"
            )
        return features.astype(np.float32)

    def save(self, folder: pathlib.Path) -> None:
        """Does nothing: `mlc_jax.load` gets the function as an argument."""


class Transformers:
    """An image model of `transformers`, with its own image processor.

    Args:
      directory: has config.json, preprocessor_config.json and weights.
      feature: one of `config.PICTURE_FEATURES`. None takes `image_features` if the model has them
        (CLIP, SigLIP), else `pooler` if the checkpoint has one, else `mean`.
      field: the setting's name, for messages.

    Raises:
      InputError: the directory lacks files.
    """

    def __init__(self, directory: pathlib.Path, feature: str | None, field: str):
        self._directory, self._feature, self._field = directory, feature, field
        self._files = _files_of(directory, field)
        self.fingerprint: str | None = _hash(self._files, str(feature))

    def load(self) -> None:
        _ = self._processor, self._model

    def prepare(self, image: Image.Image) -> np.ndarray:
        with self._told():
            inputs = self._processor(images=image, return_tensors="np")
            pixels: np.ndarray = inputs["pixel_values"][0]
        return pixels

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        model, read = self._model
        with self._told(), torch.inference_mode():
            pixels = torch.from_numpy(np.stack(prepared)).to(next(model.parameters()).device)
            features = read(pixels.contiguous(memory_format=torch.channels_last))
        array: np.ndarray = features.flatten(1).float().cpu().numpy()
        return array

    def save(self, folder: pathlib.Path) -> None:
        for file in self._files:
            shutil.copyfile(file, folder / file.name)

    @functools.cached_property
    def _processor(self) -> Any:
        self._check_pytorch()
        from transformers import AutoImageProcessor

        with self._told():
            # With torchvision there would be another backend, whose pixels differ a little.
            return AutoImageProcessor.from_pretrained(self._directory, backend="pil")

    @functools.cached_property
    def _model(self) -> tuple[Any, Callable[[Any], Any]]:
        """The model, and the function from pixels to its features."""
        self._check_pytorch()
        import torch
        from transformers import AutoModel

        with self._told(), _quiet():  # Missing parts are reported below.
            model, info = AutoModel.from_pretrained(
                self._directory, output_loading_info=True, dtype=torch.float32
            )
        missing = sorted(info["missing_keys"])
        has_pooler = not any("pooler" in name for name in missing)
        if others := [name for name in missing if "pooler" not in name]:
            raise InputError(
                f"{self._field}: {str(self._directory)!r} has no weights for {len(others)} parts "
                f"of its model, such as {others[0]!r}; expected all of an image model"
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = model.eval().to(device, memory_format=torch.channels_last)
        return model, self._reader(model, has_pooler)

    def _reader(self, model: Any, has_pooler: bool) -> Callable[[Any], Any]:
        feature, has_image_features = self._feature, hasattr(model, "get_image_features")
        vision = getattr(model, "vision_model", model)

        def of_state(reduce: Callable[[Any], Any]) -> Callable[[Any], Any]:
            return lambda pixels: reduce(vision(pixel_values=pixels).last_hidden_state)

        def image_features(pixels: Any) -> Any:
            said = model.get_image_features(pixel_values=pixels)
            return getattr(said, "pooler_output", said)

        def pooler(pixels: Any) -> Any:
            pooled = getattr(vision(pixel_values=pixels), "pooler_output", None)
            if pooled is None:
                if feature == "pooler":
                    self._fail("pooler", "mean or cls: the model has no pooler")
                return mean(pixels)
            return pooled

        # The state is `[n, T, H]` for tokens, `[n, H, h, w]` for a convolutional network.
        mean = of_state(lambda x: x.mean(dim=1) if x.ndim == 3 else x.mean(dim=(2, 3)))
        if feature == "image_features" and not has_image_features:
            self._fail(feature, "pooler, mean or cls: the model has no get_image_features")
        if feature == "pooler" and not has_pooler:
            self._fail(feature, "mean or cls: the checkpoint has no weights of a pooler")
        if feature == "cls":
            return of_state(lambda x: x[:, 0])
        if feature == "mean":
            return mean
        if feature == "pooler":
            return pooler
        if has_image_features:
            return image_features
        if not has_pooler:  # A pooler would get random weights.
            logging.info("The checkpoint has no weights of a pooler: the mean is the feature.")
            return mean
        return pooler

    def _fail(self, got: str, expected: str) -> None:
        raise InputError(f"{self._field}_feature: got {got!r}, expected {expected}")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns every error into an InputError that names the encoder."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # transformers and PyTorch raise any type.
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self._field}: {str(self._directory)!r} cannot be used ({reason}); expected an "
                "image model that transformers knows, and that reads only pixels"
            ) from error

    def _check_pytorch(self) -> None:
        try:
            import torch
        except ImportError as error:
            raise InputError(
                f"{self._field}: {str(self._directory)!r} needs PyTorch, which is not installed; "
                "expected `pip install 'mlc_jax[pictures]'` (docs/pictures.md says how without "
                "CUDA), or weights of a ResNet-50 (.safetensors)"
            ) from error
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(num_cores())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turns off messages and progress bars of transformers."""
    from transformers.utils import logging as theirs

    level, had_bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if had_bar:
            theirs.enable_progress_bar()


class ResNet50:
    """A pretrained ResNet-50 of `mlc_jax.models`, in JAX: the mean of its last layer, `[n, 2048]`.

    As in its pretraining, it sees the middle square of a picture whose shorter side has 256 pixels.

    Args:
      file: its weights, see `load_resnet50`.
    """

    def __init__(self, file: pathlib.Path):
        self._file = file
        self.fingerprint: str | None = _hash([file], "resnet50")

    def load(self) -> None:
        _ = self._encode

    def prepare(self, image: Image.Image) -> np.ndarray:
        shorter, size = min(image.size), _RESNET50_SIZE
        width, height = (size * 8 // 7 * x // shorter for x in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - size) / 2), round((height - size) / 2)
        return np.asarray(image.crop((left, top, left + size, top + size)))

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        pixels = np.stack(prepared)
        filled = np.resize(pixels, (_RESNET50_BATCH, *pixels.shape[1:]))  # Compiled once.
        features: np.ndarray = np.asarray(self._encode(filled))[: len(pixels)]
        return features

    def save(self, folder: pathlib.Path) -> None:
        shutil.copyfile(self._file, folder / f"resnet50{self._file.suffix}")
        (folder / CONFIG).write_text("{}\n")

    @functools.cached_property
    def _encode(self) -> Callable[[np.ndarray], Any]:
        import jax

        from mlc_jax.files.pictures import PREPARE
        from mlc_jax.models import ResNet50 as Network
        from mlc_jax.models.pretrained import with_initial
        from mlc_jax.models.resnet50_checkpoint import load_resnet50

        model = Network(1)
        example = np.zeros((1, _RESNET50_SIZE, _RESNET50_SIZE, 3), np.float32)
        fresh = jax.eval_shape(
            functools.partial(model.init, train=False), jax.random.key(0), example
        )
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), fresh)
        loaded = load_resnet50(model, self._file)
        trees = {name: with_initial(zeros[name], _part(zeros[name], loaded)) for name in zeros}

        def encode(pixels: Any) -> Any:
            return model.apply(trees, PREPARE(pixels), train=False)[1]

        return jax.jit(encode)


def open_model(encoder: Any, feature: str | None = None, field: str = "encoder") -> ImageModel:
    """Opens an image model by name, directory, file of weights, or function.

    Args:
      encoder: a directory, a name on the Hugging Face hub, weights of a ResNet-50
        (`.safetensors`, `.pth`), or any function from pictures to features; see `Function`.
      feature: see `Transformers`.
      field: the setting, for messages.

    Raises:
      InputError: the model does not exist.
    """
    if callable(encoder):
        return Function(encoder)
    name = os.fspath(encoder)
    place = paths.expanded(name)
    paths.check_regular(place, field)
    kept = sorted(place.glob("resnet50.*")) if place.is_dir() else []
    if kept:  # It is in a workdir.
        return ResNet50(kept[0])
    if name.endswith(RESNET50_ENDINGS):
        if not place.is_file():
            raise InputError(f"{field}: no file {name!r}; expected weights of a ResNet-50")
        return ResNet50(place)
    if not place.is_dir():
        place = _downloaded(name, field)
    return Transformers(place, feature, field)


def is_at_hand(name: str) -> bool:
    """Whether a model of the Hugging Face hub was already downloaded."""
    return _at_hand(name) is not None


def _at_hand(name: str) -> pathlib.Path | None:
    import huggingface_hub

    try:
        place = pathlib.Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        _files_of(place, "")
    except Exception:  # Any error means that it is missing.
        return None
    return place


def _downloaded(name: str, field: str) -> pathlib.Path:
    """The directory of a model of the hub; a model is downloaded only once."""
    import huggingface_hub

    place = _at_hand(name)
    if place is not None:
        return place
    try:
        patterns = [CONFIG, *_PROCESSORS]
        files = huggingface_hub.HfApi().list_repo_files(name)
        weights = next((x for x in _WEIGHTS if x in files), _WEIGHTS[0])
        patterns += [weights] + ([_SHARDS] if weights.endswith("index.json") else [])
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # The hub raises many types.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"{field}: got {name!r}, expected a directory, weights of a ResNet-50 "
            f"(.safetensors, .pth), or a name on the Hugging Face hub that can be downloaded "
            f"({reason})"
        ) from error


def _files_of(directory: pathlib.Path, field: str) -> list[pathlib.Path]:
    """All files of a model, `CONFIG` last.

    Raises:
      InputError: one is missing.
    """
    weights = [directory / name for name in _WEIGHTS if (directory / name).exists()][:1]
    processors = [directory / name for name in _PROCESSORS if (directory / name).exists()]
    for found, expected in (
        (weights, " or ".join(_WEIGHTS)),
        (processors, _PROCESSORS[0]),
        ((directory / CONFIG).exists(), CONFIG),
    ):
        if not found:
            raise InputError(
                f"{field}: {str(directory)!r} has no {expected}; expected an image model and its "
                "image processor, as `save_pretrained` of transformers writes them"
            )
    if weights[0].suffix == ".json":
        weights += sorted(directory.glob(_SHARDS))
    return [*weights, *processors, directory / CONFIG]


def _hash(files: Sequence[pathlib.Path], more: str) -> str:
    digest = hashlib.blake2b(more.encode(), digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _part(tree: Any, loaded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The loaded values of one collection, parameters or statistics; their names differ."""
    from flax import traverse_util

    paths = traverse_util.flatten_dict(tree, sep="/")
    return {name: x for name, x in loaded.items() if name in paths}


def num_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
