"""Whose directory it is: names of files, and the description of a run. Imports no JAX."""

import json
import re
from typing import Any

# Files that exist before a run starts, or in any directory. Other files show whose directory it is.
HARMLESS = re.compile(
    r"to_check((_first)?\.csv|_(rows|seen)\.json|\.html)|answers(_used)?\.csv|checks\.txt|left_out\.csv|round_\d+|predictions"
    r"|lost\+found|\..*|.*\.log"
)
WRITTEN = re.compile(  # All that a run may have written.
    rf"{HARMLESS.pattern}|(config|dataset|results|metrics)\.jsonl?|checkpoints|encoder|report\.html"
    r"|(corrected|corrected_labels|predicted_labels|checked_rows|sources)\.csv|corrected_labels\.npz"
    r"|training\.png|profile|tensorboard"
)
_NOT_OPENED = re.compile(r"lost\+found|\.(?!lock$).*|.*\.log")


def is_opened(name: str) -> bool:
    """Whether a run reads or writes files of this name, or in a directory of this name."""
    name = name.removesuffix(".partial")
    return bool(WRITTEN.fullmatch(name)) and not _NOT_OPENED.fullmatch(name)


def is_config(text: bytes) -> bool:
    """Whether the text is the description of a run: many programs have a `config.json`."""
    content = _object(text)
    return "method" in content and ("dataset" in content or "made_by" in content)


def is_of_others(text: bytes) -> bool:
    """Whether it is a whole JSON object, and not the description of a run."""
    return bool(_object(text)) and not is_config(text)


def has_key(text: bytes, key: str) -> bool:
    """Whether the text is a JSON object with that key, as a run writes it."""
    return key in _object(text)


def _object(text: bytes) -> dict[str, Any]:
    """Empty if it is no JSON object."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
