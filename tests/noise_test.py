"""Noise: matrices by definition, samples by statistics, label files by their faults."""

import numpy as np
import pytest

from mlc_jax.benchmarks import noise
from mlc_jax.errors import InputError

MATRIX_TYPES = ("uniform", "flip", "flip_any")
LEVELS = (0.0, 0.3, 0.6, 1.0)
NUM_CLASSES = 5


def _matrix(noise_type, level, seed=0, num_classes=NUM_CLASSES):
    return noise.transition_matrix(noise_type, level, num_classes, np.random.default_rng(seed))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("noise_type", MATRIX_TYPES)
def test_rows_are_distributions(noise_type, level):
    matrix = _matrix(noise_type, level)
    assert matrix.shape == (NUM_CLASSES, NUM_CLASSES)
    assert np.all(matrix >= 0)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("noise_type", MATRIX_TYPES)
def test_level_zero_is_the_identity(noise_type):
    np.testing.assert_array_equal(_matrix(noise_type, 0.0), np.eye(NUM_CLASSES))


@pytest.mark.parametrize("level", LEVELS)
def test_uniform_may_keep_the_label(level):
    matrix = _matrix("uniform", level)
    for i in range(NUM_CLASSES):
        for j in range(NUM_CLASSES):
            want = (1 - level if i == j else 0) + level / NUM_CLASSES
            assert matrix[i, j] == pytest.approx(want)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(5))
def test_flip_has_one_other_class_for_each(seed, level):
    matrix = _matrix("flip", level, seed)
    np.testing.assert_allclose(np.diag(matrix), 1 - level)
    off_diagonal = matrix - np.diag(np.diag(matrix))
    np.testing.assert_allclose(off_diagonal.max(axis=1), level)
    assert np.all((off_diagonal > 0).sum(axis=1) == (level > 0))


def test_flip_partner_is_uniform_over_the_other_classes_and_the_same_at_every_level():
    partners = []
    for seed in range(400):
        matrix = _matrix("flip", 1.0, seed, num_classes=4)
        partners.append(matrix.argmax(axis=1))
        low = _matrix("flip", 0.25, seed, num_classes=4)
        np.testing.assert_array_equal(low > 0, (matrix + np.eye(4)) > 0)
    for label in range(4):
        counts = np.bincount(np.array(partners)[:, label], minlength=4)
        assert counts[label] == 0
        # Binomial(400, 1/3): deviation 9.4; five of them.
        assert np.all(np.abs(np.delete(counts, label) - 400 / 3) < 47)


def test_flip_with_two_classes_swaps_them():
    np.testing.assert_allclose(_matrix("flip", 0.3, num_classes=2), [[0.7, 0.3], [0.3, 0.7]])


@pytest.mark.parametrize("level", LEVELS)
def test_flip_any_spreads_over_the_other_classes(level):
    matrix = _matrix("flip_any", level)
    np.testing.assert_allclose(np.diag(matrix), 1 - level)
    off_diagonal = matrix[~np.eye(NUM_CLASSES, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, level / (NUM_CLASSES - 1))


def test_human_noise_has_no_matrix():
    with pytest.raises(ValueError, match="'human' has no transition matrix"):
        _matrix("human", 0.5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", [0.2, 0.8])
@pytest.mark.parametrize("noise_type", MATRIX_TYPES)
def test_sampled_frequencies_follow_the_matrix(noise_type, level, seed):
    per_class = 4_000
    matrix = _matrix(noise_type, level, seed)
    labels = np.tile(np.arange(NUM_CLASSES, dtype=np.int32), per_class)
    noisy = noise.corrupt(labels, matrix, np.random.default_rng([seed, 7]))
    counts = np.zeros_like(matrix)
    np.add.at(counts, (labels, noisy), 1)
    deviation = np.sqrt(per_class * matrix * (1 - matrix))
    # Five standard deviations: fails by chance once in a million entries; 0 where it must be 0.
    assert np.all(np.abs(counts - per_class * matrix) <= 5 * deviation + 1e-6)


def test_level_zero_changes_nothing_and_level_one_everything():
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, 1_000).astype(np.int32)
    rng = np.random.default_rng(1)
    for noise_type in MATRIX_TYPES:
        np.testing.assert_array_equal(noise.corrupt(labels, _matrix(noise_type, 0.0), rng), labels)
    for noise_type in ("flip", "flip_any"):
        assert not np.any(noise.corrupt(labels, _matrix(noise_type, 1.0), rng) == labels)
    partner = _matrix("flip", 1.0).argmax(axis=1)
    np.testing.assert_array_equal(noise.corrupt(labels, _matrix("flip", 1.0), rng), partner[labels])


def test_samples_are_a_function_of_the_seed():
    labels = np.zeros(200, np.int32)
    matrix = _matrix("uniform", 0.8)
    draw = lambda seed: noise.corrupt(labels, matrix, np.random.default_rng(seed))  # noqa: E731
    np.testing.assert_array_equal(draw(0), draw(0))
    assert np.any(draw(0) != draw(1))
    np.testing.assert_array_equal(_matrix("flip", 0.5, 3), _matrix("flip", 0.5, 3))
    assert any(np.any(_matrix("flip", 0.5, 3) != _matrix("flip", 0.5, s)) for s in range(4, 8))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_samples_keep_shape_and_dtype_and_leave_the_input_alone(dtype):
    labels = np.arange(NUM_CLASSES, dtype=dtype)
    noisy = noise.corrupt(labels, _matrix("flip", 1.0), np.random.default_rng(0))
    assert noisy.dtype == dtype
    assert noisy.shape == labels.shape
    np.testing.assert_array_equal(labels, np.arange(NUM_CLASSES))


def test_a_draw_above_a_rounded_row_sum_is_the_last_class():
    class TopDraw:
        def random(self, size):
            return np.full(size, 1 - 2**-53)  # The largest double below 1.

    matrix = np.full((3, 3), 0.333)  # Sums to 0.999.
    np.testing.assert_array_equal(noise.corrupt(np.arange(3), matrix, TopDraw()), [2, 2, 2])


def _read(path, key="worst", num_labels=4, num_classes=3):
    return noise.labels_from_file(str(path), key, num_labels=num_labels, num_classes=num_classes)


def _save(tmp_path, **arrays):
    path = tmp_path / "labels.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_labels_are_read_from_a_file(tmp_path, dtype):
    labels = np.array([0, 2, 1, 2], dtype)
    got = _read(_save(tmp_path, worst=labels, other=labels[::-1]))
    np.testing.assert_array_equal(got, labels)
    assert got.dtype == np.int32


@pytest.mark.parametrize("name", ["", "nowhere.npz", "."])
def test_missing_file_names_the_field(tmp_path, name):
    path = tmp_path / name if name else ""
    with pytest.raises(InputError, match=r"config\.noise\.file: got .*expected the path"):
        _read(path)


def test_wrong_key_lists_the_right_ones(tmp_path):
    path = _save(tmp_path, aggregate=np.zeros(4, int), clean=np.zeros(4, int))
    with pytest.raises(
        InputError, match=r"config\.noise\.key: got 'worst', expected one of \['aggregate', 'clean'"
    ):
        _read(path)


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), ()])
def test_wrong_shape_names_both_shapes(tmp_path, shape):
    path = _save(tmp_path, worst=np.zeros(shape, int))
    with pytest.raises(InputError, match=r"config\.noise\.file: .*has shape .*expected \(4,\)"):
        _read(path)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, -1, 2, 1]])
def test_labels_out_of_range(tmp_path, labels):
    path = _save(tmp_path, worst=np.array(labels))
    with pytest.raises(InputError, match=r"config\.noise\.file: .*labels from .*expected 0 to 2"):
        _read(path)


@pytest.mark.parametrize("dtype", [float, bool, "U1"])
def test_labels_that_are_not_integers(tmp_path, dtype):
    path = _save(tmp_path, worst=np.array([0, 1, 1, 0]).astype(dtype))
    with pytest.raises(InputError, match=r"config\.noise\.file: .*holds .*expected integers"):
        _read(path)


def _write_text(path):
    path.write_text("0\n1\n2\n")


def _write_truncated(path):
    np.savez(path, worst=np.arange(4) % 3)
    path.write_bytes(path.read_bytes()[:-40])


def _write_npy(path):
    with path.open("wb") as file:
        np.save(file, np.arange(4) % 3)


def _write_pickled(path):
    np.savez(path, worst=np.array([0, None, 1, 2], dtype=object))


def _write_nothing(path):
    path.touch()


@pytest.mark.parametrize(
    "write", [_write_text, _write_truncated, _write_npy, _write_pickled, _write_nothing]
)
def test_file_that_is_not_an_npz_of_plain_arrays(tmp_path, write):
    path = tmp_path / "labels.npz"
    write(path)
    with pytest.raises(InputError, match=r"config\.noise\.file: .*is not a readable \.npz"):
        _read(path)


def test_damaged_archive_is_an_input_error_wherever_the_damage_is(tmp_path):
    path = tmp_path / "labels.npz"
    np.savez_compressed(path, worst=np.random.default_rng(0).integers(0, 3, 300))
    content, failures = path.read_bytes(), 0
    for position in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[position] ^= 255
        path.write_bytes(damaged)
        try:
            _read(path, num_labels=300)  # Some bytes do not matter.
        except InputError:
            failures += 1
    assert failures > 50


# --- Noise that depends on the example.


def _instance(inputs, level, seed=0, num_classes=NUM_CLASSES):
    rng = np.random.default_rng(seed)
    return noise.InstanceNoise(lambda rows: inputs[rows], len(inputs), level, num_classes, rng)


def _inputs(size, seed=1):
    """Features of very different sizes; the last never changes."""
    inputs = np.random.default_rng(seed).normal(3, [1, 100, 0.01, 0], (size, 4))
    return inputs.reshape(size, 2, 2)


@pytest.mark.parametrize(
    # Of a normal distribution with deviation 0.1, truncated to [0, 1]: at its ends the mean is
    # that of half of it, 0.1 sqrt(2 / pi).
    ("level", "rate"), [(0.0, 0.0798), (0.3, 0.3), (0.6, 0.6), (1.0, 0.9202)],
)  # fmt: skip
def test_rate_of_instance_noise(level, rate):
    inputs, labels = _inputs(20_000), np.arange(20_000, dtype=np.int32) % NUM_CLASSES
    rows = np.arange(len(labels))
    noisy = _instance(inputs, level).corrupt(rows, labels, np.random.default_rng(2))
    assert noisy.dtype == np.int32
    assert np.mean(noisy != labels) == pytest.approx(rate, abs=0.015)


def test_instance_noise_by_hand():
    """The distribution over wrong labels is the softmax over the other classes of `x W_y`."""
    size = 40_000
    inputs = np.repeat(_inputs(4), size // 4, axis=0)  # Four examples, ten thousand times each.
    labels = np.full(size, 2, np.int32)
    instance = _instance(inputs, 0.5)
    noisy = instance.corrupt(np.arange(size), labels, np.random.default_rng(2))
    flat = inputs.reshape(size, -1)
    standard = (flat - flat.mean(axis=0)) / np.where(flat.std(axis=0) > 1e-3, flat.std(axis=0), 1)
    matrices = np.random.default_rng(0).standard_normal((NUM_CLASSES, 4, NUM_CLASSES), np.float32)
    for start in range(0, size, size // 4):
        logits = standard[start] @ matrices[2]
        logits[2] = -np.inf
        wrong = np.exp(logits) / np.exp(logits).sum()
        shares = np.bincount(noisy[start : start + size // 4], minlength=NUM_CLASSES) / (size / 4)
        want = 0.5 * wrong
        want[2] = 0.5
        np.testing.assert_allclose(shares, want, atol=0.02)  # Four deviations.


def test_a_constant_feature_says_nothing():
    inputs, labels = _inputs(500), np.arange(500, dtype=np.int32) % NUM_CLASSES
    larger = inputs.copy()
    larger[:, 1, 1] = 1e9
    one, other = (
        _instance(x, 0.6).corrupt(np.arange(500), labels, np.random.default_rng(2))
        for x in (inputs, larger)
    )
    np.testing.assert_array_equal(one, other)


def test_instance_noise_of_rows_in_blocks(monkeypatch):
    inputs, labels = _inputs(50), np.arange(50, dtype=np.int32) % NUM_CLASSES
    rows = np.array([7, 3, 40, 8, 9])

    def corrupt():
        return _instance(inputs, 0.6).corrupt(rows, labels[rows], np.random.default_rng(2))

    at_once = corrupt()
    monkeypatch.setattr(noise, "_ROWS_AT_ONCE", 2)
    np.testing.assert_array_equal(corrupt(), at_once)
