"""Messages of errors in the words of Python's arguments."""

import contextlib
import re
from collections.abc import Iterator

from mlc_jax.errors import InputError

# Arguments of `correct_labels`, by the settings that they are.
_ARGUMENTS = {
    "dataset.checked": "checks",
    "dataset.label_columns": "label",
    "cross_fit.num_rounds": "num_epochs",
    "cross_fit.hidden_sizes": "model",
    "model.mlp.hidden_sizes": "model",
}


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Raises an InputError of the block in these words; also a decorator of functions."""
    try:
        yield
    except InputError as error:
        text = str(error)
        for name, argument in _ARGUMENTS.items():
            text = re.sub(rf"(config\.)?{re.escape(name)}(?=:)", argument, text)
        text = re.sub(r"--config\.dataset\.features=([+-]\w+)", r"features=['\1']", text)
        text = re.sub(r"\bconfig\.(?=[a-z_]+(\.|:))", "", text)  # Not of config.json.
        text = "\n".join(dict.fromkeys(text.splitlines()))
        raise type(error)(text) from error.__cause__
