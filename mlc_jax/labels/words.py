"""Error messages that name Python's arguments instead of settings."""

import contextlib
import re
from collections.abc import Iterator

from mlc_jax.errors import InputError

# Arguments of `correct_labels` by setting.
_ARGUMENTS = {
    "dataset.checked": "checks",
    "dataset.label_columns": "label",
    "cross_fit.num_rounds": "num_epochs",
    "cross_fit.hidden_sizes": "model",
    "model.mlp.hidden_sizes": "model",
}
# A name may have spaces.
_FEATURES = re.compile(r"--config\.dataset\.features=([+-].+?)(?= leaves it out|$)", re.MULTILINE)


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Rewrites the message of an InputError in the block; it is also a decorator."""
    try:
        yield
    except InputError as error:
        text = str(error)
        for name, argument in _ARGUMENTS.items():
            text = re.sub(rf"(config\.)?{re.escape(name)}(?=:)", argument, text)
        text = text.replace("config.dataset.class_names", "class_names")
        text = re.sub(_FEATURES, lambda found: f"features=[{found[1]!r}]", text)
        if text.startswith("X: "):  # LabelCorrector takes all columns.
            text = re.sub("say that it is a feature: features=.*", "X.to_numpy()", text)
        text = re.sub(r"\bconfig\.(?=[a-z_]+(\.|:))", "", text)  # Not of config.json.
        text = "\n".join(dict.fromkeys(text.splitlines()))
        raise type(error)(text) from error.__cause__
