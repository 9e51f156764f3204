"""report.html: nothing of a user's text is markup, nothing is loaded, and a browser shows it."""

import html.parser
import pathlib
import re
import shutil
import subprocess
import time
import types

import numpy as np
import pytest

from mlc_jax.data.source import UNKNOWN, ArraySource, Subset
from mlc_jax.report import page
from mlc_jax.report.steps import Steps
from mlc_jax.training.evaluate import Prediction

BROWSER = next(
    (x for x in map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome")) if x),
    None,
)
HOSTILE = "</td></table></style><script>console.error('run')</script><img src=x onerror=alert(1)>&"
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f"
    b"\x15\xc4\x89\x00\x00\x00\rIDATx\xdac\xfc\xcf\xc0P\x0f\x00\x04\x85\x01\x80\x84\xa9\x8c!\x00"
    b"\x00\x00\x00IEND\xaeB`\x82"
)


class _Source(ArraySource):
    """One that says itself what a reader sees."""

    def __init__(self, size, shown, ids):
        super().__init__(np.zeros((size, 2), np.float32), ids)
        self._shown = shown

    def show(self, rows):
        return [self._shown(row) for row in rows]


STEPS = Steps(
    report="out/report.html", labels="out/corrected.csv", to_check="out/to_check.csv",
    again="mlc-jax correct 'a<b.csv'", predict="mlc-jax predict out NEW",
)  # fmt: skip


def _render(size=300, names=("a", "b", "c"), source=None, truth=None, changed=0.4, **results):
    rng = np.random.default_rng(0)
    given = rng.integers(len(names), size=size).astype(np.int32)
    moved = rng.random(size) < changed
    corrected = np.where(moved, (given + 1) % len(names), given)
    soft = np.full((size, len(names)), 0.1 / (len(names) - 1), np.float32)
    soft[np.arange(size), corrected] = 0.6 + 0.3 * rng.random(size)
    source = source or ArraySource(rng.normal(size=(size, 20)).astype(np.float32))
    truth = np.full(size, UNKNOWN, np.int32) if truth is None else truth(given)
    run = types.SimpleNamespace(
        exported=Subset(source, np.arange(size), given, truth),
        dataset=types.SimpleNamespace(class_names=names),
    )
    figures = {
        "labels_changed": int(moved.sum()), "num_noisy": size, "mean_confidence": 0.9,
        "test_accuracy": 0.5, "num_test": 40, "corrected_label_accuracy": None,
    } | results  # fmt: skip
    table = "mlc on x, labels as given, seed 0\nlabels changed   3\n  most often     a -> b"
    of_noisy = Prediction(soft, soft, soft[:, 0])
    text = page.render(run, figures, table, of_noisy, PNG, steps=STEPS).decode()
    return text, given, corrected, soft


class _Elements(html.parser.HTMLParser):
    """Checks that what is opened is closed, and collects."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _hostile_page(**fields):
    size, names = 300, (HOSTILE, "=b", "c\x00c")
    ids = np.array([f"{HOSTILE}{i}" for i in range(size)])
    return _render(size, names, _Source(size, lambda row: f"{HOSTILE} {row}", ids), **fields)


def test_text_is_text():
    text, *_ = _hostile_page()
    elements = _Elements(text)
    assert "script" not in elements.tags
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    shown = "".join(elements.text)
    assert shown.count(HOSTILE) > 2 * page.NUM_CORRECTIONS  # As it is written, in its places.
    assert "\x00" not in text
    # Nothing is loaded from anywhere.
    sources = [value for name, value in elements.attributes if name in ("src", "href")]
    assert sources and all(value.startswith("data:image/") for value in sources)
    assert "default-src 'none'" in text


def test_the_surest_corrections_come_first():
    text, given, corrected, soft = _render()
    changed = np.flatnonzero(given != corrected)
    assert len(changed) > 100
    order = changed[np.argsort(-soft.max(1)[changed], kind="stable")][:100]
    after = text[text.index("The 100 surest corrections") :]
    found = re.findall(r"<tr><td>(\d+)</td>", after)
    assert [int(row) for row in found] == order.tolist()
    assert "<th>true</th>" not in text and "What to do with it" in text
    for command in (STEPS.again, STEPS.predict):
        assert f"<pre>{html.escape(command)}</pre>" in text
    # From what to what: all of them, in a matrix.
    for i, j in ((0, 1), (2, 2)):
        count = np.sum((given == i) & (corrected == j))
        assert f">{count}</span>" in text


def test_benchmarks_show_the_truth():
    text, *_ = _render(truth=lambda given: (given + 2) % 3, corrected_label_accuracy=0.5)
    assert "<th>true</th>" in text and "What to do with it" not in text


def test_nothing_may_have_changed():
    text, *_ = _render(changed=0)
    assert "No label was changed." in text
    _Elements(text)


def test_pictures_are_encoded_anew():
    rng = np.random.default_rng(0)
    for size, kind in ((8, "png"), (200, "jpeg")):
        pixels = rng.integers(0, 255, (150, size, size, 3)).astype(np.uint8)
        text, *_ = _render(150, source=ArraySource(pixels), changed=1.0)
        assert text.count(f'alt="example" src="data:image/{kind};base64,') == 100 + 3 * 12
        assert len(text) < 2_000_000
    grey = rng.random((150, 8, 8, 1), np.float32)
    text, *_ = _render(150, source=ArraySource(grey), changed=1.0)
    assert text.count('alt="example"') == 100 + 3 * 12


def test_many_examples_and_classes():
    """A hundred thousand, of two hundred classes: less than 10 MB, and quick."""
    names = tuple(f"class {i}" for i in range(200))
    long = _Source(100_000, lambda row: "word " * 10_000, None)
    start = time.monotonic()
    text, *_ = _render(100_000, names, long)
    assert time.monotonic() - start < 10
    assert len(text) < 1_000_000
    assert text.count("<td>class 7</td>") >= 2  # Among the most frequent changes, and the sizes.


@pytest.mark.skipif(BROWSER is None, reason="needs chromium-headless-shell, chromium or chrome")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_it(tmp_path, width):
    text, *_ = _hostile_page(compared={"cross_entropy": 0.25, "clean_only": 0.3})
    (tmp_path / "report.html").write_text(text)
    assert _console(tmp_path, width) == []
    from PIL import Image

    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("L"))
    assert pixels.shape[1] == width and pixels.std() > 10  # Something is written on it.


@pytest.mark.skipif(BROWSER is None, reason="needs chromium-headless-shell, chromium or chrome")
def test_the_browser_would_tell(tmp_path):
    """Of an error on a page; so that none was heard means something."""
    (tmp_path / "report.html").write_text("<script>console.error('run')</script>")
    assert len(_console(tmp_path, 400)) == 1


def _console(directory: pathlib.Path, width: int) -> list[str]:
    """What the browser says of `report.html`, which it makes a screenshot of, `shot.png`."""
    headless = [] if "headless-shell" in BROWSER else ["--headless"]
    result = subprocess.run(
        [
            BROWSER, *headless, "--no-sandbox", "--disable-gpu", f"--window-size={width},800",
            f"--screenshot={directory / 'shot.png'}", "--enable-logging=stderr",
            f"--user-data-dir={directory / 'profile'}", (directory / "report.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return [line for line in result.stderr.splitlines() if "CONSOLE" in line]
