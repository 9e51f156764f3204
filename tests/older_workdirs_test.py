"""What is promised between versions: an older workdir goes on as it was, or is refused.

Its user types the command of today: today's config file with the overrides of then. Runs that take
the workdir's own config are in train_test.py.
"""

import csv
import json
import pathlib
import shutil

import pytest

from mlc_jax import config as settings
from mlc_jax.commands import train
from mlc_jax.errors import CheckpointError
from mlc_jax.report import report
from mlc_jax.workdir import checkpoint

OLD_WORKDIR = pathlib.Path(__file__).parent / "data" / "workdir_993cefd"
STEP, NUM_STEPS = 42, 84
OVERRIDES = {"checkpoint_every_steps": STEP}  # And those of `tiny_config`.


def _older(tmp_path, **removed):
    """A copy of the kept workdir, made with these settings, too, and the directory of its step."""
    workdir = shutil.copytree(OLD_WORKDIR, tmp_path / "run", ignore=shutil.ignore_patterns("end"))
    step = workdir / checkpoint.DIRECTORY / str(STEP)
    file = step / "progress" / "metadata"
    progress = json.loads(file.read_text())
    progress["config"]["dataset"] |= removed
    file.write_text(json.dumps(progress))
    return workdir, step


# It trains half a run: that today's command makes of an older workdir what was made then.
def test_todays_config_goes_on_with_an_older_workdir(tmp_path, tiny_config, standard_promotion):
    workdir, _ = _older(tmp_path, holdout_per_class=0)  # Removed; without it the same happens.
    results = train.train_and_evaluate(tiny_config(**OVERRIDES), str(workdir), show_progress=False)
    assert checkpoint.finished_steps(workdir / checkpoint.DIRECTORY) == [STEP, NUM_STEPS]
    want = json.loads((OLD_WORKDIR / "end" / report.RESULTS_FILE).read_text())
    for name in want.keys() - {"train_seconds"}:
        assert results[name] == want[name], name
    ours, theirs = (
        list(csv.DictReader((place / report.LABELS_FILE).open(newline="")))
        for place in (workdir, OLD_WORKDIR / "end")
    )
    for name in ("id", "given_label", "corrected_label", "is_label_issue"):
        assert [row[name] for row in ours] == [row[name] for row in theirs], name


def test_what_cannot_go_on_is_named_and_left_alone(tmp_path, tiny_config, standard_promotion):
    """A removed setting at a value that meant something, and one that says something else now."""
    workdir, step = _older(tmp_path, holdout_per_class=2)
    config = tiny_config(**OVERRIDES, **{"dataset.standardize": True})
    before = {path: path.read_bytes() for path in step.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as error:
        train.train_and_evaluate(config, str(workdir), show_progress=False)
    assert str(error.value).splitlines() == [
        f"{step} was made with another config:",
        "  config.dataset.holdout_per_class: 2 in the checkpoint, removed now",
        "  config.dataset.standardize: False in the checkpoint, True now",
        "Use another --workdir, or the version of mlc_jax that made it.",
    ]
    assert {path: path.read_bytes() for path in step.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "are_the_same"),
    [("digits", True), ("ag_news", True), ("clothing1m", False), ("arrays", False)],
)
def test_none_to_standardize_means_what_it_means_for_the_data(name, are_the_same):
    """Of clothing1m it is ImageNet's mean and deviation; own files choose by what they hold."""
    saved, given = ({"dataset.name": name, "dataset.standardize": x} for x in (False, None))
    assert (settings.meant(saved) == settings.meant(given)) == are_the_same


def test_a_removed_setting_is_gone():
    assert not settings.REMOVED.keys() & settings.SETTINGS.keys()
