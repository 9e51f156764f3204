"""Settings for the whole suite: eight fake devices, strict promotion, warnings as errors."""

import os

# Before JAX starts. One flag for all tests: those that want one device take the first.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")

import contextlib
import importlib
import pathlib
import sys
from typing import Any, NamedTuple

import pytest

# configs/digits.py made small: 84 steps of a run take a second. Batches suit eight devices.
TINY_DIGITS = {
    "dataset.validation_per_class": 2,
    "model.mlp.hidden_sizes": (32, 16),
    "lcn.hidden_size": 16,
    "lcn.embedding_size": 16,
    "meta_optimizer.learning_rate": 1e-2,
    "noisy_batch_size": 64,
    "clean_batch_size": 32,
    "num_epochs": 4,
    "eval_every_epochs": 1,
    "log_every_steps": 3,
}
TRAINED = {
    "mlc": {},
    # AMSGrad is our own and keeps to strict promotion, so this run checks ours everywhere.
    "mlc_k3": {"meta_gradient.num_inner_steps": 3, "meta_optimizer.name": "amsgrad"},
    "cross_entropy": {"method": "cross_entropy"},
    "clean_only": {"method": "clean_only"},
}


class TrainedRun(NamedTuple):
    """A finished run, shared by all tests: nobody may write into its workdir."""

    config: Any
    workdir: pathlib.Path
    results: dict[str, Any]


@pytest.fixture
def x64():
    """Float64 for one test. Flax's batch norm mixes dtypes then, so promotion is the usual one."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def standard_promotion():
    """For optax's Adam and its projection onto the simplex: both mix int32 counts with floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """Equal programs are compiled once, in this process and in those that tests start."""
    path = str(tmp_path_factory.mktemp("compilation_cache"))
    settings = {
        "jax_compilation_cache_dir": path,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    yield path
    for name, value in before.items():
        jax.config.update(name, value)
        del os.environ[name.upper()]


@pytest.fixture(scope="session")
def tiny_config():
    """(overrides, keyed as on the command line) -> a small config of digits."""
    from configs import digits

    def create(**overrides: Any) -> Any:
        config = digits.get_config()
        config.update_from_flattened_dict(TINY_DIGITS | overrides)
        return config

    return create


@pytest.fixture(scope="session")
def tiny_flags():
    """(overrides) -> the same on the command line of `mlc_jax.main`."""
    root = pathlib.Path(__file__).parents[1]

    def create(**overrides: Any) -> list[str]:
        config = TINY_DIGITS | overrides
        settings = [f"--config.{name}={value}" for name, value in config.items()]
        return [f"--config={root / 'configs' / 'digits.py'}", "--noprogress", *settings]

    return create


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_config, compilation_cache):
    """(name in TRAINED) -> that run, trained when it is first asked for."""
    from mlc_jax import train

    runs: dict[str, TrainedRun] = {}

    def get(name: str) -> TrainedRun:
        if name not in runs:
            config = tiny_config(**TRAINED[name])
            workdir = tmp_path_factory.mktemp(name)
            # optax's Adam mixes int32 counts with floats.
            adam = config.meta_optimizer.name == "adam" and config.method == "mlc"
            with jax.numpy_dtype_promotion("standard") if adam else contextlib.nullcontext():
                results = train.train_and_evaluate(config, str(workdir), show_progress=False)
            runs[name] = TrainedRun(config, workdir, results)
        return runs[name]

    return get


@pytest.fixture
def run_program(monkeypatch, capsys):
    """(module, arguments) -> exit code, stdout, stderr; like `python -m`, but in this process.

    Programs share names of flags, and importing a program defines them: they are taken back.
    """
    from absl import flags

    before, modules = set(flags.FLAGS), []

    def clean_up() -> None:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        while modules:
            sys.modules.pop(modules.pop(), None)

    def run(name: str, *args: str) -> tuple[int, str, str]:
        clean_up()
        modules.append(name)
        program = importlib.import_module(name)
        from mlc_jax import command_line

        monkeypatch.setattr(sys, "argv", [name, *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            command_line.run(program.main, required=["config", "workdir"])
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    yield run
    clean_up()
