"""Config files, loaded for `--config=mine.py`; an error names the line."""

import ast
import difflib
import importlib.machinery
import importlib.util
import os
import re
import traceback
import types
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from mlc_jax.config import SETTINGS, flatten
from mlc_jax.errors import InputError

_SOURCE = "the config of mlc_jax.config.get_config(), changed"
_SHOWN = 200  # Characters of an error's text.


class WrongFile(Exception):
    """A wrong config file. It is no ValueError, because absl would reword that."""


class ConfigFile(flags.ArgumentParser):
    """The config of a flag: `FILE.py`, or `FILE.py:KIND`, whose `get_config` takes the kind."""

    def parse(self, path: str) -> ConfigDict:
        """Raises WrongFile, in one line."""
        file, colon, kind = path.partition(":")
        if os.path.exists(file) and not os.path.isfile(file):
            raise WrongFile(f"--config: {file!r} is a directory or a device; expected a .py file")
        try:
            config = _load(file).get_config(*([kind] if colon else []))
            problem = _problem(config)
        except InputError as error:  # It comes from a preset, which names its kinds.
            raise WrongFile(str(error)) from error
        except FileNotFoundError as error:
            if error.filename != file:
                raise WrongFile(_place(file, error)) from error
            raise WrongFile(f"--config: {error}") from error
        except (Exception, SystemExit) as error:  # Whatever a user's program may raise.
            raise WrongFile(_place(file, error)) from error
        if problem:
            raise WrongFile(f"--config: {file!r}, line {_line_of_function(file)}: {problem}")
        config.lock()
        return config


def _load(file: str) -> types.ModuleType:
    loader = importlib.machinery.SourceFileLoader("config_config", file)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _problem(config: Any) -> str:
    """The problem with the result of `get_config`; empty if there is none."""
    if not isinstance(config, ConfigDict):
        kind = "nothing" if config is None else type(config).__name__
        return f"get_config returns {kind}, expected {_SOURCE}"
    there = flatten(config.to_dict())
    for name in [x for x in there if x not in SETTINGS]:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        meant = f", such as {near[0]}" if near else ""
        return f"config.{name}: there is no such setting; expected those that there are{meant}"
    for name in [x for x in SETTINGS if x not in there]:
        return f"config.{name}: is not there; expected {_SOURCE}"
    return ""


def _place(file: str, error: BaseException) -> str:
    """The error in one line, with the last line of the file that was running."""
    what = type(error).__name__
    if isinstance(error, SyntaxError) and error.filename == file:
        line, text = error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((x.lineno for x in reversed(frames) if x.filename == file), None)
        text = str(error)
    if isinstance(error, AttributeError) and line is None:
        what, text = "", "has no function get_config; expected one that returns " + _SOURCE
    elif isinstance(error, TypeError) and line is None:  # The call itself failed.
        line = _line_of_function(file)
    # ml_collections lists all fields before its advice, and quotes the whole.
    text = re.sub(
        r"^'(.*?) Other fields present.*?(Did you mean.*)?'$", _shortened, text, flags=re.S
    )
    text = " ".join(text.split())[:_SHOWN]
    where = f"{file!r}" + (f", line {line}" if line else "")
    return f"--config: {where}: " + ": ".join(filter(None, [what, text]))


def _shortened(found: re.Match[str]) -> str:
    return " ".join(filter(None, found.groups()))


def _line_of_function(file: str) -> int:
    """The line of `get_config`, or of its import; 1 if it cannot be found."""
    with open(file, encoding="utf-8") as stream:
        tree = ast.parse(stream.read())
    for node in tree.body:
        names = [getattr(node, "name", "")]
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [x.asname or x.name for x in node.names]
        if isinstance(node, ast.Assign):
            names = [getattr(x, "id", "") for x in node.targets]
        if "get_config" in names:
            return node.lineno
    return 1
