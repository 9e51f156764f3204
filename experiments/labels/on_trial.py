"""The paper's idea on trial: which gradient should teach the label model?

    python -m experiments.labels.on_trial --workdir=DIR

In the paper, "the clean set serves as a validation set": the label model follows the gradient of
the clean loss through real updates of the classifier. Here this has its best chance: the outer loss
is on checked rows that no classifier learned from. Checked rows have K folds, all rows H parts. Run
(k, h) hides fold k, which only judges, and fold k + 1, the outer loss. It learns from the other
folds and from doubtful rows outside of part h. All arms see the same rows, batches and starts:

* `fixed`: the label model as counted, its weights at 1; nothing is learned.
* `likelihood`: weights and matrix follow the likelihood of the checks of fold k + 1, given
  out-of-fold predictions and given labels.
* `meta`: they follow the meta-gradient through some steps of SGD instead, by one of the estimators
  of `mlc_jax.core`.
* `both`: the sum of the two, each scaled to length 1.
* `network`: the paper's network, given labels and features in, label distribution out, by the
  meta-gradient or by the likelihood. It starts as the labels as given.

With `--arms=beyond`, what a label model with few weights can not express:

* `by row`: l depends on the row, `log l_s(x) = log l + u_s x`: a source may be right here and wrong
  there.
* `decay`: the weight decay of the classifier follows the meta-gradient, one for all weights or one
  for each feature, while a and l follow the likelihood. Beside it: three fixed ones, and the one of
  these that the likelihood of fold k + 1 chooses.

The label model is `q ~ exp(a log p_oof + l sum_s log(R_s[v_s] / pi))` with a, l and R learned, or a
and l alone; AdamW pulls them to where they start. With several labels per row (`annotators`,
`crowd`, `rules`, see `vote_sets`) R has a matrix for each source, and the network sums the
embeddings of a row's labels. The table has the percentage of doubtful rows whose corrected label is
right, and the same for fold k, from which nothing learned. It also has the cosine between the two
gradients, both taken at the arm's parameters.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from etils import epath
from tqdm import tqdm

from experiments.labels import vote_sets
from experiments.labels.cross_fitted import Draw
from experiments.labels.tables_of_people import KINDS, TABLES, LabelledTable, draw, named
from experiments.records import Records, Row, clear_programs
from experiments.tables import to_csv, to_markdown, values, where
from mlc_jax import command_line, paths
from mlc_jax.core import Batch, Labelled, MainState, Params, Problem, inner_step, outer_loss
from mlc_jax.core.estimators import ESTIMATORS
from mlc_jax.core.losses import vote_shares
from mlc_jax.core.window import Options
from mlc_jax.data import UNKNOWN
from mlc_jax.data.votes import vote_of_most
from mlc_jax.errors import expect
from mlc_jax.models.label_model import LOG_FLOOR, label_term, source_counts

_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the tables.")
_SETS = flags.DEFINE_string(
    "sets", "wine,breast_cancer,iris,penguins,biopsy,pima,crabs,glass",
    f"Some of {', '.join(TABLES)}; or FILE.npz.",
)  # fmt: skip
_KINDS = (*KINDS, *vote_sets.KINDS)
_NOISE = flags.DEFINE_string("noise", "flip,hard", f"Kinds of labels: {', '.join(_KINDS)}.")
_ARMS = flags.DEFINE_enum("arms", "gradients", ["gradients", "beyond"], "What to compare.")
_CHECKED = flags.DEFINE_integer("checked", 30, "Rows checked at random.", lower_bound=10)
_DRAWS = flags.DEFINE_integer("draws", 3, "Of rows and wrong labels.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first_draw", 0, "Number of the first draw.", lower_bound=0)

_FOLDS, _PARTS = 5, 2
_ROUNDS, _STEPS, _BATCH = 4, 300, 128
_RATE, _DECAY = 0.3, 1e-3  # Of the classifier's SGD.
_DECAYS = (1e-2, 1e-3, 1e-4)  # Of which the likelihood chooses, as in `cross_fit`.
_MOST_DECAY = 5.0  # A learned weight decay is at most exp(5) times its start, or a part of it.
_META_RATE, _META_DECAY = 0.02, 0.05  # Of the label model's AdamW.
_PRIOR_STRENGTH = 10.0  # Of R, as in `cross_fit`.
_HIDDEN = 32  # Of the network.


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to teach the label model.

    Attributes:
      by: fixed, likelihood, meta or both.
      num_steps: k of the window.
      estimator: of the meta-gradient.
      network: whether the paper's network replaces the label model above.
      matrix: whether R is learned, too, and not the two weights alone.
      by_row: whether l depends on the row's features.
      decay: of the classifier's weights, or where the meta-gradient starts.
      decays: what the meta-gradient learns of it: "" nothing, "one" or "each" feature's.
    """

    by: str
    num_steps: int = 1
    estimator: str = "exact"
    network: bool = False
    matrix: bool = True
    by_row: bool = False
    decay: float = _DECAY
    decays: str = ""

    @property
    def name(self) -> str:
        if self.decays:
            return f"decay of {self.decays}, k={self.num_steps}"
        if self.decay != _DECAY:
            return f"decay {self.decay:g}"
        name = "network" if self.network else self.by
        if self.by not in ("fixed", "likelihood"):
            name += f" k={self.num_steps} {self.estimator}"
        elif self.network:
            name += f" {self.by}"
        if self.by_row:
            return f"{name}, by row"
        return name if self.matrix else f"{name}, a and l alone"


_ALONE = functools.partial(Arm, matrix=False)
_GRADIENTS = (
    Arm("fixed"),
    Arm("likelihood"),
    Arm("likelihood", matrix=False),
    Arm("meta", 1),
    Arm("meta", 1, matrix=False),
    Arm("meta", 5),
    Arm("meta", 5, "one_step"),
    Arm("meta", 5, "approximate"),
    Arm("both", 1),
    Arm("meta", 1, network=True),
    Arm("meta", 5, network=True),
    Arm("meta", 5, "one_step", network=True),
    Arm("likelihood", network=True),
)
_BEYOND = (
    _ALONE("likelihood"),
    _ALONE("likelihood", by_row=True),
    _ALONE("meta", 1),
    _ALONE("meta", 1, by_row=True),
    _ALONE("meta", 5),
    _ALONE("meta", 5, by_row=True),
    *(_ALONE("likelihood", decay=decay) for decay in _DECAYS if decay != _DECAY),
    *(_ALONE("likelihood", k, decays=which) for which in ("one", "each") for k in (1, 5)),
)
ARMS = {"gradients": _GRADIENTS, "beyond": _BEYOND}
_CHOSEN = "decay chosen"  # An arm that is made of others.


class _Draw(NamedTuple):
    """Arrays of a draw; what differs between folds has a leading axis K.

    Attributes:
      x: `[N, F]`.
      votes: `[N, S]`, -1 where a source said nothing.
      truth, part: `[N]`.
      known: `[K, N]`, the checked label where run (k, .) sees it, else -1.
      outer, judges: `[K, M / K]` row numbers.
      lists: `[K, H, L]` row numbers that a run learns from.
      start: R `[K, S, C, C]` and pi `[K, C]`, counted on what the run sees.
    """

    x: jax.Array
    votes: jax.Array
    truth: jax.Array
    part: jax.Array
    known: jax.Array
    outer: jax.Array
    judges: jax.Array
    lists: jax.Array
    start: tuple[jax.Array, jax.Array]


def _drawn(name: str, kind: str, checked: int, number: int) -> Draw:
    """A draw of a table: with one label per row, or with votes."""
    choice = f"random:{checked}"
    if kind in vote_sets.KINDS:
        return vote_sets.draw(vote_sets.load(f"{kind}:{name}", number), choice, number)
    cell = draw(name, TABLES[name](), kind, choice, number)
    return Draw(cell.rows, cell.given[:, None], cell.truth, cell.checked)


def _of_one_size(cells: Sequence[Draw]) -> list[Draw]:
    """Adds sources that say nothing, so that all draws have equally many."""
    most = max(cell.votes.shape[1] for cell in cells)
    padded = []
    for cell in cells:
        width = ((0, 0), (0, most - cell.votes.shape[1]))
        padded.append(cell._replace(votes=np.pad(cell.votes, width, constant_values=UNKNOWN)))
    return padded


def _given(cell: Draw, num_classes: int) -> np.ndarray:
    """The majority `[N]`; ties go to the lower class."""
    return vote_of_most(cell.votes, np.full(cell.votes.shape[1], 0.5), num_classes)


def _arrays(table: LabelledTable, cell: Draw, seed: int) -> _Draw:
    num_classes, size = int(table.labels.max()) + 1, len(cell.rows)
    votes = jnp.asarray(cell.votes, jnp.int32)
    rng = np.random.default_rng([seed, 1])
    checked = rng.permutation(np.flatnonzero(cell.checked))
    checked = checked[: len(checked) // _FOLDS * _FOLDS].reshape(_FOLDS, -1)
    part = rng.permutation(np.arange(size) % _PARTS)
    known, lists, starts = [], [], []
    for k in range(_FOLDS):
        seen = np.full(size, -1)
        rest = np.concatenate([checked[(k + j) % _FOLDS] for j in range(2, _FOLDS)])
        seen[rest] = cell.truth[rest]
        known.append(seen)
        own = [np.flatnonzero(part != h) for h in range(_PARTS)]
        least = min(len(x) for x in own)
        lists.append([rng.permutation(x)[:least] for x in own])
        weight = jnp.asarray(seen >= 0, jnp.float32)
        shares = np.bincount(seen[rest], minlength=num_classes) + 1 / num_classes
        pi = jnp.asarray(shares / shares.sum(), jnp.float32)
        one_hot = jax.nn.one_hot(seen, num_classes)
        starts.append((source_counts(votes, one_hot, weight, weight, pi, _PRIOR_STRENGTH), pi))
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *starts)
    return _Draw(
        jnp.asarray(table.features[cell.rows]), votes, jnp.asarray(cell.truth),
        jnp.asarray(part), jnp.asarray(known), jnp.asarray(np.roll(checked, -1, axis=0)),
        jnp.asarray(checked), jnp.asarray(lists), stacked,
    )  # fmt: skip


# The label model. Its params are `start`, which was counted, and `learned`.


def _init_belief(arm: Arm, data: _Draw, num_classes: int) -> Params:
    num_sources = data.votes.shape[1]
    if not arm.network:
        learned = {"log_weights": jnp.zeros(2)}
        if arm.matrix:
            learned["matrix"] = jnp.zeros((num_sources, num_classes, num_classes))
        if arm.by_row:
            learned["by_row"] = jnp.zeros((num_sources, data.x.shape[1]))
        if arm.decays:  # Their logarithms, in units of where they start.
            learned["decays"] = jnp.zeros(1 if arm.decays == "one" else (data.x.shape[1], 1))
        return learned
    sizes = (data.x.shape[1] + num_sources * num_classes, _HIDDEN)
    hidden = jax.random.normal(jax.random.key(0), sizes) / np.sqrt(sizes[0])
    return {"hidden": hidden, "out": jnp.zeros((_HIDDEN, num_classes))}


def _log_labels(
    arm: Arm, params: Params, x: jax.Array, log_p: jax.Array, votes: jax.Array
) -> jax.Array:
    """`log q` `[B, C]`, of rows with features `x` and out-of-fold predictions `log_p`."""
    (matrix, pi), belief = params["start"], params["learned"]
    num_classes = pi.shape[0]
    if arm.network:
        # A layer of what each source said is the sum of embeddings.
        said = jax.nn.one_hot(votes, num_classes).reshape(len(votes), -1)
        logits = jnp.tanh(jnp.concatenate([x, said], axis=-1) @ belief["hidden"]) @ belief["out"]
        return jax.nn.log_softmax(logits + 3 * vote_shares(votes, num_classes))
    moved = jax.nn.softmax(jnp.log(matrix) + belief.get("matrix", 0.0), axis=-1)
    of_classifier, of_label = jnp.exp(belief["log_weights"])
    if not arm.by_row:
        says = label_term(votes, moved, pi)
        return jax.nn.log_softmax(of_classifier * log_p + of_label * says)
    of_source = jax.vmap(lambda vote, matrix: label_term(vote[:, None], matrix[None], pi))
    of_row = jnp.exp(belief["by_row"] @ x.T / jnp.sqrt(x.shape[1]))  # [S, B]
    says = jnp.sum(of_row[..., None] * of_source(votes.T, moved), axis=0)
    return jax.nn.log_softmax(of_classifier * log_p + of_label * says)


def _problem(arm: Arm, decays: jax.Array | None = None) -> Problem:
    """A linear classifier, and targets by the label model; inputs are trees of a row's arrays.

    Args:
      arm: the arm.
      decays: logarithms of weight decays, `[1]` or `[F, 1]`, in units of the arm's.
    """

    def apply(params: Params, stats: Params, inputs: Any, rng: Any) -> Any:
        del rng
        logits = inputs["x"] @ params["w"] + params["b"]
        return logits, logits, stats

    def targets(params: Params, row: Any, logits: jax.Array, votes: jax.Array) -> jax.Array:
        log_q = _log_labels(arm, params, row["x"], row["log_p"], votes)
        one_hot = jax.nn.one_hot(row["known"], logits.shape[-1])
        return jnp.where(row["known"][:, None] >= 0, one_hot, jnp.exp(log_q))

    scale = 1.0 if decays is None else jnp.exp(jnp.clip(decays, -_MOST_DECAY, _MOST_DECAY))

    def decayed(updates: Params, params: Params | None) -> Params:
        assert params is not None
        decays = {"w": arm.decay * scale, "b": arm.decay}
        return {name: updates[name] + decays[name] * params[name] for name in decays}

    decay = optax.add_decayed_weights(arm.decay) if decays is None else optax.stateless(decayed)
    tx = optax.chain(decay, optax.sgd(_RATE))
    return Problem(apply, targets, tx, evidence=lambda output, inputs, rng: inputs)


def _unit(tree: Any) -> Any:
    norm = optax.tree.norm(tree)
    return jax.tree.map(lambda leaf: leaf / jnp.maximum(norm, 1e-12), tree)


def _train_fold(arm: Arm, data: _Draw, k: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`log q` `[N, C]` by the runs of fold k, and the mean cosine of the two gradients."""
    start = jax.tree.map(lambda leaf: leaf[k], data.start)
    num_classes, num_features = start[1].shape[0], data.x.shape[1]
    problem = _problem(arm)
    known, outer = data.known[k], data.outer[k]
    adam = optax.adamw(_META_RATE, weight_decay=_META_DECAY)

    def rows(places: jax.Array, log_p: jax.Array) -> Any:
        return {"x": data.x[places], "log_p": log_p[places], "known": known[places]}

    def likelihood(belief: Params, log_p: jax.Array) -> Params:
        def loss(belief: Params) -> jax.Array:
            params = {"start": start, "learned": belief}
            log_q = _log_labels(arm, params, data.x[outer], log_p[outer], data.votes[outer])
            log_q = jnp.maximum(log_q, LOG_FLOOR)
            return -jnp.mean(jnp.take_along_axis(log_q, data.truth[outer][:, None], axis=1))

        return jax.grad(loss)(belief)

    def window(carry: Any, key: jax.Array, log_p: jax.Array) -> tuple[Any, jax.Array]:
        mains, belief, opt_state = carry
        size = (arm.num_steps, _BATCH)
        places = jax.random.randint(key, size, 0, data.lists.shape[2])  # The same for each part.
        keys = jax.random.split(key, arm.num_steps)
        clean = Labelled(rows(outer, log_p), data.truth[outer])
        params = {"start": start, "learned": belief}

        def noisy(own: jax.Array) -> Labelled:
            drawn = own[places]
            return Labelled(rows(drawn, log_p), data.votes[drawn])

        def of_labels(main: MainState, own: jax.Array) -> tuple[Params, MainState]:
            each = jax.tree.map(lambda leaf: jnp.stack([leaf] * arm.num_steps), clean)
            found = ESTIMATORS[arm.estimator](
                problem, main, params, Batch(noisy(own), None, each), keys, Options()
            )
            return found.meta_grads["learned"], found.main

        def of_decays(main: MainState, own: jax.Array) -> tuple[Params, MainState]:
            def trained(decays: jax.Array) -> tuple[jax.Array, MainState]:
                decayed = _problem(arm, decays)

                def step(main: MainState, of_step: Any) -> tuple[MainState, Any]:
                    labelled, key = of_step
                    return inner_step(decayed, main, params, Batch(labelled, None, None), key)

                after, _ = jax.lax.scan(step, main, (noisy(own), keys))
                return outer_loss(decayed, after.params, {}, clean, key)[0], after

            return jax.grad(trained, has_aux=True)(belief["decays"])

        grads, mains = jax.vmap(of_decays if arm.decays else of_labels)(mains, data.lists[k])
        meta = _unit(jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads))
        direct = _unit(likelihood(belief, log_p))
        if arm.decays:
            cosine, grads = jnp.asarray(jnp.nan), direct | {"decays": meta}
        else:
            cosine = optax.tree.vdot(meta, direct)
            together = jax.tree.map(jnp.add, meta, direct)
            grads = {"likelihood": direct, "both": together}.get(arm.by, meta)
        if arm.by == "fixed":
            return (mains, belief, opt_state), cosine
        updates, opt_state = adam.update(grads, opt_state, belief)
        return (mains, optax.apply_updates(belief, updates), opt_state), cosine

    def out_of_part(mains: MainState) -> jax.Array:
        logits = jnp.einsum("nf,hfc->hnc", data.x, mains.params["w"]) + mains.params["b"][:, None]
        of_each = jnp.maximum(jax.nn.log_softmax(logits), LOG_FLOOR)
        return jnp.take_along_axis(of_each, data.part[None, :, None], axis=0)[0]

    def a_round(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        mains, belief, opt_state, log_p = carry
        keys = jax.random.split(jax.random.fold_in(key, number), _STEPS // arm.num_steps)
        step = functools.partial(window, log_p=log_p)
        (mains, belief, opt_state), cosines = jax.lax.scan(step, (mains, belief, opt_state), keys)
        return (mains, belief, opt_state, out_of_part(mains)), jnp.mean(cosines)

    params = {
        "w": jnp.zeros((_PARTS, num_features, num_classes)), "b": jnp.zeros((_PARTS, num_classes))
    }  # fmt: skip
    mains = MainState(params, {}, jax.vmap(problem.tx.init)(params))
    belief = _init_belief(arm, data, num_classes)
    # Before the first round classifiers know how frequent classes are.
    log_p = jnp.broadcast_to(jnp.log(start[1]), (len(data.x), num_classes))
    state = (mains, belief, adam.init(belief), log_p)
    (_, belief, _, log_p), cosines = jax.lax.scan(a_round, state, jnp.arange(_ROUNDS))
    params = {"start": start, "learned": belief}
    log_q = _log_labels(arm, params, data.x, log_p, data.votes)
    return log_q, jnp.mean(cosines[1:])


@functools.partial(jax.jit, static_argnums=0)
def _train(arm: Arm, draws: _Draw, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Over draws and folds: `log q` `[D, K, N, C]`, cosines `[D, K]`."""

    def of_draw(data: _Draw, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = functools.partial(_train_fold, arm, data)
        return jax.vmap(lambda k: each(k, key))(jnp.arange(_FOLDS))

    return jax.vmap(of_draw)(draws, keys)


def measure(
    name: str,
    noises: Sequence[str],
    checked: int,
    draws: Sequence[int],
    arms: Sequence[Arm] = _GRADIENTS,
) -> list[Row]:
    """All arms on all draws of a table."""
    table = TABLES[name]()
    places = [(noise, number) for noise in noises for number in draws]
    cells = _of_one_size([_drawn(name, noise, checked, number) for noise, number in places])
    arrays = [_arrays(table, cell, number) for cell, (_, number) in zip(cells, places, strict=True)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *arrays)
    keys = jax.vmap(jax.random.key)(np.array([number for _, number in places]))
    rows: list[Row] = []
    for arm in arms:
        log_q, cosines = jax.device_get(_train(arm, stacked, keys))
        for i, (noise, number) in enumerate(places):
            cell, data = cells[i], arrays[i]
            given = _given(cell, int(table.labels.max()) + 1)
            said = np.exp(log_q[i]).mean(axis=0).argmax(axis=-1)
            doubtful = ~cell.checked
            judged = [
                log_q[i][k][at].argmax(axis=-1) == cell.truth[at]
                for k, at in enumerate(np.asarray(data.judges))
            ]
            outer = np.asarray(data.outer)
            likelihood = [
                log_q[i][k][at, cell.truth[at]].mean() for k, at in enumerate(outer)
            ]  # fmt: skip
            rows.append({
                "set": name, "noise": noise, "draw": number, "arm": arm.name,
                "given": float(100 * np.mean(given[doubtful] == cell.truth[doubtful])),
                "right": float(100 * np.mean(said[doubtful] == cell.truth[doubtful])),
                "judged": float(100 * np.mean(judged)),
                "cosine": float(cosines[i].mean()), "likelihood": float(np.mean(likelihood)),
            })  # fmt: skip
    clear_programs()
    fixed = {
        arm.name: arm.decay
        for arm in arms
        if arm.by == "likelihood" and not (arm.by_row or arm.decays)
    }
    if {*fixed.values()} == {*_DECAYS}:
        for noise, number in places:
            of_decays = [
                row for row in where(rows, noise=noise, draw=number) if row["arm"] in fixed
            ]
            best = max(of_decays, key=lambda row: row["likelihood"])
            rows.append({**best, "arm": _CHOSEN})
    return rows


def tables(rows: Sequence[Row]) -> str:
    """Markdown: percent of doubtful rows right by arm, cell by cell, and the mean."""
    arms = values(rows, "arm")
    cells = [
        where(rows, set=name, noise=noise)
        for name in values(rows, "set")
        for noise in values(rows, "noise")
    ]
    body = []
    for cell in cells:
        numbers = [np.mean([row["right"] for row in where(cell, arm=arm)]) for arm in arms]
        given = np.mean([row["given"] for row in cell])
        first = cell[0]
        body.append([first["set"], first["noise"], *(f"{x:.1f}" for x in (given, *numbers))])
    given = np.mean([row["given"] for row in rows])
    for name, field in (("mean", "right"), ("judged fold", "judged"), ("cosine", "cosine")):
        of_arms = [np.mean([row[field] for row in where(rows, arm=arm)]) for arm in arms]
        form = "{:.2f}" if field == "cosine" else "{:.1f}"
        first_column = "" if field != "right" else f"{given:.1f}"
        shown = ["" if np.isnan(x) else form.format(x) for x in of_arms]
        body.append([f"**{name}**", "", first_column, *shown])
    start = next(arm for arm in arms if arm.startswith("likelihood"))
    base = {(r["set"], r["noise"], r["draw"]): r["right"] for r in where(rows, arm=start)}
    gains = []
    for arm in arms:
        gain = [
            row["right"] - base[row["set"], row["noise"], row["draw"]]
            for row in where(rows, arm=arm)
        ]
        error = np.std(gain) / np.sqrt(max(1, len(gain)))
        gains.append(f"{np.mean(gain):+.1f} ± {error:.1f}")
    body.append(["**minus likelihood**", "", "", *gains])
    return to_markdown(["table", "labels", "given", *arms], body, text_columns=(0, 1))


def main() -> None:
    """Measures what is missing, and writes the tables."""
    sets, noises = named(_SETS.value), _NOISE.value.split(",")
    for noise in noises:
        expect(noise in _KINDS, "--noise", noise, f"some of {', '.join(_KINDS)}")
    draws = list(range(_FIRST.value, _FIRST.value + _DRAWS.value))
    workdir = epath.Path(paths.absolute(_WORKDIR.value, "--workdir"))
    workdir.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"noise": noises, "draws": draws, "checked": _CHECKED.value}
    if _ARMS.value != "gradients":
        settings["arms"] = _ARMS.value
    records = Records(workdir / "on_trial.jsonl", settings)
    rows: list[Row] = []
    for name in tqdm(sets, disable=None, unit="table"):
        one = functools.partial(measure, name, noises, _CHECKED.value, draws, ARMS[_ARMS.value])
        rows += records.get({"set": name}, one)
    paths.write(workdir / "on_trial.csv", to_csv(rows).encode())
    text = tables(rows)
    paths.write(workdir / "on_trial.md", text.encode())
    print(text)


if __name__ == "__main__":
    command_line.run(main, required=["workdir"])
