"""Stores the measurements of an experiment, so that it can be stopped and resumed.

`DIR/<name>.jsonl` has the settings in its first line. Each further line is one measurement, for
example of one k, with its place and its rows. The whole file is replaced after every measurement.
So a process that is killed loses one measurement at most, and the same command resumes.
"""

import gc
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from mlc_jax import paths
from mlc_jax.config import flatten
from mlc_jax.errors import InputError

Row = dict[str, Any]


class Records:
    """Rows of measurements; each measurement is made once."""

    def __init__(self, path: epath.Path, settings: Mapping[str, Any]):
        """Reads what was measured before.

        Args:
          path: the file; need not exist, its directory must.
          settings: common settings of all measurements in the file, JSON-like.

        Raises:
          InputError: the file cannot be read, or holds measurements with other settings.
        """
        self._path = path
        self._settings = json.loads(json.dumps(settings))  # In the form that will be read back.
        self._rows: dict[str, list[Row]] = {}
        if path.exists():
            self._read()

    def get(self, place: Mapping[str, Any], measure: Callable[[], list[Row]]) -> list[Row]:
        """The rows of a measurement, which is made if the file does not hold it.

        Args:
          place: identifies it in the file: `{"level": 0.2, "k": 5}`.
          measure: makes it; the rows are JSON-like.
        """
        key = _key(place)
        if key not in self._rows:
            self._rows[key] = measure()
            self._write()
        return self._rows[key]

    @property
    def rows(self) -> list[Row]:
        """All that the file holds, in the order they were measured."""
        return [row for rows in self._rows.values() for row in rows]

    def _read(self) -> None:
        name = str(self._path)
        try:
            first, *lines = [json.loads(line) for line in self._path.read_text().splitlines()]
            before = dict(first["settings"])
            self._rows = {_key(line["place"]): line["rows"] for line in lines}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{name!r} cannot be read ({error}); remove it to measure anew"
            ) from error
        now = self._settings
        differing = [
            f"  {field}: {before.get(field)!r} before, {now.get(field)!r} now"
            for field in sorted(before.keys() | now.keys())
            if before.get(field) != now.get(field)
        ]
        if differing:
            raise InputError(
                f"{name!r} was measured with other settings:\n"
                + "\n".join(differing)
                + "\nUse another --workdir, or remove this file."
            )

    def _write(self) -> None:
        lines: list[dict[str, Any]] = [{"settings": self._settings}]
        lines += [{"place": json.loads(key), "rows": rows} for key, rows in self._rows.items()]
        paths.write(self._path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _key(place: Mapping[str, Any]) -> str:
    return json.dumps(place, sort_keys=True)


def flat_settings(config: ConfigDict) -> dict[str, Any]:
    """Every field of a config, named as on the command line: `{"config.noise.level": 0.4}`."""
    return flatten(json.loads(config.to_json()), "config.")


def clear_programs() -> None:
    """Frees compiled programs that only JAX's caches still refer to.

    A program takes tens to hundreds of memory mappings, and Linux allows a process 65,530. An
    experiment that compiles and keeps many programs is aborted ("LLVM ERROR: Unable to
    allocate section memory").
    """
    gc.collect()
    jax.clear_caches()
