"""Every setting in one place: its default, its check and its meaning.

`python -m mlc_jax.config` prints them all. A config file (configs/digits.py) overrides defaults for
its dataset; the command line overrides both. This module imports neither JAX nor TensorFlow, so a
bad setting is reported at once.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

from mlc_jax.config import data, models, training
from mlc_jax.config.checks import Check as Check
from mlc_jax.config.checks import Setting
from mlc_jax.config.choices import *  # noqa: F403
from mlc_jax.config.relations import relations
from mlc_jax.errors import InputError

SETTINGS: dict[str, Setting] = {
    f"{section}.{name}".removeprefix("."): setting
    for section, settings in (*data.SECTIONS, *models.SECTIONS, *training.SECTIONS)
    for name, setting in settings.items()
}


# Removed settings, and the values with which an older workdir behaves as today without them. With
# any other value the workdir can still be loaded, but not resumed.
REMOVED: dict[str, tuple[Any, ...]] = {
    "compare": (False, True),  # It did not touch what is learned.
    "dataset.holdout_per_class": (0,),
    # In Python they stay: mlc_jax.adam(..., b1=0.8).
    **{f"{x}_optimizer.b1": (0.9,) for x in ("main", "meta")},
    **{f"{x}_optimizer.b2": (0.999,) for x in ("main", "meta")},
}


def get_config() -> ConfigDict:
    """The default config; fields are locked, so a misspelt one is an error."""
    config = ConfigDict()
    for field, setting in SETTINGS.items():
        *sections, name = field.split(".")
        place = config
        for section in sections:
            if section not in place:
                place[section] = ConfigDict()
            place = place[section]
        default = setting.default
        place[name] = config_dict.placeholder(setting.kind) if default is None else default
    config.lock()
    return config


def formerly() -> dict[str, Any]:
    """The value of each setting in workdirs that are too old to have it."""
    return {
        field: setting.default if setting.formerly is None else setting.formerly
        for field, setting in SETTINGS.items()
    }


def complete(saved: ConfigDict) -> ConfigDict:
    """Completes the config of an older workdir: missing settings get their former values.

    Raises:
      InputError: it has a setting that this version does not know.
    """
    config = get_config()
    flat = formerly() | flatten(saved.to_dict())
    unknown = sorted(flat.keys() - SETTINGS.keys() - REMOVED.keys())
    if unknown:
        raise InputError(f"config.{unknown[0]}: there is no such setting")
    with config.ignore_type():
        config.update_from_flattened_dict({k: x for k, x in flat.items() if k not in REMOVED})
    return config


def meant(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat config in a normal form: two configs that mean the same are equal.

    Args:
      flat: `{'a.b': value}`, of any version.
    """
    flat = {k: x for k, x in flat.items() if k not in REMOVED or x not in REMOVED[k]}
    chosen_by_data = (*OWN_FILES, *IMAGE_FILES)  # noqa: F405
    if flat.get("dataset.name", OWN_FILES[0]) not in chosen_by_data:  # noqa: F405
        # For all other data None is False, as older versions wrote it.
        flat["dataset.standardize"] = flat.get("dataset.standardize") or False
    return flat


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict to `{'a.b': value}`."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def validate(config: ConfigDict, *, num_devices: int | None = None) -> None:
    """Raises one InputError for all wrong settings.

    Each line names the field, the value and what would be right. Class sizes and label files are
    checked when they are read.

    Args:
      config: see `get_config`.
      num_devices: number of devices that share a batch; None skips that check, and needs no JAX.
    """
    values = {field: value_of(config, field) for field in SETTINGS}
    problems: dict[str, str] = {}
    for field, setting in SETTINGS.items():
        if not setting.check.ok(values[field]):
            problems[field] = setting.check.expected
    for field, ok, expected in relations(values, num_devices):
        if not ok and field not in problems:
            problems[field] = expected
    if problems:
        raise InputError(
            "\n".join(
                f"config.{field}: got {values[field]!r}, expected {expected}"
                for field, expected in problems.items()
            )
        )


def value_of(config: ConfigDict, field: str) -> Any:
    """The value of a field such as `noise.level`."""
    value = config
    for name in field.split("."):
        value = value[name]
    return value


def column_names(columns: str | None) -> dict[str, str]:
    """The file's name of each of our columns that has another name there, by `dataset.columns`."""
    return dict(part.split("=", 1) for part in columns.split(",")) if columns else {}


def describe(word: str = "") -> str:
    """Settings with default and meaning, as text.

    Args:
      word: only settings with this word in their name or meaning; "" is all.
    """
    lines = []
    for field, setting in SETTINGS.items():
        if word.casefold() in f"{field} {setting.meaning}".casefold():
            lines += [f"{field} = {setting.default!r}", f"    {setting.meaning}"]
    return "\n".join(lines)
