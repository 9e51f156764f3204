"""What is wrong with a user's files, whatever their kind: a class nobody checked, no permission."""

import contextlib
import os

import numpy as np
import pandas
import pytest
from PIL import Image

import mlc_jax as mlc
from mlc_jax.benchmarks import datasets
from mlc_jax.data.source import read_rows
from mlc_jax.errors import InputError
from mlc_jax.examples import create_dataset
from mlc_jax.files.values.checks import random_order
from mlc_jax.files.values.drawn import how_drawn

NAMES = np.array(["ant", "bee", "cow"])
LABELS = NAMES[np.arange(30) % 3]
CHECKED = np.where(np.arange(30) < 9, LABELS, "")


def _arrays(path, checked):
    np.savez(path / "all.npz", inputs=np.arange(30.0)[:, None], labels=LABELS,
             checked_labels=checked)  # fmt: skip
    return path / "all.npz"


def _mapped(path, checked):
    np.save(path / "all.npy", np.arange(30.0)[:, None])
    pandas.DataFrame({"label": LABELS, "checked_label": checked}).to_csv(path / "all.csv")
    return path / "all.npy"


def _table(path, checked):
    columns = {"label": LABELS, "checked_label": checked, "x": np.arange(30.0) ** 2}
    pandas.DataFrame(columns).to_csv(path / "all.csv", index=False)
    return path / "all.csv"


def _parquet(path, checked):
    columns = {"label": LABELS, "checked_label": checked, "x": np.arange(30.0) ** 2}
    pandas.DataFrame(columns).to_parquet(path / "all.parquet")
    return path / "all.parquet"


def _pictures(path, checked):
    for i in range(30):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(path / f"{i}.png")
    columns = {"path": [f"{i}.png" for i in range(30)], "label": LABELS, "checked_label": checked}
    pandas.DataFrame(columns).to_csv(path / "all.csv", index=False)
    return path / "all.csv"


KINDS = {
    "arrays": (_arrays, "arrays"), "mapped": (_mapped, "arrays"), "table": (_table, "table"),
    "parquet": (_parquet, "table"), "pictures": (_pictures, "image_folder"),
}  # fmt: skip
each_kind = pytest.mark.parametrize("kind", KINDS)


def _config_of(path):
    from configs import table

    config = table.get_config()
    config.dataset.data = str(path)
    return config


def _config(kind, tmp_path, checked=CHECKED):
    from configs import arrays, image_folder, table

    save, name = KINDS[kind]
    config = {"arrays": arrays, "table": table, "image_folder": image_folder}[name].get_config()
    config.dataset.data = str(save(tmp_path, checked))
    if name == "image_folder":
        config.dataset.cache_dir = str(tmp_path / "cache")
    return config


@each_kind
def test_a_class_that_nobody_checked_is_said(tmp_path, kind, caplog):
    """A random sample often misses one: no reason to refuse it."""
    config = _config(kind, tmp_path)
    assert len(datasets.load(config).clean) == 9
    with caplog.at_level("WARNING"):
        datasets.load(_config(kind, tmp_path, np.where(CHECKED == "bee", "", CHECKED)))
    assert "No checked row has class bee" in caplog.text


def test_a_class_that_nobody_checked_in_two_files_and_in_python(tmp_path, caplog):
    from configs import arrays

    config = arrays.get_config()
    for name, rows in (("noisy", slice(9, 30)), ("clean", [0, 3, 6])):
        x, labels = np.arange(30.0)[rows, None], LABELS[rows]
        np.savez(tmp_path / f"{name}.npz", inputs=x, labels=labels)
        config.dataset[name] = str(tmp_path / f"{name}.npz")
    with caplog.at_level("WARNING"):
        assert datasets.load(config).class_names == ("ant", "bee", "cow")
    assert "No checked row has class bee" in caplog.text
    caplog.clear()
    inputs = np.arange(30, dtype=np.float32)[:, None]
    method = mlc.methods.cross_entropy(model=mlc.models.MLP(3, (4,)), tx=mlc.sgd(0.1))
    noisy = mlc.Examples(inputs[9:], LABELS[9:])
    clean = mlc.Examples(inputs[[0, 3, 6]], LABELS[[0, 3, 6]])
    with caplog.at_level("WARNING"):
        create_dataset(method, noisy, clean, None, None, None)
    assert "No checked row has class bee" in caplog.text


def test_a_class_that_only_checked_rows_have(tmp_path):
    """Two rows make a class; a single one is misspelt, most likely."""
    checked = CHECKED.astype("U9")
    checked[[0, 1]] = "dog"
    assert datasets.load(_config("table", tmp_path, checked)).class_names[-1] == "dog"
    checked = CHECKED.astype("U9")
    checked[0] = "antt"
    with pytest.raises(InputError, match=r"line 2 alone has label 'antt'.*such as 'ant'"):
        datasets.load(_config("table", tmp_path, checked))


def _checks(path, labels):
    path.write_text("id,checked_label\n" + "".join(f"{row},{x}\n" for row, x in labels))
    return str(path)


@each_kind
def test_a_class_that_only_later_checks_have(tmp_path, kind):
    """It takes two rows, over all tables of checks and the file; spellings may differ."""
    checked = CHECKED.astype("U9")
    config = _config(kind, tmp_path, checked)
    config.dataset.checked = _checks(tmp_path / "1.csv", [(20, "dog"), (21, "ant")])
    if kind == "pictures":  # Their ids are paths.
        config.dataset.checked = _checks(tmp_path / "1.csv", [("20.png", "dog"), ("21.png", "ant")])
    with pytest.raises(InputError, match=r"line 2: checked_label is 'dog', which no row was given"):
        datasets.load(config)
    names = (20, 22) if kind != "pictures" else ("20.png", "22.png")
    config.dataset.checked += "," + _checks(tmp_path / "2.csv", [(names[1], " Dog ")])
    dataset = datasets.load(config)
    assert dataset.class_names == ("ant", "bee", "cow", "dog")
    assert (dataset.clean.truth == 3).sum() == 2
    checked[8] = "dog"
    config = _config(kind, tmp_path, checked)
    config.dataset.checked = _checks(tmp_path / "1.csv", [(names[0], "dog")])
    assert (datasets.load(config).clean.truth == 3).sum() == 2
    config.dataset.checked = _checks(tmp_path / "1.csv", [(names[0], "?"), (names[1], "?")])
    with pytest.raises(InputError, match="or nothing where nobody looked"):
        datasets.load(config)


@each_kind
def test_classes_that_the_user_names(tmp_path, kind):
    """In that order; a class may have no row, and one row is enough; no other label is allowed."""
    checked = CHECKED.astype("U9")
    checked[8] = "dog"
    config = _config(kind, tmp_path, checked)
    config.dataset.class_names = "elk,dog,cow,bee,ant"
    dataset = datasets.load(config)
    assert dataset.class_names == ("elk", "dog", "cow", "bee", "ant")
    assert (dataset.clean.truth == 1).sum() == 1
    np.testing.assert_array_equal(np.array(dataset.class_names)[dataset.noisy.given], LABELS[9:])
    config.dataset.class_names = "elk,cow,bee,ant"
    expected = "has label 'dog', which is not one of config.dataset.class_names; .* such as 'elk'"
    with pytest.raises(InputError, match=expected):
        datasets.load(config)
    config = _config(kind, tmp_path)
    config.dataset.class_names = "ant,bee,cow"
    row = 20 if kind != "pictures" else "20.png"
    config.dataset.checked = _checks(tmp_path / "1.csv", [(row, "dog"), (row, "dog")])
    with pytest.raises(InputError, match=r"checked_label is 'dog'.*expected one of ant, bee, cow"):
        datasets.load(config)


@pytest.mark.parametrize(
    "label",
    ["?", "...", "to do", "[todo]", "not_checked", "\u2713", "-", "x" * 201, "1", "TRUE"],
)
def test_what_is_no_class_in_later_checks(tmp_path, label):
    """However often it is typed."""
    config = _config("table", tmp_path)
    config.dataset.checked = _checks(tmp_path / "1.csv", [(20, label), (21, label)])
    with pytest.raises(InputError, match="or nothing where nobody looked"):
        datasets.load(config)


def test_a_tick_in_each_checked_row_is_no_label(tmp_path):
    config = _config("table", tmp_path, np.where(CHECKED == "", "", "good"))
    with pytest.raises(InputError, match="such as 'good', and none of them was given"):
        datasets.load(config)


def test_truth_values_in_later_checks_are_those_of_the_file(tmp_path):
    """TRUE in two rows is no new class beside 1 and 0."""
    columns = {"label": np.arange(30) % 2, "x": np.arange(30.0) ** 2}
    pandas.DataFrame(columns).to_csv(tmp_path / "all.csv", index=False)
    config = _config_of(tmp_path / "all.csv")
    config.dataset.checked = _checks(tmp_path / "1.csv", [(3, "TRUE"), (5, "TRUE"), (6, "FALSE")])
    dataset = datasets.load(config)
    assert dataset.class_names == ("0", "1") and dataset.clean.truth.tolist() == [1, 1, 0]
    pandas.DataFrame(columns | {"label": columns["label"] > 0}).to_csv(
        tmp_path / "all.csv", index=False
    )
    _checks(tmp_path / "1.csv", [(3, 1), (5, 1), (6, 0)])
    dataset = datasets.load(config)
    assert dataset.class_names == ("False", "True") and dataset.clean.truth.tolist() == [1, 1, 0]


def test_one_number_in_two_forms_is_one_class_of_later_checks(tmp_path):
    """pandas writes 1.0 in the column of checks and 1 in that of labels."""
    columns = {"label": np.arange(30) % 3, "x": np.arange(30.0) ** 2}
    columns["checked_label"] = np.where(np.arange(30) < 9, columns["label"], np.nan)
    pandas.DataFrame(columns).to_csv(tmp_path / "all.csv", index=False)
    config = _config_of(tmp_path / "all.csv")
    config.dataset.checked = _checks(tmp_path / "1.csv", [(1, 1), (4, "1."), (20, "02"), (21, 0)])
    dataset = datasets.load(config)
    assert dataset.class_names == ("0", "1", "2") and len(dataset.clean) == 11
    config.dataset.checked = _checks(tmp_path / "1.csv", [(1, 2)])
    with pytest.raises(InputError, match="is checked as '2', and as '1' in"):
        datasets.load(config)
    config.dataset.checked = _checks(tmp_path / "1.csv", [(20, 3), (21, "3")])  # Of numbers.
    assert datasets.load(config).class_names == ("0", "1", "2", "3")


def test_a_class_that_the_user_names_may_be_any_word(tmp_path):
    config = _config("table", tmp_path, np.where(np.arange(30) == 8, "unknown", CHECKED))
    config.dataset.class_names = "ant,bee,cow,unknown"
    assert (datasets.load(config).clean.truth == 3).sum() == 1
    config.dataset.class_names = "ant,bee,cow,unknown,Unknown"
    with pytest.raises(
        InputError, match=r"has label 'unknown', and config\.dataset\.class_names has"
    ):
        datasets.load(config)


def test_a_new_class_of_later_checks_is_a_number_where_labels_are(standard_promotion):
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.normal(size=(60, 3)), columns=[*"abc"])
    frame["label"] = np.arange(60) % 3
    frame["checked_label"] = [i % 3 if i < 30 else None for i in range(60)]
    checks = pandas.DataFrame({"id": [40, 41], "checked_label": [7, 7]})
    result = mlc.correct_labels(frame, checks=checks, num_epochs=1, progress=False)
    assert result.classes.tolist() == [0, 1, 2, 7]
    assert result.to_frame()["corrected_label"][40:42].tolist() == [7, 7]


def test_classes_that_the_user_names_in_python(standard_promotion):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), np.arange(60) % 3
    checked = np.where(np.arange(60) < 30, y, -1)
    short = {"num_epochs": 1}
    corrector = mlc.LabelCorrector(class_names=[2, 1, 0, 7], **short).fit(x, y, checked=checked)
    assert corrector.result_.classes.tolist() == [2, 1, 0, 7]
    assert corrector.classes_.tolist() == [0, 1, 2, 7]  # As scikit-learn wants them.
    assert set(corrector.labels_[:30] - y[:30]) == {0} and corrector.soft_labels_.shape == (60, 4)
    probs = corrector.predict_proba(x)
    assert np.array_equal(corrector.classes_[probs.argmax(axis=1)], corrector.predict(x))
    texts = np.array(["2", "9", "10"])[y]
    corrector.set_params(class_names=None).fit(x, texts, checked=np.where(checked < 0, "", texts))
    assert corrector.classes_.tolist() == ["10", "2", "9"]
    assert np.array_equal(corrector.labels_[:30], texts[:30])
    assert np.array_equal(corrector.classes_[corrector.soft_labels_[:30].argmax(1)], texts[:30])
    frame = pandas.DataFrame(x, columns=[*"abc"]).assign(label=y, checked_label=checked)
    for names, problem in (
        ([0, 1], r"has label '2', which is not one of class_names; expected one of these"),
        ([0, 0, 1, 2], "class_names: got .* expected each class once"),
        ("012", "class_names: got '012', expected a list of two or more"),
    ):
        with pytest.raises(InputError, match=problem):
            mlc.correct_labels(frame, class_names=names, progress=False)
        with pytest.raises(InputError, match=problem):
            mlc.LabelCorrector(class_names=names).fit(x, y, checked=checked)


def test_a_misspelt_check_among_examples():
    x = np.arange(30.0)[:, None]
    clean = np.array(["ant", "bee", "cow"] * 3, "U9")
    clean[4] = "beee"
    method = mlc.methods.cross_entropy(model=mlc.models.MLP(4, (4,)), tx=mlc.sgd(0.1))
    noisy = mlc.Examples(x[9:], LABELS[9:])
    with pytest.raises(InputError, match=r"clean.labels: row 4 alone has label 'beee'.* 'bee'"):
        create_dataset(method, noisy, mlc.Examples(x[:9], clean), None, None, None)
    votes = np.stack([LABELS[9:], np.where(np.arange(21) == 3, "beee", "")], axis=1)
    asked = mlc.Examples(x[9:], votes)
    create_dataset(method, asked, mlc.Examples(x[:9], clean), None, None, None)  # One source knows.


def test_how_checked_rows_were_drawn(tmp_path, caplog):
    """By a column, by the setting, or guessed from equal counts."""
    config = _config("table", tmp_path)
    with caplog.at_level("INFO"):
        assert set(datasets.load(config).drawn) == {"per_class"}  # Three of each class.
    assert "count as so many per class" in caplog.text
    config.dataset.drawn = "random"
    assert set(datasets.load(config).drawn) == {"random"}
    uneven = np.where(np.arange(30) == 0, "", CHECKED)
    assert set(datasets.load(_config("table", tmp_path, uneven)).drawn) == {"random"}
    path = tmp_path / "all.csv"
    _config("table", tmp_path)
    lines = path.read_text().splitlines()
    for word, error in (("looked_up", None), ("sometimes", "line 2: drawn is 'sometimes'")):
        path.write_text("\n".join([f"{lines[0]},drawn", *(f"{x},{word}" for x in lines[1:])]))
        config = _config_of(path)
        if error is None:
            assert set(datasets.load(config).drawn) == {"looked_up"}
        else:
            with pytest.raises(InputError, match=error):
                datasets.load(config)


def test_random_rows_of_later_checks_are_one_random_sample(tmp_path):
    """Rows that were looked up count as random once the order of random ones has passed them."""
    config = _config("table", tmp_path)
    ids = [str(i) for i in range(30)]
    order = np.argsort(random_order(ids))
    left = [i for i in order.tolist() if not CHECKED[i]]
    rows = [(left[i], why) for i, why in ((1, "uncertain"), (-1, "uncertain"), (0, "random"))]
    rows.append((left[2], "random"))
    text = "".join(f"{i},{why},{LABELS[i]}\n" for i, why in rows)
    (tmp_path / "round1.csv").write_text("id,why,checked_label\n" + text)
    config.dataset.checked = str(tmp_path / "round1.csv")
    dataset = datasets.load(config)
    drawn = dict(zip(dataset.clean.rows.tolist(), dataset.drawn.tolist(), strict=True))
    assert [drawn[i] for i, _ in rows] == ["random", "looked_up", "random", "random"]


@pytest.mark.parametrize("setting", [None, "random", "per_class"])
def test_other_tables_of_checks_are_as_the_setting_says(tmp_path, setting):
    """A sample of one's own makes no row random that was looked up: it has another order."""
    config = _config("table", tmp_path)
    order = np.argsort(random_order([str(i) for i in range(30)]))
    looked_up, *_, mine = (i for i in order.tolist() if not CHECKED[i])
    text = f"id,why,checked_label\n{looked_up},uncertain,{LABELS[looked_up]}\n"
    (tmp_path / "round1.csv").write_text(text)
    (tmp_path / "mine.csv").write_text(f"id,checked_label\n{mine},{LABELS[mine]}\n")
    config.dataset.checked = f"{tmp_path}/round1.csv,{tmp_path}/mine.csv"
    config.dataset.drawn = setting
    dataset = datasets.load(config)
    drawn = dict(zip(dataset.clean.rows.tolist(), dataset.drawn.tolist(), strict=True))
    assert (drawn[looked_up], drawn[mine]) == ("looked_up", setting or "looked_up")


def _how_drawn(truth, given, unchecked):
    said = np.full(len(truth), "")
    (drawn,) = {*how_drawn(np.array(truth), said, None, np.array(given), unchecked)}
    return drawn


def test_checks_of_other_classes_than_all_rows_are_no_random_sample(caplog):
    half = np.arange(400) % 2
    assert _how_drawn([0] * 24, [0] * 18 + [1] * 6, half) == "looked_up"
    assert "rows drawn at random; if these were" in caplog.text
    # Most rows are of that class, as far as anybody knows: nothing speaks against chance.
    assert _how_drawn([0] * 24, [0] * 18 + [1] * 6, np.array([0] * 300 + [1] * 100)) == "random"
    # Two classes were checked of four, of which all are frequent.
    assert _how_drawn([0] * 20 + [1] * 18, [0] * 20 + [1] * 18, np.arange(400) % 4) == "looked_up"
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 2000, p=[0.7, 0.2, 0.09, 0.01])
    for _ in range(200):
        given = rng.permutation(labels)[:40]
        assert _how_drawn(np.sort(given), given, labels) == "random"


def test_rows_to_check_of_which_the_wrong_ones_alone_were_filled_in(tmp_path, caplog):
    """They were drawn at random, and those that were filled in are no random sample."""
    given = np.where(np.arange(30) < 12, np.roll(LABELS, 1), LABELS)
    wrong = np.flatnonzero(given != LABELS).tolist()
    assert len(wrong) >= 9
    checks = tmp_path / "to_check.csv"
    for rows, drawn in ((wrong, "looked_up"), ([*wrong, 20], "random"), (wrong[:7], "random")):
        text = "".join(f"{i},random,{LABELS[i]}\n" for i in rows)
        checks.write_text("id,why,checked_label\n" + text)
        (tmp_path / "all.csv").write_text(
            "\n".join(["a,b,label", *(f"{i % 5},{i % 3},{x}" for i, x in enumerate(given))])
        )
        config = _config_of(tmp_path / "all.csv")
        config.dataset.checked = str(checks)
        caplog.clear()
        assert set(datasets.load(config).drawn) == {drawn}
        assert ("Check rows whose label is right, too" in caplog.text) == (drawn == "looked_up")


@contextlib.contextmanager
def _somebody_else():
    """Root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@each_kind
def test_a_file_that_may_not_be_read(tmp_path, kind):
    config = _config(kind, tmp_path)
    secret = tmp_path / "7.png" if kind == "pictures" else config.dataset.data
    os.chmod(secret, 0)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    # Of pytest's directories nobody but their owner sees anything.
    for directory in (tmp_path, *tmp_path.parents):
        if "pytest" in str(directory):
            directory.chmod(0o755)
    if kind == "pictures":
        import tensorflow  # noqa: F401 - Python itself may be root's.
    with _somebody_else(), pytest.raises(InputError) as raised:
        datasets.load(config)
    text = str(raised.value)
    assert "\n" not in text and "ermission denied" in text
    assert ("7.png" if kind == "pictures" else config.dataset.data) in text


def test_nearly_all_rows_are_checked(tmp_path):
    """Features are scaled by all of them: the deviation of one row would make them all 0."""
    checked = np.where(np.arange(30) < 29, LABELS, "")
    for kind in ("arrays", "mapped", "table"):
        (tmp_path / kind).mkdir()
        dataset = datasets.load(_config(kind, tmp_path / kind, checked))
        x = np.concatenate([
            np.asarray(dataset.prepare(read_rows(part.source, part.rows)))
            for part in (dataset.noisy, dataset.clean)
        ])  # fmt: skip
        np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-5)
