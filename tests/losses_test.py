"""Losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlc_jax.core import losses

LN2, LN3, LN4 = np.log([2.0, 3.0, 4.0])
# Rows whose softmax is (1/4, 3/4, 0) nearly, and (1/2, 1/4, 1/4) with an offset that cancels.
LOGITS = np.array([[0.0, LN3, -1e4], [5 + LN2, 5.0, 5.0]], np.float32)


def test_soft_cross_entropy_of_distributions_and_of_weighted_labels():
    targets = jnp.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    want = [0.5 * LN4 + 0.5 * (LN4 - LN3), 0.25 * LN2 + 0.75 * LN4]
    got = losses.soft_cross_entropy(jnp.asarray(LOGITS), targets)
    np.testing.assert_allclose(got, want, rtol=1e-6)

    weighted = jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # A weight times a one-hot.
    got = losses.soft_cross_entropy(jnp.asarray(LOGITS), weighted)
    np.testing.assert_allclose(got, [3 * LN4, 0], rtol=1e-6)


def test_cross_entropy_of_integer_labels():
    got = losses.cross_entropy(jnp.asarray(LOGITS), jnp.array([1, 0]))
    np.testing.assert_allclose(got, [LN4 - LN3, LN2], rtol=1e-6)


def test_cross_entropy_is_soft_cross_entropy_of_one_hot_labels():
    logits = jax.random.normal(jax.random.key(0), (6, 4))
    labels = jnp.array([0, 1, 2, 3, 3, 0])
    soft = losses.soft_cross_entropy(logits, jax.nn.one_hot(labels, 4))
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), soft, rtol=1e-6)


def test_losses_stay_finite_for_large_logits():
    logits = jnp.array([[1e4, -1e4]])
    assert losses.cross_entropy(logits, jnp.array([1])) == 2e4
    grads = jax.grad(lambda z: jnp.sum(losses.soft_cross_entropy(z, jnp.array([[0.0, 1.0]]))))
    np.testing.assert_array_equal(grads(logits), [[1.0, -1.0]])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_accuracy_is_the_share_of_rows_whose_largest_logit_is_the_label(dtype):
    logits = jnp.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    accuracy = losses.accuracy(logits, jnp.array([1, 1, 2, 1], dtype))
    assert accuracy == 0.75
    assert accuracy.dtype == jnp.float32


def test_sparsemax_by_hand(standard_promotion):
    logits = jnp.array([
        [0.1, 0.2, 0.3],  # All in the support: minus tau = (0.6 - 1) / 3.
        [1.0, 0.5, -3.0],  # Two in the support: tau = (1.5 - 1) / 2 = 0.25.
        [2.0, 0.9, 0.0],  # One: 2 > 1 + 0.9.
        [7.0, 7.0, 7.0],
    ])  # fmt: skip
    want = [
        [0.7 / 3, 1 / 3, 1.3 / 3],
        [0.75, 0.25, 0.0],
        [1.0, 0.0, 0.0],
        [1 / 3, 1 / 3, 1 / 3],
    ]
    got = losses.sparsemax(logits)
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(got) == 0, np.asarray(want) == 0)


def _sparsemax(row):
    """Algorithm 1 of Martins and Astudillo (2016)."""
    ordered = np.sort(row)[::-1]
    sums = np.cumsum(ordered)
    k = max(k for k in range(1, len(row) + 1) if 1 + k * ordered[k - 1] > sums[k - 1])
    return np.maximum(row - (sums[k - 1] - 1) / k, 0)


def test_sparsemax_against_numpy_with_exact_zeros(standard_promotion):
    logits = np.random.default_rng(0).normal(scale=1.5, size=(5, 8, 7)).astype(np.float32)
    want = np.apply_along_axis(_sparsemax, -1, logits)
    got = np.asarray(losses.sparsemax(jnp.asarray(logits)))
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(got == 0, want == 0)
    assert 0.2 < np.mean(got == 0) < 0.8
