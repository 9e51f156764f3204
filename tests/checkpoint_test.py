"""Checkpoints: complete or not there, checked against the config, safe from what comes after."""

import gc
import json
import os
import re
import resource
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import default
from mlc_jax import checkpoint
from mlc_jax.checkpoint import FREE_FIELDS, Checkpointer, finished_steps, flatten_config
from mlc_jax.errors import CheckpointError, InputError
from mlc_jax.train_state import MainState, MetaState, TrainState
from mlc_jax.workdir import locked_workdir

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


def _restore(workdir, config=CONFIG):
    checkpointer = _open(workdir)
    try:
        return checkpointer.restore(jax.eval_shape(lambda: _state(0)), config)
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


@pytest.mark.parametrize("keep", [1, 2, 3])
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
        "  config.new: None in the checkpoint, 'x' now",
        "  config.noise.level: 0.4 in the checkpoint, 0.6 now",
        "  config.seed: 0 in the checkpoint, 1 now",
        "Use another --workdir, or the config of the checkpoint.",
    ]
    assert finished_steps(tmp_path / "checkpoints") == [5, 9]
    _assert_is(_restore(tmp_path), 9)


def test_free_fields_exist_and_may_differ(tmp_path):
    config = json.loads(default.get_config().to_json())
    flat = flatten_config(config)
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
    assert field in flatten_config(json.loads(default.get_config().to_json()))


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


@pytest.mark.parametrize("damage", ["emptied", "halved", "deleted"])
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
