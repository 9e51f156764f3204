"""Checkpoints: complete or not there, checked against the config, safe from what comes after."""

import gc
import json
import os
import pathlib
import re
import resource
import shutil
import threading
import zlib
from typing import Any

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import default
from mlc_jax.config import flatten
from mlc_jax.core import MainState, MetaState, TrainState
from mlc_jax.errors import CheckpointError, InputError
from mlc_jax.workdir import checkpoint
from mlc_jax.workdir.checkpoint import FREE_FIELDS, Checkpointer, finished_steps
from mlc_jax.workdir.workdir import locked_workdir

# TensorStore's threads also complain, to nobody, where a read or a write fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = {"seed": 0, "noise": {"type": "flip", "level": 0.4}, "log_every_steps": 50}


def _sharding():
    return NamedSharding(Mesh(np.asarray(jax.devices()), ("batch",)), PartitionSpec())


def _state(step):
    """2 MB that hardly compress; what is small is stored in one file with its description."""
    values = jax.random.normal(jax.random.key(step), (300, 1600))
    state = TrainState(
        step=jnp.int32(step),
        rng=jax.random.key(step, impl="threefry2x32"),
        main=MainState({"w": values, "b": jnp.ones(3)}, {}, {"count": jnp.int32(step)}),
        meta=MetaState({"half": values[:2].astype(jnp.bfloat16)}, ()),
    )
    return jax.device_put(state, _sharding())


def _progress(step, config=CONFIG):
    return {"config": config, "evals": [{"step": step, "loss": 1 / 3, "none": None}]}


def _open(workdir, keep=2):
    return Checkpointer(epath.Path(workdir), _sharding(), keep=keep)


def _save(workdir, *steps, config=CONFIG, keep=2):
    checkpointer = _open(workdir, keep)
    for step in steps:
        checkpointer.save(step, _state(step), _progress(step, config))
    checkpointer.wait()
    checkpointer.close()


def _not_called():
    raise AssertionError("nothing is missing")


def _restore(workdir, config=CONFIG, *, like=None, formerly=None, init=_not_called, **kwargs):
    """Restores what is like `like`, a state of arrays; `_state` by default."""
    abstract = jax.eval_shape(lambda: _state(0) if like is None else like)
    checkpointer = _open(workdir)
    try:
        return checkpointer.restore(abstract, config, formerly=formerly or {}, init=init, **kwargs)
    finally:
        checkpointer.close()


def _assert_is(restored, step):
    state, progress = restored
    want = _state(step)
    assert jax.tree.structure(state) == jax.tree.structure(want)
    for got, expected in zip(jax.tree.leaves(state), jax.tree.leaves(want), strict=True):
        assert got.dtype == expected.dtype
        assert got.sharding.is_fully_replicated
        if jax.dtypes.issubdtype(got.dtype, jax.dtypes.prng_key):
            got, expected = jax.random.key_data(got), jax.random.key_data(expected)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))
    assert progress == _progress(step)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A workdir with checkpoints of steps 5 and 9; to be copied, not written into."""
    workdir = tmp_path_factory.mktemp("checkpoints")
    _save(workdir, 5, 9)
    return workdir


def _copy(source, target):
    return shutil.copytree(source, target, dirs_exist_ok=True)


def test_nothing_to_restore(tmp_path):
    checkpointer = _open(tmp_path)
    assert checkpointer.latest_step() is None
    checkpointer.close()
    assert _restore(tmp_path) is None


def test_round_trip_with_a_typed_key(two_checkpoints, tmp_path):
    _assert_is(_restore(_copy(two_checkpoints, tmp_path)), 9)


def test_restored_key_draws_the_same_numbers(two_checkpoints, tmp_path):
    state, _ = _restore(_copy(two_checkpoints, tmp_path))
    draw = jax.random.uniform(jax.random.fold_in(state.rng, 3), (4,))
    want = jax.random.uniform(jax.random.fold_in(jax.random.key(9), 3), (4,))
    np.testing.assert_array_equal(draw, want)


def test_progress_is_as_it_was_at_the_call(tmp_path):
    """The loop goes on, and adds to it, while it is written in the background."""
    added = threading.Event()

    class SlowToWrite(dict):
        def items(self):
            if threading.current_thread() is not threading.main_thread():
                added.wait(5)
            return super().items()

    checkpointer = _open(tmp_path)
    progress = SlowToWrite(_progress(1))
    checkpointer.save(1, _state(1), progress)
    progress["evals"].append({"step": 2})
    added.set()
    checkpointer.wait()
    checkpointer.close()
    _assert_is(_restore(tmp_path), 1)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path, keep):
    _save(tmp_path, 1, 4, 6, 11, keep=keep)
    assert finished_steps(tmp_path / "checkpoints") == [1, 4, 6, 11][-keep:]
    _assert_is(_restore(tmp_path), 11)


def test_saving_a_step_again_is_nothing(two_checkpoints, tmp_path):
    _copy(two_checkpoints, tmp_path)
    checkpointer = _open(tmp_path)
    checkpointer.save(9, _state(1), _progress(1))
    checkpointer.wait()
    checkpointer.close()
    _assert_is(_restore(tmp_path), 9)


def test_another_config_is_refused_field_by_field(two_checkpoints, tmp_path):
    _copy(two_checkpoints, tmp_path)
    given = {"seed": 1, "noise": {"type": "flip", "level": 0.6}, "log_every_steps": 7, "new": "x"}
    with pytest.raises(CheckpointError) as error:
        _restore(tmp_path, given)
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'checkpoints' / '9'} was made with another config:",
        "  config.new: missing in the checkpoint, 'x' now",
        "  config.noise.level: 0.4 in the checkpoint, 0.6 now",
        "  config.seed: 0 in the checkpoint, 1 now",
        "Use another --workdir, or the config of the checkpoint.",
    ]
    assert finished_steps(tmp_path / "checkpoints") == [5, 9]
    _assert_is(_restore(tmp_path), 9)


def test_a_field_that_was_added_counts_as_it_was(two_checkpoints, tmp_path):
    _copy(two_checkpoints, tmp_path)
    given = CONFIG | {"new": [1, 2], "section": {"x": None}}
    formerly = {"new": (1, 2), "section.x": None, "of_a_later_version": 3}
    _assert_is(_restore(tmp_path, given, formerly=formerly), 9)
    with pytest.raises(CheckpointError) as error:
        _restore(tmp_path, given | {"section": {"x": 0}}, formerly=formerly, prefix="")
    differing = str(error.value).splitlines()[1:-1]
    assert differing == ["  section.x: None in the checkpoint, 0 now"]


def test_differing_fields_of_missing_and_unknown_ones():
    saved, given = {"a": {"old": None}, "b": 1, "seed": 0}, {"a": {"new": None}, "b": 1.0}
    assert checkpoint.differing_fields(saved, given, "before", formerly={}) == [
        "  config.a.new: missing before, None now",
        "  config.a.old: None before, missing now",
        "  config.seed: 0 before, missing now",
    ]
    # What was saved stands, whatever the field's former value.
    formerly = {"a.new": None, "b": 2}
    assert checkpoint.differing_fields(
        saved, given | {"seed": 1}, "before", formerly=formerly, prefix=""
    ) == ["  a.old: None before, missing now", "  seed: 0 before, 1 now"]


def test_free_fields_exist_and_may_differ(tmp_path):
    config = json.loads(default.get_config().to_json())
    flat = flatten(config)
    assert flat.keys() >= FREE_FIELDS
    _save(tmp_path, 3, config=config)
    changed = json.loads(default.get_config().to_json())
    for name in FREE_FIELDS:
        *parents, field = name.split(".")
        node = changed
        for parent in parents:
            node = node[parent]
        node[field] = "changed"
    state, _ = _restore(tmp_path, changed)
    assert int(state.step) == 3


@pytest.mark.parametrize("field", ["seed", "noise.level", "num_epochs", "model.mlp.hidden_sizes"])
def test_what_is_learned_from_may_not_differ(field):
    assert field not in FREE_FIELDS
    assert field in flatten(json.loads(default.get_config().to_json()))


@pytest.mark.parametrize("content", [None, "state"])
def test_a_half_written_one_is_passed_over(two_checkpoints, tmp_path, content):
    _copy(two_checkpoints, tmp_path)
    half = tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp"
    if content is None:
        half.mkdir()
    else:
        shutil.copytree(tmp_path / "checkpoints" / "9" / content, half / content)
    assert finished_steps(tmp_path / "checkpoints") == [5, 9]
    _assert_is(_restore(tmp_path), 9)
    _save(tmp_path, 12)  # And is not in the way.
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"9", "12"}
    _assert_is(_restore(tmp_path), 12)


def test_half_written_ones_do_not_pile_up(two_checkpoints, tmp_path):
    _copy(two_checkpoints, tmp_path)
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir()
    _save(tmp_path, 12)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"9", "12"}


@pytest.mark.parametrize(
    "damage", ["halved", *(pytest.param(x, marks=pytest.mark.slow) for x in ("emptied", "deleted"))]
)
def test_no_damaged_file_is_read_as_if_it_were_whole(two_checkpoints, tmp_path, damage):
    """Orbax writes some files that it does not need; all others must be missed."""
    newest = two_checkpoints / "checkpoints" / "9"
    files = [path.relative_to(two_checkpoints) for path in newest.rglob("*") if path.is_file()]
    refused = []
    for i, name in enumerate(files):
        workdir = _copy(two_checkpoints, tmp_path / str(i))
        path = workdir / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "halved" else b"")
        if damage == "deleted":
            path.unlink()
        try:
            restored = _restore(workdir)
        except CheckpointError as error:
            refused.append(content)
            newest = workdir / "checkpoints" / "9"
            assert str(error).startswith("checkpoint of step 9 cannot be read: ")
            assert str(error).endswith(f"\nRemove {newest} to go on from step 5.")
            if len(refused) == 1:
                shutil.rmtree(newest)
                _assert_is(_restore(workdir), 5)
        else:
            _assert_is(restored, 9)
    assert sum(map(len, refused)) > 1_500_000  # The arrays are among them.
    assert len(refused) >= 4
    gc.collect()  # Failed reads leave coroutines that complain when they go: not in another test.


def _edit_progress(workdir, step, edit):
    path = workdir / "checkpoints" / str(step) / "progress" / "metadata"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def _flip_bytes(workdir, step, array):
    """Flips four bytes of the array, in the file where it lies."""
    files = [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    part = np.asarray(array).tobytes()[-1000:-984]
    (path,) = (path for path in files if part in path.read_bytes())
    content = path.read_bytes()
    at = content.index(part)
    flipped = bytes(255 - byte for byte in content[at : at + 4])
    path.write_bytes(content[:at] + flipped + content[at + 4 :])


@pytest.fixture(scope="module")
def two_with_noise(tmp_path_factory):
    """As `two_checkpoints`; of leaves that do not compress, so that they lie there as they are."""
    workdir = tmp_path_factory.mktemp("noise")
    checkpointer = _open(workdir)
    for step in (5, 9):
        checkpointer.save(step, _noise_state(step), _progress(step))
    checkpointer.wait()
    checkpointer.close()
    return workdir


def _noise_state(step):
    bits = jax.random.bits(jax.random.key(step), (3, 300, 200))
    state = _state(step)
    main = state.main.replace(params={"a": bits[0], "b": bits[1]})
    return jax.device_put(state.replace(main=main, extra=(bits[2],)), _sharding())


@pytest.mark.parametrize("name", ["main/params/a", "main/params/b", "extra/0"])
def test_flipped_bytes_are_noticed(two_with_noise, tmp_path, name):
    _copy(two_with_noise, tmp_path)
    state = _noise_state(9)
    leaf = {f"main/params/{key}": x for key, x in state.main.params.items()}.get(name)
    _flip_bytes(tmp_path, 9, state.extra[0] if leaf is None else leaf)
    with pytest.raises(CheckpointError) as error:
        _restore(tmp_path, like=state)
    assert str(error.value) == (
        f"checkpoint of step 9 cannot be read: {name} is not what was saved: its bytes have "
        f"changed\nRemove {tmp_path / 'checkpoints' / '9'} to go on from step 5."
    )
    shutil.rmtree(tmp_path / "checkpoints" / "9")
    restored, _ = _restore(tmp_path, like=state)
    np.testing.assert_array_equal(restored.extra[0], _noise_state(5).extra[0])


def test_checkpoints_without_checksums_are_accepted(two_with_noise, tmp_path):
    _copy(two_with_noise, tmp_path)
    _edit_progress(tmp_path, 9, lambda progress: progress.pop("checksums"))
    like = _noise_state(9)
    _, progress = _restore(tmp_path, like=like)
    assert progress == _progress(9)
    _flip_bytes(tmp_path, 9, like.extra[0])
    restored, _ = _restore(tmp_path, like=like)  # As if nothing were amiss.
    assert (np.asarray(restored.extra[0]) != np.asarray(like.extra[0])).any()


def test_every_leaf_has_a_checksum_of_dtype_shape_and_bytes(two_checkpoints):
    path = two_checkpoints / "checkpoints" / "9" / "progress" / "metadata"
    found = json.loads(path.read_text())["checksums"]
    state = _state(9)
    assert len(found) == len(jax.tree.leaves(state))
    w = np.asarray(state.main.params["w"])
    key = np.asarray(jax.random.key_data(state.rng))
    half = np.asarray(state.meta.params["half"])
    for name, dtype, x in [
        ("main/params/w", "float32", w),
        ("meta/params/half", "bfloat16", half),
        ("rng", "uint32", key),
    ]:
        crc = zlib.crc32(f"{dtype}{list(x.shape)}".encode() + x.tobytes())
        assert found[name] == f"{crc:08x}"


def test_a_leaf_that_was_saved_and_is_gone(two_checkpoints, tmp_path):
    """What is not there is taken from the start of a run only where it never was there."""
    _copy(two_checkpoints, tmp_path)
    _edit_progress(tmp_path, 9, lambda progress: progress["checksums"].update({"extra/x": "0" * 8}))
    message = r"^checkpoint of step 9 cannot be read: extra/x was saved and is not there\nRemove "
    with pytest.raises(CheckpointError, match=message):
        _restore(tmp_path, like=_state(9).replace(extra={"x": jnp.ones(3)}), init=_not_called)


def test_without_an_older_one_the_advice_is_the_beginning(tmp_path):
    _save(tmp_path, 4)
    shutil.rmtree(tmp_path / "checkpoints" / "4" / "state")
    with pytest.raises(CheckpointError, match=r"Remove .*/checkpoints/4 to go on from the begin"):
        _restore(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    assert _restore(tmp_path) is None


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=f"Not a directory: '{tmp_path / 'checkpoints'}'"):
        _save(tmp_path, 1)


class Grown(TrainState):
    """A train state of a later version."""

    nothing: Any = None
    labels: Any = None


def _grown(step, meta_params):
    old = _state(step)
    meta = old.meta.replace(params=old.meta.params | meta_params)
    fields = {name: getattr(old, name) for name in ("step", "rng", "main")}
    labels = {"mean": jnp.full((5, 2), step), "rng": jax.random.key(step)}
    extra = optax.EmptyState()
    return jax.device_put(Grown(meta=meta, extra=extra, labels=labels, **fields), _sharding())


def test_what_the_state_has_gained_is_as_at_the_start(two_checkpoints, tmp_path, caplog):
    _copy(two_checkpoints, tmp_path)
    more = {"new": {"kernel": jnp.ones(2), "bias": jnp.zeros(2)}}
    start, calls = _grown(0, more), []

    def init():
        calls.append(1)
        return start

    with caplog.at_level("INFO", "absl"):
        state, progress = _restore(tmp_path, like=start, init=init)
    assert len(calls) == 1
    path = tmp_path / "checkpoints" / "9"
    assert f"{path} has no labels, meta/params/new: as at the start of a run." in caplog.messages
    want = start.replace(
        step=state.step, rng=state.rng, main=state.main, meta=state.meta.replace(params=None)
    )
    meta_params = dict(state.meta.params)
    new = meta_params.pop("new")
    chex.assert_trees_all_equal(new, start.meta.params["new"])
    got = state.replace(meta=state.meta.replace(params=None))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert got.labels["rng"] == start.labels["rng"]
    np.testing.assert_array_equal(got.labels["mean"], start.labels["mean"])
    old = TrainState(state.step, state.rng, state.main, state.meta.replace(params=meta_params))
    _assert_is((old, progress), 9)


def test_a_field_of_none_does_not_keep_older_checkpoints_out(tmp_path):
    """Orbax itself compares empty places, too."""
    old = _state(3)
    stored = {name: getattr(old, name) for name in ("step", "rng", "main", "meta")}
    checkpointer = _open(tmp_path)
    checkpointer.save(3, stored, _progress(3))
    checkpointer.wait()
    checkpointer.close()
    _assert_is(_restore(tmp_path), 3)


def test_what_the_state_has_lost_is_named(two_checkpoints, tmp_path):
    _copy(two_checkpoints, tmp_path)
    state = _state(9)
    main = state.main.replace(params={"w": state.main.params["w"]})
    with pytest.raises(CheckpointError) as error:
        _restore(tmp_path, like=state.replace(main=main, meta=None))
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'checkpoints' / '9'} was made by another version of mlc_jax:",
        "  main/params/b: in the checkpoint, not in the state",
        "  meta: in the checkpoint, not in the state",
        "Use another --workdir, or the version that made it.",
    ]


@pytest.mark.parametrize(
    ("values", "now"),
    [
        (jnp.ones((300, 10)), "float32[300, 10]"),
        (jnp.ones((300, 1600), jnp.bfloat16), "bfloat16[300, 1600]"),
        (jax.random.key(0), "uint32[2]"),
    ],
)
def test_other_shapes_and_dtypes_are_named(two_checkpoints, tmp_path, values, now):
    _copy(two_checkpoints, tmp_path)
    state = _state(9)
    main = state.main.replace(params=state.main.params | {"w": values})
    line = f"  main/params/w: float32[300, 1600] in the checkpoint, {now} in the state"
    with pytest.raises(CheckpointError, match=re.escape(line)):
        _restore(tmp_path, like=state.replace(main=main))


def test_a_key_is_not_taken_for_numbers(two_checkpoints, tmp_path):
    _copy(two_checkpoints, tmp_path)
    message = r"rng is key<fry>\[\], not uint32\[2\]\nRemove "
    with pytest.raises(CheckpointError, match=message):
        _restore(tmp_path, like=_state(9).replace(rng=jnp.zeros(2, jnp.uint32)))


@pytest.mark.usefixtures("standard_promotion")
def test_optax_states_come_back(tmp_path):
    """Named tuples, tuples of more than ten, masked and empty nodes, frozen parts."""
    params = {"w": jnp.ones((2, 3)), "b": {"x": jnp.ones(3)}}
    tx = optax.chain(
        *[optax.clip(1.0)] * 10,
        optax.masked(optax.trace(0.9), {"w": True, "b": False}),
        optax.partition(
            {"train": optax.adam(1e-3), "freeze": optax.set_to_zero()},
            {"w": "train", "b": "freeze"},
        ),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9),
    )
    _, opt_state = tx.update(params, tx.init(params), params)
    extra = flax.core.freeze({"none": None, "list": [], "tuple": (), "dict": {}, "x": jnp.ones(2)})
    keys = jax.random.split(jax.random.key(1), 3)
    state = _state(1)
    state = state.replace(main=MainState(params, {"k": keys}, opt_state), meta=None, extra=extra)
    state = jax.device_put(state, _sharding())
    checkpointer = _open(tmp_path)
    checkpointer.save(1, state, _progress(1))
    checkpointer.wait()
    checkpointer.close()
    restored, _ = _restore(tmp_path, like=state)
    data = [
        jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype == keys.dtype else x, tree)
        for tree in (restored, state)
    ]
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    chex.assert_trees_all_equal(*data)
    chex.assert_trees_all_equal_dtypes(restored, state)


def test_a_workdir_of_the_second_edition(tmp_path):
    """tests/data/workdir_993cefd: made before there were checksums."""
    source = pathlib.Path(__file__).parent / "data" / "workdir_993cefd"
    _copy(source, tmp_path)
    config = json.loads((source / "config.json").read_text())
    stored = ocp.StandardCheckpointHandler().metadata(
        epath.Path(source / "checkpoints" / "42" / "state")
    )
    like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), stored.tree)
    like["rng"] = jax.random.key(1)  # Orbax describes a key as its data.
    state, progress = _restore(tmp_path, config, like=like)
    assert [row["step"] for row in progress["evals"]] == [21, 42]
    assert int(state["step"]) == int(state["meta"]["opt_state"][2]["count"]) == 42
    assert jax.random.key_data(state["rng"]).tolist() == [928981903, 3453687069]
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert sum(x.size for x in leaves) == 2 * 2778 + 3 * 1130  # Momentum; Adam's two moments.
    assert all(bool(jnp.isfinite(x).all()) and bool((x != 0).any()) for x in leaves)


@pytest.fixture
def file_size_limit():
    """Two functions: from the first on, writes beyond 100 kB in a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    def lift():
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield limit, lift
    lift()


def test_a_save_that_fails_is_told_and_the_older_one_stays(tmp_path, file_size_limit):
    limit, lift = file_size_limit
    checkpointer = _open(tmp_path)
    checkpointer.save(5, _state(5), _progress(5))
    checkpointer.wait()
    limit()
    with pytest.raises(CheckpointError) as error:
        checkpointer.save(9, _state(9), _progress(9))
        checkpointer.save(12, _state(12), _progress(12))  # Tells what became of the one before.
    lift()
    assert str(error.value) == (
        "checkpoint of step 12 or the one before it cannot be written: File too large\n"
        f"The checkpoint of step 5 in {tmp_path / 'checkpoints'} is intact: once the cause is "
        "gone, the same command goes on from there."
    )
    checkpointer.close()  # Neither raises again nor hangs.
    assert finished_steps(tmp_path / "checkpoints") == [5]
    _assert_is(_restore(tmp_path), 5)
    _save(tmp_path, 9)  # The cause is gone.
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"5", "9"}
    _assert_is(_restore(tmp_path), 9)


@pytest.mark.parametrize("last_call", ["wait", "close"])
def test_no_failed_save_goes_unnoticed(tmp_path, file_size_limit, last_call):
    limit, lift = file_size_limit
    checkpointer = _open(tmp_path)
    limit()
    with pytest.raises(CheckpointError, match="cannot be written: File too large\nThere is no "):
        checkpointer.save(9, _state(9), _progress(9))
        getattr(checkpointer, last_call)()
    lift()
    assert _restore(tmp_path) is None


def test_a_workdir_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    where = tmp_path / "file" / "run"
    message = (
        f"--workdir: cannot write to {str(where)!r} (Not a directory); "
        "expected a directory that this user may write to"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"), locked_workdir(str(where)):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    message = r"^--workdir: cannot write to .* \(Permission denied\)"
    with pytest.raises(InputError, match=message), locked_workdir(str(tmp_path / "run")):
        pass


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", ["main", "meta"])
def test_all_finite_looks_at_every_parameter(bad, model):
    state = _state(1)
    assert checkpoint.all_finite(state)
    assert checkpoint.all_finite(state.replace(meta=None))
    part = getattr(state, model)
    name, values = next(iter(sorted(part.params.items())))
    params = part.params | {name: values.at[(-1,) * values.ndim].set(bad)}
    assert not checkpoint.all_finite(state.replace(**{model: part.replace(params=params)}))
