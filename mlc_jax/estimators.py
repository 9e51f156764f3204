"""Estimators of the meta-gradient, as settings of a method: `mlc(..., estimator=truncated(5))`.

docs/meta_gradients.md compares them; `mlc_jax.core.estimators` computes them.
"""

from mlc_jax.core import BACKWARDS, EstimatorSpec
from mlc_jax.errors import expect


def exact(*, backward: str = "forward_over_reverse") -> EstimatorSpec:
    """Reverse-mode differentiation through all k inner steps of a window.

    Args:
      backward: what the backward pass keeps of each inner step: `store` (everything), `remat` (the
        state), `forward_over_reverse` (the params), `two_level` (every sqrt(k)-th state).

    Raises:
      InputError: `backward` is none of these.
    """
    return EstimatorSpec("exact", backward=_known(backward))


def truncated(steps: int, *, backward: str = "forward_over_reverse") -> EstimatorSpec:
    """`exact` through only the last `steps` of the k inner steps.

    Raises:
      InputError: `steps` is less than 1, or `backward` is unknown.
    """
    expect(steps >= 1, "steps", steps, "at least 1")
    return EstimatorSpec("truncated", backward=_known(backward), truncation=steps)


def first_order() -> EstimatorSpec:
    """Through all k inner steps, without Hessians.

    It ignores that each step also changes the gradients of later steps.
    """
    return EstimatorSpec("first_order")


def approximate() -> EstimatorSpec:
    """The recursion over all k inner steps of Zheng et al. (2021), equations 4-7."""
    return EstimatorSpec("approximate")


def one_step() -> EstimatorSpec:
    """Through only the last inner step. No backward pass is differentiated (arXiv 2305.12961)."""
    return EstimatorSpec("one_step")


def finite_difference() -> EstimatorSpec:
    """`one_step`, computed as a central difference (Liu et al. 2019, DARTS)."""
    return EstimatorSpec("finite_difference")


def neumann(solver_steps: int = 10) -> EstimatorSpec:
    """Implicit differentiation (Lorraine et al. 2020).

    Args:
      solver_steps: terms of the Neumann series that approximates the inverse Hessian.

    Raises:
      InputError: `solver_steps` is less than 1.
    """
    expect(solver_steps >= 1, "solver_steps", solver_steps, "at least 1")
    return EstimatorSpec("neumann", solver_steps=solver_steps)


def conjugate_gradient(solver_steps: int = 10, damping: float = 1.0) -> EstimatorSpec:
    """Implicit differentiation by conjugate gradients (Rajeswaran et al. 2019).

    Args:
      solver_steps: iterations.
      damping: is added to the Hessian's diagonal; should exceed the size of negative eigenvalues.

    Raises:
      InputError: `solver_steps` is less than 1, or `damping` is negative.
    """
    expect(solver_steps >= 1, "solver_steps", solver_steps, "at least 1")
    expect(damping >= 0, "damping", damping, "at least 0")
    return EstimatorSpec("conjugate_gradient", solver_steps=solver_steps, damping=damping)


def _known(backward: str) -> str:
    expect(backward in BACKWARDS, "backward", backward, f"one of {', '.join(BACKWARDS)}")
    return backward
