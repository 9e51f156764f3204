"""Estimators of the meta-gradient, as settings of a method: `mlc(..., estimator=truncated(5))`.

docs/meta_gradients.md compares them; `mlc_jax.core.estimators` computes them.
"""

from mlc_jax.core import BACKWARDS, EstimatorSpec
from mlc_jax.errors import expect


def exact(*, backward: str = "forward_over_reverse") -> EstimatorSpec:
    """Reverse mode through all k inner steps.

    Args:
      backward: what the backward pass keeps of every inner step: `store` (everything), `remat` (the
        state), `forward_over_reverse` (the params), `two_level` (every sqrt(k)-th state).
    """
    return EstimatorSpec("exact", backward=_known(backward))


def truncated(steps: int, *, backward: str = "forward_over_reverse") -> EstimatorSpec:
    """Reverse mode through the last `steps` of the k inner steps; `backward` as for `exact`."""
    expect(steps >= 1, "steps", steps, "at least 1")
    return EstimatorSpec("truncated", backward=_known(backward), truncation=steps)


def first_order() -> EstimatorSpec:
    """Through all k inner steps, but for what changes one leaves the gradients of later ones."""
    return EstimatorSpec("first_order")


def approximate() -> EstimatorSpec:
    """The paper's recursion over all k inner steps (equations 4-7)."""
    return EstimatorSpec("approximate")


def one_step() -> EstimatorSpec:
    """Through the last inner step alone, without differentiating a backward pass."""
    return EstimatorSpec("one_step")


def finite_difference() -> EstimatorSpec:
    """`one_step` by a central difference (DARTS)."""
    return EstimatorSpec("finite_difference")


def neumann(solver_steps: int = 10) -> EstimatorSpec:
    """Implicit differentiation; the inverse Hessian as a series of `solver_steps` terms."""
    expect(solver_steps >= 1, "solver_steps", solver_steps, "at least 1")
    return EstimatorSpec("neumann", solver_steps=solver_steps)


def conjugate_gradient(solver_steps: int = 10, damping: float = 1.0) -> EstimatorSpec:
    """Implicit differentiation by `solver_steps` iterations of conjugate gradients.

    Args:
      solver_steps: iterations.
      damping: added to the Hessian's diagonal; above the size of its negative eigenvalues.
    """
    expect(solver_steps >= 1, "solver_steps", solver_steps, "at least 1")
    expect(damping >= 0, "damping", damping, "at least 0")
    return EstimatorSpec("conjugate_gradient", solver_steps=solver_steps, damping=damping)


def _known(backward: str) -> str:
    expect(backward in BACKWARDS, "backward", backward, f"one of {', '.join(BACKWARDS)}")
    return backward
