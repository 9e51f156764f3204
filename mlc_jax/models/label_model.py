"""Combines given labels, classifiers and a few checks into the label of a row.

    q(y | n)  ~  exp( a log p(y | x_n) + l sum_s log( R_s[v_ns, y] / pi_y )
                      + b log p_given(y | x_n) + c log p_checked(y | x_n) )

`p` is a classifier that did not learn from the row, `R_s[v, y] = P(y | source s says v)`, and `pi`
the share of each class. `p_given` learned the labels as given, `p_checked` the checked rows alone.
These two are the rivals: what one would train instead. With them the pool, which combines all four
terms, is hardly ever worse than they are. The four weights are fitted by the likelihood of checks
that nothing else saw (`fit_weights`). Labels without information get an l near 0, a classifier that
knows nothing an a near 0.

Letters in shapes: N rows, S sources of given labels, C classes, M judged rows. `R` is counted on
checked rows, and with less weight on doubtful ones. It is smoothed towards the accuracy of all
labels together. Otherwise a handful of checked rows per class would decide by chance.
"""

import jax
import jax.numpy as jnp
import optax

LOG_FLOOR = -9.0  # No classifier may rule a class out.
NUM_TERMS = 4

_WEIGHT_STEPS, _WEIGHT_RATE = 300, 0.05


def source_counts(
    votes: jax.Array,
    q: jax.Array,
    weight: jax.Array,
    checked_weight: jax.Array,
    pi: jax.Array,
    prior_strength: float,
    trust: tuple[jax.Array | float, jax.Array | float] = (1.0, 2.0),
) -> jax.Array:
    """`R` `[S, V, C]`, P(class | given label), with V = C.

    The prior of a row of `R` has `rho` at the label itself and the rest by class frequency. It
    counts as `prior_strength` rows. For one source `rho` is its accuracy on checked rows, smoothed
    by `trust`. Each of several sources has its own `rho`, from all rows, smoothed by
    `prior_strength` rows of the mean accuracy of all sources.

    Args:
      votes: `[N, S]` int16; -1 where a source said nothing.
      q: `[N, C]`, estimated labels; one-hot where a row is checked.
      weight: `[N]`, by which a row is counted: 1 if it is checked, less if it is doubtful.
      checked_weight: `[N]`, the same for checked rows, 0 elsewhere.
      pi: `[C]`.
      prior_strength: pseudo-counts.
      trust: pseudo-counts of checked rows: how many have the right label, and of how many.
    """
    num_classes = q.shape[1]
    eye = jnp.eye(num_classes, dtype=q.dtype)
    others = pi[None, :] * (1 - eye)
    others = others / jnp.sum(others, axis=1, keepdims=True)

    def agreement(vote: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sums over checked rows and all rows, `[2]`: of labels that are right, and of labels."""
        said = (vote >= 0).astype(q.dtype)
        place = jnp.maximum(vote, 0).astype(jnp.int32)
        right = jnp.take_along_axis(q, place[:, None], axis=1)[:, 0] * said
        weights = jnp.stack([checked_weight, weight])
        return weights @ right, weights @ said

    right, said = jax.lax.map(agreement, votes.T)
    rho = (jnp.sum(right[:, 0]) + trust[0]) / (jnp.sum(said[:, 0]) + trust[1])
    if votes.shape[1] == 1:  # One source is all of them.
        rhos = rho[None]
    else:
        # A source counts once, however many labels it gave: otherwise one that labels every row and
        # is mostly wrong would outweigh all others.
        each = right[:, 0] / jnp.maximum(said[:, 0], 1)
        seen = jnp.minimum(said[:, 0], 1)
        rho = (jnp.sum(seen * each) + trust[0]) / (jnp.sum(seen) + trust[1])
        rhos = (right[:, 1] + prior_strength * rho) / (said[:, 1] + prior_strength)

    def of_source(source: tuple[jax.Array, jax.Array]) -> jax.Array:
        vote, rho = source
        spoke = (vote >= 0).astype(q.dtype)
        counted = q * (weight * spoke)[:, None]
        counts = jax.ops.segment_sum(counted, jnp.maximum(vote, 0).astype(jnp.int32), num_classes)
        counts = counts + prior_strength * (rho * eye + (1 - rho) * others)
        return counts / jnp.sum(counts, axis=1, keepdims=True)

    result: jax.Array = jax.lax.map(of_source, (votes.T, rhos))
    return result


def label_term(votes: jax.Array, matrices: jax.Array, pi: jax.Array) -> jax.Array:
    """`sum_s log(R_s[v_ns, y] / pi_y)` `[N, C]`, over the sources that said something.

    Args:
      votes: `[N, S]` int16.
      matrices: `R` `[S, V, C]`.
      pi: `[C]`.
    """

    def add(total: jax.Array, source: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        vote, matrix = source
        term = jnp.log(matrix)[jnp.maximum(vote, 0).astype(jnp.int32)] - jnp.log(pi)
        return total + jnp.where((vote >= 0)[:, None], term, jnp.zeros_like(term)), None

    zeros = jnp.zeros((votes.shape[0], matrices.shape[-1]), matrices.dtype)
    return jax.lax.scan(add, zeros, (votes.T, matrices))[0]


def class_shares(q: jax.Array, weight: jax.Array) -> jax.Array:
    """`pi` `[C]`: the mean of q `[N, C]` by weight `[N]`, with one more row of even shares."""
    sums = jnp.sum(q * weight[:, None], axis=0) + 1 / q.shape[1]
    return sums / jnp.sum(sums)


def shifted_shares(
    evidence: jax.Array, rows: jax.Array, floor: float, steps: int = 100
) -> jax.Array:
    """`pi` `[C]` where the checked rows do not say how frequent classes are: label-shift EM.

    Source: Saerens, Latinne, Decaestecker (2002), "Adjusting the Outputs of a Classifier to New a
    Priori Probabilities". Here a pseudo-count per class and a floor keep classes from vanishing.

    Args:
      evidence: `[N, C]`, log P(what is known of the row | class) up to a constant per row, from
        what was learned without `pi`.
      rows: `[N]`, 1 where a row counts.
      floor: the least share of a class, as a part of 1 / C.
      steps: number of iterations.
    """
    num_classes = evidence.shape[1]

    def step(_: int, pi: jax.Array) -> jax.Array:
        shares = jnp.sum(jax.nn.softmax(evidence + jnp.log(pi)) * rows[:, None], axis=0) + 1
        shares = jnp.maximum(shares / jnp.sum(shares), floor / num_classes)
        return shares / jnp.sum(shares)

    start = jnp.full(num_classes, 1 / num_classes, evidence.dtype)
    shares: jax.Array = jax.lax.fori_loop(0, steps, step, start)
    return shares


def pool(weights: jax.Array, *terms: jax.Array) -> jax.Array:
    """`log q` `[..., C]`, of the weights `(a, l, b, c)` `[4]` and as many terms `[..., C]`."""
    total = weights[0] * terms[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total = total + weight * term
    return jax.nn.log_softmax(total)


def fit_weights(
    terms: jax.Array,
    checks: jax.Array,
    counts: jax.Array,
    trust_widths: tuple[float, float],
    rival_width: float,
) -> tuple[jax.Array, jax.Array]:
    """The weights `(a, l, b, c)` `[4]`, and the log-likelihood there.

    Maximum a posteriori estimates from checks that none of the terms saw, found by Adam.

    Args:
      terms: `[M, 4, C]`: log p, label term, log p_given, log p_checked.
      checks: `[M]` int32.
      counts: `[M]`, by which a row counts.
      trust_widths: widths of the log-normal priors of a and l, whose medians are 1. The first is
        for a, and for l below 1; the second is for l above 1.
      rival_width: width of the half-normal priors of b and c.
    """

    is_log = jnp.arange(NUM_TERMS) < 2  # The parameters of a and l are their logarithms.
    rivals = (rival_width, rival_width)
    below = jnp.array([trust_widths[0], trust_widths[0], *rivals], terms.dtype)
    above = jnp.array([*trust_widths, *rivals], terms.dtype)
    right = jax.nn.one_hot(checks, terms.shape[-1], dtype=terms.dtype)

    def weights_of(theta: jax.Array) -> jax.Array:
        return jnp.where(is_log, jnp.exp(theta), theta)

    def log_pool(theta: jax.Array) -> jax.Array:
        return pool(weights_of(theta), *jnp.moveaxis(terms, 1, 0))

    def gradient(theta: jax.Array) -> jax.Array:
        """Of the negative log posterior. Written out, it compiles in two thirds of the time."""
        log_q = log_pool(theta)
        counted = counts * (jnp.sum(right * log_q, axis=-1) > LOG_FLOOR)
        by_weight = jnp.einsum("m,mtc,mc->t", counted, terms, jnp.exp(log_q) - right)
        widths = jnp.where(theta > 0, above, below)
        return theta / jnp.square(widths) + by_weight * jnp.where(is_log, jnp.exp(theta), 1)

    adam = optax.adam(optax.cosine_decay_schedule(_WEIGHT_RATE, _WEIGHT_STEPS))

    def step(carry: tuple[jax.Array, optax.OptState], _: None) -> tuple[tuple, None]:
        theta, state = carry
        updates, state = adam.update(gradient(theta), state)
        theta = theta + updates
        return (jnp.where(is_log, theta, jnp.maximum(theta, 0)), state), None

    start = jnp.array([0.0, 0.0, 0.1, 0.1], terms.dtype) * min(1.0, rival_width)
    (theta, _), _ = jax.lax.scan(step, (start, adam.init(start)), None, length=_WEIGHT_STEPS)
    log_q = jnp.maximum(log_pool(theta), LOG_FLOOR)
    return weights_of(theta), jnp.sum(counts * jnp.sum(right * log_q, axis=-1))
