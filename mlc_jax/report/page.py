"""The report of a run as one HTML page: it opens offline, loads nothing and runs nothing."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mlc_jax.data.show import show
from mlc_jax.data.source import UNKNOWN, Subset
from mlc_jax.data.votes import is_changed
from mlc_jax.report.contact_sheet import contact_sheet
from mlc_jax.report.pieces import document
from mlc_jax.report.pieces import example as _example
from mlc_jax.report.pieces import image as _image
from mlc_jax.report.pieces import table as _table
from mlc_jax.report.pieces import text as _text
from mlc_jax.report.steps import Steps
from mlc_jax.report.verdict import BY_CLASS, Share, Verdict
from mlc_jax.training.evaluate import Prediction
from mlc_jax.training.run import Run

MOST_CLASSES = 20  # More classes are not readable as a matrix; its largest entries are listed.
NUM_CORRECTIONS = 100

_NUM_PAIRS = 50
_NUM_SOURCES = _NUM_CLASSES = 50


def render(
    run: Run,
    results: dict[str, Any],
    table: str,
    of_noisy: Prediction,
    picture: bytes,
    found: Verdict | None = None,
    by_source: Sequence[dict[str, Any]] = (),
    steps: Steps | None = None,
) -> bytes:
    """The page, UTF-8. All text of the user is escaped; pictures are re-encoded, and small.

    Args:
      run: what was trained.
      results: as in `results.json`.
      table: for the terminal; its first line is the title.
      of_noisy: predictions for the noisy examples that the run exports.
      picture: a PNG of curves and labels.
      found: the verdict, if there is one.
      by_source: see `sources.of_sources`, where there are several.
      steps: what comes next.
    """
    exported, names = run.exported, run.dataset.class_names
    corrected = of_noisy.soft_labels.argmax(axis=-1)
    had = exported.given != UNKNOWN  # Rows with a given label.
    title, *lines = table.split("\n")
    sections = [
        f"<h1>{_text(title)}</h1>",
        *([] if found is None else [_verdict(found)]),
        f"<p>{_text(_summary(results))}</p>",
        _what_to_do(results, steps),
        _of_sources(by_source),
        "<h2>Figures</h2>" + _figures(lines),
        "<h2>Training</h2>" + f'<div class="wide">{_image(picture, "curves and labels")}</div>',
        "<h2>From what to what</h2>" + _matrix(exported.given[had], corrected[had], names),
        "<h2>Classes before and after</h2>" + _sizes(exported.given[had], corrected, names),
        contact_sheet(exported, of_noisy.soft_labels, names),
        _corrections(exported, of_noisy, names),
    ]
    return document(title, sections)


def _summary(results: dict[str, Any]) -> str:
    text = (
        f"{results['labels_changed']:,} of {results['num_noisy']:,} labels were changed. Mean "
        f"confidence in the corrected labels: {results['mean_confidence']:.3f}."
    )
    accuracy = results["test_accuracy"]
    if accuracy is not None and "verdict" not in results:  # Else it is in the verdict.
        text += (
            f" The classifier is right on {100 * accuracy:.1f} % of {results['num_test']:,} "
            "examples that it was not trained on"
        )
        text += "."
    return text


def _share(share: Share) -> list[str]:
    low, high = 100 * share.low, 100 * share.high
    return [f"{100 * (share.estimate or 0):.1f}", f"{low:.0f} to {high:.0f}"]


def _verdict(found: Verdict) -> str:
    """The first section: how good the labels are, according to the checks."""
    text = f"<h2>Verdict</h2><p><b>{_text(found.sentence)}</b></p>"
    if not found.n:
        return text + "".join(f"<p>{_text(x)}</p>" for x in found.lines()[:-1])
    head, *_ = found.lines()
    rows = [
        [_text(found.names[name]), *_share(x)]
        for name, x in found.shares.items()
        if x.estimate is not None
    ]
    notes = found.lines()[1 + len(rows) : -1]
    table = _table(["", "% right", "95 % interval"], rows, numbers=[1, 2])
    by_class = [[_text(name), *_share(x), f"{x.n:,}"] for name, x in found.by_class.items()]
    header = ["class", "% right", "95 % interval", "judged rows"]
    notes = [x for x in notes if not x.startswith(BY_CLASS)]  # A table follows.
    more = len(by_class) - _NUM_CLASSES
    return (
        f"{text}<p>{_text(head)}</p>{table}{''.join(f'<p>{_text(x)}</p>' for x in notes)}"
        f"<p>{BY_CLASS}:</p>{_table(header, by_class[:_NUM_CLASSES], numbers=[1, 2, 3])}"
        + (f"<p>and {more} more, in <code>results.json</code></p>" if more > 0 else "")
    )


def _of_sources(rows: Sequence[dict[str, Any]]) -> str:
    """How good the labels of each source are; sources with most labels first."""
    if not rows:
        return ""

    def figure(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    body = [
        [
            _text(row["source"]), f"{row['labels']:,}", f"{row['checked']:,}",
            figure(row["checked_right"]),
            "" if row["low"] is None else f"{row['low']:.0f} to {row['high']:.0f}",
            figure(row["estimated_right"]), figure(row["bits_per_label"], 2),
            _text(row["confuses_most"]), _text(row["copy_of"]),
        ]
        for row in sorted(rows, key=lambda row: -row["labels"])[:_NUM_SOURCES]
    ]  # fmt: skip
    header = ["source", "labels", "checked", "% right of these", "95 % interval",
              "estimated % right of unchecked", "bits per label", "confuses most",
              "copy of"]  # fmt: skip
    more = len(rows) - len(body)
    note = f"<p>and {more} more, in <code>sources.csv</code></p>" if more else ""
    return "<h2>Sources of labels</h2>" + _table(header, body, numbers=range(1, 7)) + note


def _what_to_do(results: dict[str, Any], steps: Steps | None) -> str:
    if results["corrected_label_accuracy"] is not None or steps is None:  # A benchmark.
        return ""
    again = "and train again, into another directory, adding dataset.checked=FILE."
    if steps.save:
        file = f"<code>{_text(steps.to_check)}</code>"
        again = f"and pass {file} to <code>correct_labels</code> as <code>checks=</code>."
    elif steps.again:
        again = f"then {_command(steps.again)}"
    narrows = _text(f"{steps.narrows} " if steps.narrows else "")
    items = [
        "Look through the corrections below. They are the surest ones: if many of these are "
        "wrong, even more of the others are.",
        f"<code>{_text(steps.labels)}</code> has every row with its <code>corrected_label</code>, "
        "the probability that it is right (<code>confidence</code>), and the probability that the "
        "given label is right (<code>label_quality</code>).",
        f"<code>{_text(steps.to_check)}</code> has rows to check. The random ones show how good "
        f"the labels are; the others make them better. {narrows}Fill in "
        f"<code>checked_label</code> of as many as you like, {again}",
        f"For new examples, in a file NEW like the training file: {_command(steps.predict)}",
    ]
    if steps.save:
        items.insert(1, f"These files are written by: {_command(steps.save)}")
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f"<h2>What to do with it</h2><ol>{listed}</ol>"


def _command(command: str) -> str:
    return f"<pre>{_text(command)}</pre>"


def _figures(lines: Iterable[str]) -> str:
    rows = [re.split(r"(?<=\S) {2,}", line, maxsplit=1) for line in lines]
    return _table([], [[_text(x) for x in row] for row in rows])


def _matrix(given: np.ndarray, corrected: np.ndarray, names: Sequence[str]) -> str:
    """Counts of (given, corrected)."""
    size = len(names)
    pairs = given.astype(np.int64) * size + corrected
    counts = np.bincount(pairs, minlength=size**2).reshape(size, size)
    if size <= MOST_CLASSES:
        header = ["given \\ corrected", *map(_text, names)]
        rows = [
            [f"<b>{_text(name)}</b>", *(_cell(x, row.sum(), i == j) for j, x in enumerate(row))]
            for i, (name, row) in enumerate(zip(names, counts, strict=True))
        ]
        return _table(header, rows, numbers=range(1, size + 1))
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_NUM_PAIRS]
    rows = [
        [_text(names[i // size]), _text(names[i % size]), f"{counts.flat[i]:,}"]
        for i in order.tolist()
        if counts.flat[i]
    ]
    return _table(["given", "corrected", "examples"], rows, numbers=[2])


def _cell(count: int, total: int, stays: bool) -> str:
    """A count; the larger its share of the row, the darker."""
    share = count / total if total else 0.0
    colour = "76,120,168" if stays else "245,133,24"
    return f'<span style="background:rgba({colour},{share:.2f});padding:0 .3rem">{count:,}</span>'


def _sizes(given: np.ndarray, corrected: np.ndarray, names: Sequence[str]) -> str:
    before, after = (np.bincount(x, minlength=len(names)) for x in (given, corrected))
    most = max(1, before.max(), after.max())
    rows = [
        [
            _text(name), f"{one:,}", f"{other:,}",
            f'<span class="bar" style="width:{9 * one / most:.2f}rem"></span><br>'
            f'<span class="bar after" style="width:{9 * other / most:.2f}rem"></span>',
        ]
        for name, one, other in zip(names, before.tolist(), after.tolist(), strict=True)
    ]  # fmt: skip
    return _table(["class", "given", "corrected", ""], rows, numbers=[1, 2])


def _corrections(exported: Subset, of_noisy: Prediction, names: Sequence[str]) -> str:
    corrected = of_noisy.soft_labels.argmax(axis=-1)
    confidence = of_noisy.soft_labels.max(axis=-1)
    changed = np.flatnonzero(is_changed(corrected, exported.given))
    rows = changed[np.argsort(-confidence[changed], kind="stable")][:NUM_CORRECTIONS]
    if not len(rows):
        return "<h2>Corrections</h2><p>No label was changed.</p>"
    subset = exported.take(rows)
    header = ["id", "example", "given", "corrected", "confidence"]
    columns = [
        [_text(name) for name in subset.ids],
        [f'<div class="example">{_example(x)}</div>' for x in show(subset.source, subset.rows)],
        [_text(names[i]) for i in subset.given],
        [_text(names[i]) for i in corrected[rows]],
        [f"{x:.3f}" for x in confidence[rows]],
    ]
    if subset.has_truth:
        header.append("true")
        columns.append([_text(names[i]) for i in subset.truth])
    shown = [list(row) for row in zip(*columns, strict=True)]
    return f"<h2>The {len(rows)} surest corrections</h2>" + _table(header, shown, numbers=[4])
