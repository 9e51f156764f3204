"""Whose directory it is: names of files, and the description of a run. Imports no JAX."""

import json
import re
from typing import Any

_PARTIAL = r"(\.partial)?"  # A file that a kill left half-written; see `paths.write`.
# Files that exist before a run starts, or in any directory. Other files show whose directory it is.
HARMLESS = re.compile(
    r"(to_check((_first)?\.csv|_(rows|seen)\.json|\.html)|answers(_used)?\.csv|checks\.txt"
    rf"|left_out\.csv|round_\d+|predictions|lost\+found|\..*|.*\.log){_PARTIAL}"
)
WRITTEN = re.compile(  # All that a run may have written.
    rf"({HARMLESS.pattern}|(config|dataset|results|metrics)\.jsonl?|checkpoints|encoder|report\.html"
    r"|(corrected|corrected_labels|predicted_labels|checked_rows|sources)\.csv|corrected_labels\.npz"
    rf"|training\.png|profile|tensorboard){_PARTIAL}"
)
DESCRIBED = ("config.json", "dataset.json", "results.json")  # JSON that says whose it is.
_NOT_OPENED = re.compile(r"lost\+found|\.(?!lock$).*|.*\.log")


def is_opened(name: str) -> bool:
    """Whether a run reads or writes files of this name, or in a directory of this name."""
    return bool(WRITTEN.fullmatch(name)) and not _NOT_OPENED.fullmatch(name)


def is_config(text: bytes) -> bool:
    """Whether a run wrote this `config.json` or `results.json`; other programs have some, too."""
    content = _object(text)
    return "method" in content and ("dataset" in content or "made_by" in content)


def is_of_others(name: str, text: bytes) -> bool:
    """Whether a file has the name of one of ours, and is a JSON object that no run wrote."""
    is_ours = has_key(text, "class_names") if name == "dataset.json" else is_config(text)
    return bool(_object(text)) and not is_ours


def has_key(text: bytes, key: str) -> bool:
    """Whether the text is a JSON object with that key, as a run writes it."""
    return key in _object(text)


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object; empty if the text is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
