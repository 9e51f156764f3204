"""Settings on the command line, and error messages in the words that were typed."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from mlc_jax.config import SETTINGS
from mlc_jax.errors import InputError

_FLAG = re.compile(r"--(config\.)?([A-Za-z_][\w.]*)(=.*)?$", re.DOTALL)
_KINDS: dict[type, str] = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a text",
    tuple: "values such as (64, 32)",
}  # fmt: skip
# Settings in messages: `config.dataset.data`, `--config.seed`, `dataset.drawn`.
_NAMED = re.compile(r"(?<![\w./'\"])(--)?(config\.)?([a-z_]\w*(?:\.[a-z_]\w*)*)(?![\w/'\"])")


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments, and settings among them: `--dataset.drawn=random` or `--config.dataset.drawn=...`.

    Args:
      arguments: as they are typed.

    Returns:
      The settings as `dataset.drawn=random`; and all other arguments.

    Raises:
      InputError: there is no such setting, or it has no value.
    """
    settings, rest = [], []
    for argument in arguments:
        match = _FLAG.match(argument)
        name = match[2] if match else ""
        if not match or not (match[1] or "." in name or name in SETTINGS):
            rest.append(argument)
            continue
        if name not in SETTINGS:
            _fail_at(name, argument.partition("=")[0])
        if match[3] is None:
            raise InputError(f"--{name}: has no value; expected --{name}=VALUE")
        settings.append(name + match[3])
    return settings, rest


def _fail_at(name: str, typed: str) -> NoReturn:
    near = difflib.get_close_matches(name, SETTINGS, n=1)
    meant = f", such as --{near[0]}" if near else ""
    raise InputError(
        f"{typed}: there is no such setting; expected one that `mlc-jax settings` lists{meant}"
    )


def applied(config: ConfigDict, settings: Sequence[str]) -> ConfigDict:
    """A config with typed settings, whose values are read as by `python -m mlc_jax.main`.

    Args:
      config: may be changed in place.
      settings: `dataset.drawn=random`, ...

    Raises:
      InputError: a value of another type.
    """
    for setting in settings:
        name, _, value = setting.partition("=")
        arguments = ["mlc-jax", f"--config.{setting}"]
        values = flags.FlagValues()  # Of our own: no program's flags are touched.
        try:
            config_flags.DEFINE_config_dict(
                "config", config, flag_values=values, lock_config=True, sys_argv=arguments
            )
            values(arguments)
            config = values["config"].value
        except (flags.Error, ValueError, TypeError) as error:
            default, kind = SETTINGS[name].default, SETTINGS[name].kind
            kind = kind if default is None else type(default)
            raise InputError(f"--{name}: got {value!r}, expected {_KINDS[kind]}") from error
    return config


def listed(names: str | None) -> list[str]:
    """The names in a setting NAME[,NAME...]."""
    return [name for name in (names or "").split(",") if name]


def told(text: str, words: Mapping[str, str]) -> str:
    """A message in the words that were typed.

    Args:
      text: with names of settings.
      words: names of settings on this command line: `{"dataset.data": "FILE"}`. Other settings are
        called `--NAME`.
    """

    def word(match: re.Match[str]) -> str:
        name = match[3]
        if name not in SETTINGS or not (match[2] or "." in name):
            return match[0]
        return words.get(name, f"--{name}")

    return _NAMED.sub(word, text)
