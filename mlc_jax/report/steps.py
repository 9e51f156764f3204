"""The next steps after a run: files to open, commands to run."""

import os
from typing import NamedTuple

from etils import epath

from mlc_jax import paths
from mlc_jax.errors import readable


class Steps(NamedTuple):
    """Files and commands of the next steps.

    Attributes:
      report, labels: files to open.
      to_check: the file to fill in; "" if there is nothing to check.
      again: the command that trains the next round; "" if it is not known.
      predict: the command that predicts new examples, with NEW in place of their file.
      narrows: how the random rows of `to_check` would narrow the interval; "" if they do not.
      save: the Python line that writes these files; "" if they are there.
    """

    report: str
    labels: str
    to_check: str
    again: str
    predict: str
    narrows: str = ""
    save: str = ""

    def text(self) -> str:
        """The last lines in the terminal."""
        lines = [f"Report: {self.report}", f"Labels: {self.labels}"]
        if self.to_check and self.again:
            lines += [f"Next: fill in checked_label in {self.to_check}, as far as you like, then",
                      f"  {self.again}", *([self.narrows] if self.narrows else [])]  # fmt: skip
        else:
            lines += ["New examples:", f"  {self.predict}"]
        return "\n".join(map(readable, lines))


def shown_path(path: epath.PathLike) -> str:
    """The relative path if it is below the current directory, else the absolute one."""
    text = os.fspath(path)
    if paths.is_remote(text):
        return text
    relative = os.path.relpath(text)
    return text if relative.startswith(os.pardir) else relative
