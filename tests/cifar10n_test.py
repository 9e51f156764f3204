"""CIFAR-10N: cells, and what is measured of one."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def program(load_program):
    return load_program("experiments.labels.cifar10n")


@pytest.fixture
def data(program):
    """Ten classes apart, 3 in 10 labels wrong; three people who are wrong apart from each other."""
    rng = np.random.default_rng(0)

    def part(size):
        truth = np.arange(size, dtype=np.int32) % 10
        x = rng.normal(0, 1, (size, 12)).astype(np.float32)
        x[np.arange(size), truth] += 4
        return x, truth

    (x, truth), (x_test, of_test) = part(600), part(200)
    given = {}
    for name in ("worst", "aggregate", "random1", "random2", "random3"):
        wrong = rng.random(len(truth)) < 0.3
        given[name] = np.where(wrong, rng.integers(0, 10, len(truth)), truth).astype(np.int32)
    return program.Data(x, truth, given, x_test, of_test)


def test_cells_are_those_that_are_asked_for(program):
    first = program.cells("first", 5)
    assert {(cell["labels"], cell["per_class"]) for cell in first} == {("worst", 50)}
    assert len({cell["method"] for cell in first}) == len(program.METHODS) + 3
    every = program.cells("all", 5)
    assert every[: len(first)] == first
    assert len({(cell["labels"], cell["per_class"]) for cell in every}) == 12
    assert len({tuple(cell.values()) for cell in every}) == len(every)
    some = program.cells("all", 2, "cross_fit,linear_true")
    assert len(some) == 12 * 2 * 2


def test_checked_rows_are_so_many_of_each_class(program, data):
    checked = program.checked_rows(data.truth, 10, 3)
    assert np.bincount(data.truth[checked]).tolist() == [10] * 10
    assert (checked != program.checked_rows(data.truth, 10, 4)).any()


def test_a_linear_model_is_as_good_as_its_labels(program, data):
    right = {
        method: program.measure(data, "worst", 10, 0, method)[0]["test"]
        for method in program.LINEAR
    }
    assert right["linear_true"] > right["linear_given"] > 50
    assert right["linear_true"] > right["linear_checked"] > 50


def test_lite0_tells_pictures_apart():
    """A picture's features are its own, whatever comes with it."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("torch")
    from experiments.labels.efficientnet_lite import EfficientNetLite0

    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (32, 40, 3), dtype=np.uint8) for _ in range(3)]
    images = [Image.fromarray(x) for x in noise]
    encoder = EfficientNetLite0(64)
    all_, last = encoder(images), encoder(images[2:])
    assert all_.shape == (3, 1280) and all_.dtype == np.float32
    np.testing.assert_allclose(all_[2:], last, rtol=1e-3, atol=1e-4)
    assert np.abs(all_[0] - all_[1]).max() > 0.1
    assert encoder.fingerprint != EfficientNetLite0(128).fingerprint


# Three trainings: what three people say together is worth more than what one says.
@pytest.mark.slow
def test_a_cell_is_measured_and_told(program, data, standard_promotion):
    rows = []
    for labels, method in (
        ("random1", "cross_fit"),
        (program.TOGETHER, "cross_fit"),
        ("random1", "cross_entropy"),
    ):
        place = {"labels": labels, "per_class": 10, "draw": 0, "method": method}
        rows.append(place | program.measure(data, **place)[0])
    one, three, _ = rows
    assert three["corrected"] >= one["corrected"] > 85 and one["test"] > 85
    text = program.tables(rows, lambda name: 100 * np.mean(data.given[name] == data.truth))
    assert "## random1, 10 checked per class" in text and "85.02 ± 0.65" in text
    assert f"| cross_fit | {one['corrected']:.1f} ± 0.0 | {one['test']:.1f} ± 0.0 |  |" in text
