"""Settings for the whole suite: eight fake devices, strict promotion, warnings as errors."""

import os
import sys
from importlib import metadata

# Without bytecode every process compiles JAX and TensorFlow from their sources: 25 CPU seconds for
# each worker and each program that a test starts. It goes where Python always puts it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Before JAX starts. Eight devices for all tests: those that want one take the first. Tests compile
# much and compute little: without XLA's optimizations they take a third of the time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0"
)
# A third less time once more; an unknown flag aborts, and from 0.11 on this one is unknown.
if metadata.version("jaxlib").split(".")[:2] == ["0", "10"]:
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")

import contextlib
import gc
import importlib
import pathlib
import types
from typing import Any, NamedTuple

import pytest

# Tracing makes a million small objects, and none of them is a cycle worth looking for that often:
# an eighth of the time.
gc.set_threshold(200_000, 20, 50)

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
    # AMSGrad is our own and keeps to strict promotion, so this run checks ours everywhere. A loop
    # is compiled faster than three steps one after the other.
    "mlc_k3": {
        "meta_gradient.num_inner_steps": 3,
        "meta_gradient.unroll": 1,
        "meta_optimizer.name": "amsgrad",
    },
    # Windows of four steps, two of which the one before has, too.
    "mlc_k4_s2": {
        "meta_gradient.num_inner_steps": 4,
        "meta_gradient.update_every": 2,
        "meta_gradient.unroll": 1,
        "meta_optimizer.name": "amsgrad",
        "meta_optimizer.normalize": True,
    },
    "cross_entropy": {"method": "cross_entropy"},
    "clean_only": {"method": "clean_only"},
}
BILEVEL = ("mlc", "meta_weight_net")


class TrainedRun(NamedTuple):
    """A finished run, shared by all tests: nobody may write into its workdir."""

    config: Any
    workdir: pathlib.Path
    results: dict[str, Any]


def pytest_collection_finish() -> None:
    """Of runs whose pictures have the same panels one is drawn: that takes seconds a picture.

    `plots.training` itself is as it was; tests of pictures call it.
    """
    report = sys.modules.get("mlc_jax.report.report")
    if report is None:
        return
    draw, drawn = report.plots.training, {}

    def training(metrics, evals, noisy, *args):
        kind = any("train/meta_grad_norm" in row for row in metrics), noisy.has_truth
        if kind not in drawn:
            drawn[kind] = draw(metrics, evals, noisy, *args)
        return drawn[kind]

    report.plots = types.SimpleNamespace(training=training)


@pytest.fixture(scope="module", autouse=True)
def _few_mappings():
    """Programs are memory mappings, of which Linux allows a process 65,530."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def settings_of():
    """name in `TRAINED` -> how its config differs from the tiny one."""
    return lambda name: dict(TRAINED[name])


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


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Equal programs are compiled once, by all workers and by the processes that tests start."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # Of all workers of this call.
    path = str(base / "compilation_cache")
    settings = {
        "jax_compilation_cache_dir": path,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    return path


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
def trained(tmp_path_factory, tiny_config):
    """(name in TRAINED) -> that run, trained when it is first asked for."""
    from mlc_jax.commands import train

    runs: dict[str, TrainedRun] = {}

    def get(name: str) -> TrainedRun:
        if name not in runs:
            config = tiny_config(**TRAINED[name])
            workdir = tmp_path_factory.mktemp(name)
            # optax's Adam mixes int32 counts with floats.
            adam = config.meta_optimizer.name == "adam" and config.method in BILEVEL
            with jax.numpy_dtype_promotion("standard") if adam else contextlib.nullcontext():
                results = train.train_and_evaluate(config, str(workdir), show_progress=False)
            runs[name] = TrainedRun(config, workdir, results)
        return runs[name]

    return get


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """A directory with a WordPiece tokenizer of letters and a few words, `tokenizer.json`.

    Like MiniLM's it asks for padding and truncation to 128 ids.
    """
    import string

    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    letters = string.ascii_lowercase + string.digits + string.punctuation
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "news", "text", *letters]
    vocab = {word: i for i, word in enumerate([*words, *(f"##{x}" for x in letters)])}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(word, vocab[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, special)
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(directory / "tokenizer.json"))
    return str(directory)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, tiny_tokenizer):
    """A directory with a BERT of 3 layers of 16 units, never trained, as Hugging Face stores it."""
    import json
    import shutil

    import numpy as np
    import safetensors.numpy

    size, layers = 16, 3
    directory = tmp_path_factory.mktemp("checkpoint")
    shutil.copy(f"{tiny_tokenizer}/tokenizer.json", directory)
    with open(f"{tiny_tokenizer}/tokenizer.json") as file:
        vocab_size = len(json.load(file)["model"]["vocab"])
    shape = {
        "model_type": "bert", "vocab_size": vocab_size, "hidden_size": size,
        "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 24, "type_vocab_size": 2, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(shape))
    rng = np.random.default_rng(0)
    weights = {}

    def add(name, *shape):
        # PyTorch's names of a dense layer and of a norm are the same.
        weights[f"{name}.weight"] = rng.normal(0, 0.3, shape).astype(np.float32)

    for name, rows in (("word", vocab_size), ("position", 24), ("token_type", 2)):
        add(f"embeddings.{name}_embeddings", rows, size)
    dense = {
        "attention.self.query": (size, size), "attention.self.key": (size, size),
        "attention.self.value": (size, size), "attention.output.dense": (size, size),
        "intermediate.dense": (32, size), "output.dense": (size, 32),
    }  # fmt: skip
    for i in range(layers):
        for name, (out, into) in dense.items():
            add(f"encoder.layer.{i}.{name}", out, into)
            weights[f"encoder.layer.{i}.{name}.bias"] = np.zeros(out, np.float32)
    norms = [f"encoder.layer.{i}.{x}output" for i in range(layers) for x in ("attention.", "")]
    for name in ("embeddings", *norms):
        weights[f"{name}.LayerNorm.weight"] = np.ones(size, np.float32)
        weights[f"{name}.LayerNorm.bias"] = np.zeros(size, np.float32)
    safetensors.numpy.save_file(weights, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory):
    """A directory with a vision transformer of 2 layers of 32 units, never trained.

    As Hugging Face stores it, of pictures of 32 pixels. Large weights separate what it sees.
    """
    torch = pytest.importorskip("torch", reason="the extra `pictures`")
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    directory = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "image_size": 32, "patch_size": 16}
    ViTModel(ViTConfig(**shape, initializer_range=0.1)).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory):
    """The process of an emulated bucket, `gs://bucket`."""
    from emulated_bucket import serve

    with (tmp_path_factory.mktemp("server") / "log").open("w") as log, serve(log) as process:
        yield process


@pytest.fixture
def place(bucket_server, request):
    """A directory of the bucket, a test's own."""
    name = "".join(x if x.isalnum() else "_" for x in request.node.name)
    return f"gs://bucket/{name}"


@pytest.fixture
def load_program():
    """(module) -> a program, imported anew.

    Programs share names of flags, and importing a program defines them: they are taken back.
    """
    from absl import app, flags

    app.define_help_flags()
    before, modules = set(flags.FLAGS), []

    def clean_up() -> None:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        while modules:
            sys.modules.pop(modules.pop(), None)

    def load(name: str) -> Any:
        clean_up()
        modules.append(name)
        return importlib.import_module(name)

    yield load
    clean_up()


@pytest.fixture
def run_program(load_program, monkeypatch, capsys):
    """(module, arguments) -> exit code, stdout, stderr; like `python -m`, but in this process."""
    from absl import logging

    from mlc_jax import command_line

    verbosity = logging.get_verbosity()
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # To be put back.

    def run(
        name: str,
        *args: str,
        required: Any = ("config", "workdir"),
        takes_arguments: bool = False,
    ) -> tuple[int, str, str]:
        program = load_program(name)
        monkeypatch.setattr(sys, "argv", [name, *args])
        monkeypatch.setitem(sys.modules, "__main__", program)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            command_line.run(program.main, required=list(required), takes_arguments=takes_arguments)
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    yield run
    logging.set_verbosity(verbosity)


@pytest.fixture
def run_command(monkeypatch, capsys):
    """(arguments) -> exit code, stdout, stderr of `mlc-jax`, in this process."""
    from absl import logging

    from mlc_jax import __main__ as program

    verbosity = logging.get_verbosity()
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # To be put back.

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = program.main(args)
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return code, out, err

    yield run
    logging.set_verbosity(verbosity)
