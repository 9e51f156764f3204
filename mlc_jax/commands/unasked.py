"""The error for pictures without an encoder: it names some, and their time on this machine."""

import importlib.util

from ml_collections import ConfigDict

from mlc_jax import config as settings_
from mlc_jax.commands import kinds
from mlc_jax.errors import InputError
from mlc_jax.files import image_folder
from mlc_jax.files.images import parts

# Names on the Hugging Face hub, with their sizes.
NAMED = (
    ("facebook/dinov2-small", "22 million parameters"),
    ("microsoft/resnet-18", "11 million"),
)
_MEASURED = 16  # Pictures that are timed.


def without_encoder(config: ConfigDict) -> InputError:
    """The error if no encoder was named; none is downloaded unless the user names it.

    Args:
      config: of the pictures.
    """
    named = " or ".join(f"--encoder={name} ({about})" for name, about in NAMED)
    times = [x for name, _ in NAMED if (x := _time(name, config))]
    return InputError(
        f"--encoder: got None, expected a pretrained image model, such as {named}; or a directory, "
        "or any that transformers loads. It is downloaded once, and only if you name it"
        + "".join(f". {x}" for x in times)
    )


def _time(name: str, config: ConfigDict) -> str:
    """How long an encoder takes for all pictures; "" where it would have to be downloaded."""
    if importlib.util.find_spec("torch") is None:
        return ""
    from mlc_jax.encoders import image_models, picture_features

    if not image_models.is_at_hand(name):
        return ""
    names = settings_.column_names(config.dataset.columns)
    pictures = image_folder.listed(config.dataset.data, kinds.FIELD, names)
    model = image_models.open_model(name, None, "--encoder")
    first = parts.stored(pictures.root, pictures.names[:_MEASURED])
    seconds = picture_features.seconds(model, first)
    if not seconds:
        return ""
    number = len(pictures.names)
    return (
        f"{name} is here, and takes {_shown(number * seconds / len(first))} for these {number:,} "
        f"pictures on this machine, going by {len(first)} of them"
    )


def _shown(seconds: float) -> str:
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{max(seconds, 1):.0f} s"
