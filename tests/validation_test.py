"""What a user can get wrong: told at once, by field, value and what would be right."""

import re

import jax
import numpy as np
import pytest

from configs import cifar10, cifar100, digits
from mlc_jax import train
from mlc_jax.checkpoint import flatten_config
from mlc_jax.errors import InputError
from mlc_jax.meta_gradients import ESTIMATORS
from mlc_jax.methods import METHODS
from mlc_jax.validation import validate

INF, NAN = float("inf"), float("nan")
DEPTHS = "6n + 2 with n >= 1: 8, 14, ..."
MILESTONES = "whole epochs from 1 on, each later than the one before, such as (80, 100)"
WIDTHS = "one or more positive widths, such as (128, 64)"
POSITIVE = "a positive, finite number"
SEEDS = "a whole number from 0 to 4294967295"
COUNT = "a whole number, at least 1"
COUNT_FROM_0 = "a whole number, at least 0"
NOT_NEGATIVE = "a finite number, at least 0"
FLAG = "True or False"
SHARE = "a number from 0 to 1"

# Field, value, what the message expects. Batches are of eight devices.
BAD_VALUES = [
    ("method", "mcl", f"one of {', '.join(METHODS)}"),
    ("dataset.name", "mnist", "one of digits, cifar10, cifar100"),
    ("noise.type", "gauss", "one of uniform, flip, flip_any, human"),
    ("model.name", "cnn", "one of mlp, resnet"),
    ("model.dtype", "float16", "one of float32, bfloat16"),
    ("meta_gradient.estimator", "exat", f"one of {', '.join(ESTIMATORS)}"),
    ("main_optimizer.name", "SGD", "one of sgd, adam, amsgrad"),
    ("meta_optimizer.name", "rmsprop", "one of sgd, adam, amsgrad"),
    ("main_optimizer.schedule", "linear", "one of constant, step, cosine"),
    ("meta_optimizer.schedule", "", "one of constant, step, cosine"),
    ("seed", -1, SEEDS),
    ("seed", 2**32, SEEDS),
    ("dataset.split_seed", -1, SEEDS),
    ("noise.seed", -5, SEEDS),
    ("dataset.clean_per_class", 0, COUNT),
    ("dataset.validation_per_class", -1, COUNT_FROM_0),
    ("noise.level", -0.1, SHARE),
    ("noise.level", 1.5, SHARE),
    ("noise.level", NAN, SHARE),
    ("noise.level", INF, SHARE),
    ("noise.level", None, SHARE),
    ("model.resnet.depth", 33, DEPTHS),
    ("model.resnet.depth", 2, DEPTHS),
    ("model.resnet.depth", -4, DEPTHS),
    ("model.mlp.hidden_sizes", (), WIDTHS),
    ("model.mlp.hidden_sizes", (32, 0), WIDTHS),
    ("model.mlp.hidden_sizes", (32.5,), WIDTHS),
    ("model.mlp.dropout_rate", 1.0, "a number from 0 to 0.99"),
    ("lcn.hidden_size", 0, COUNT),
    ("lcn.embedding_size", -8, COUNT),
    ("weight_net.hidden_size", 0, COUNT),
    ("forward.percentile", 101.0, "a number from 0.1 to 100"),
    ("joint.prior_weight", -1.0, NOT_NEGATIVE),
    ("joint.entropy_weight", NAN, NOT_NEGATIVE),
    ("joint.update_from", 1.5, SHARE),
    ("joint.num_averaged", 0, COUNT),
    ("mlnt.num_synthetic", 0, COUNT),
    ("mlnt.transferred_share", 2.0, SHARE),
    ("mlnt.num_neighbours", 0, COUNT),
    ("mlnt.lookahead_rate", 0.0, POSITIVE),
    ("mlnt.consistency_weight", INF, NOT_NEGATIVE),
    ("mlnt.ramp_share", -0.1, SHARE),
    ("mlnt.early_teacher_decay", 1.1, SHARE),
    ("mlnt.teacher_decay", None, SHARE),
    ("distillation.label_weight", 1.1, SHARE),
    ("first_phase_epochs", -1, COUNT_FROM_0),
    ("meta_gradient.num_inner_steps", 0, COUNT),
    ("meta_gradient.backward", "full", "one of store, remat, forward_over_reverse, two_level"),
    ("meta_gradient.truncation", 0, COUNT),
    ("meta_gradient.solver_steps", 0, COUNT),
    ("meta_gradient.damping", -1.0, NOT_NEGATIVE),
    ("meta_gradient.diagnose_every", -1, COUNT_FROM_0),
    (
        "meta_gradient.diagnose_every",
        10,
        "0 with the estimator exact: the others are compared with it",
    ),
    ("main_optimizer.clip_norm", -1.0, NOT_NEGATIVE),
    ("meta_optimizer.clip_norm", INF, NOT_NEGATIVE),
    ("meta_gradient.unroll", -1, COUNT_FROM_0),
    ("main_optimizer.learning_rate", -0.1, POSITIVE),
    ("main_optimizer.learning_rate", 0.0, POSITIVE),
    ("meta_optimizer.learning_rate", INF, POSITIVE),
    ("meta_optimizer.learning_rate", NAN, POSITIVE),
    ("main_optimizer.momentum", 1.0, "a number from 0 to 0.9999"),
    ("main_optimizer.momentum", -0.9, "a number from 0 to 0.9999"),
    ("main_optimizer.weight_decay", -1e-4, NOT_NEGATIVE),
    ("main_optimizer.weight_decay", NAN, NOT_NEGATIVE),
    ("meta_optimizer.weight_decay", INF, NOT_NEGATIVE),
    ("meta_optimizer.weight_decay", None, NOT_NEGATIVE),
    ("main_optimizer.decay_factor", 0.0, POSITIVE),
    ("main_optimizer.milestones", (0, 80), MILESTONES),
    ("main_optimizer.milestones", (-1,), MILESTONES),
    ("main_optimizer.milestones", (80, 80), MILESTONES),
    ("main_optimizer.milestones", (100, 80), MILESTONES),
    ("meta_optimizer.milestones", (0.5,), MILESTONES),
    ("num_epochs", 0, COUNT),
    ("num_epochs", -3, COUNT),
    ("num_epochs", None, COUNT),
    ("checkpoint_every_minutes", 0.0, POSITIVE),
    ("checkpoint_every_minutes", NAN, POSITIVE),
    ("eval_every_epochs", 0, COUNT),
    ("log_every_steps", 0, COUNT),
    ("checkpoint_every_steps", 0, COUNT),
    ("checkpoints_to_keep", 0, COUNT),
    ("eval_batch_size", 0, COUNT),
    ("noisy_batch_size", 0, "a positive multiple of 8 (8 devices)"),
    ("noisy_batch_size", 100, "a positive multiple of 8 (8 devices)"),
    ("noisy_batch_size", -64, "a positive multiple of 8 (8 devices)"),
    ("clean_batch_size", 0, "a positive multiple of 16 (two halves, 8 devices)"),
    ("clean_batch_size", 24, "a positive multiple of 16 (two halves, 8 devices)"),
    # Any field can be set to None, in a file and on the command line.
    ("method", None, f"one of {', '.join(METHODS)}"),
    ("seed", None, SEEDS),
    ("model.resnet.depth", None, DEPTHS),
    ("model.mlp.hidden_sizes", None, WIDTHS),
    ("main_optimizer.milestones", None, MILESTONES),
    ("meta_optimizer.milestones", None, MILESTONES),
    ("main_optimizer.learning_rate", None, POSITIVE),
    ("meta_gradient.num_inner_steps", None, COUNT),
    ("noisy_batch_size", None, "a positive multiple of 8 (8 devices)"),
    ("clean_batch_size", None, "a positive multiple of 16 (two halves, 8 devices)"),
    ("eval_batch_size", None, COUNT),
    ("meta_gradient.mix_clean", None, FLAG),
    ("lcn.tie_embeddings", None, FLAG),
    ("main_optimizer.nesterov", None, FLAG),
]

# The same of another type: what ml_collections lets a file do once a field was None.
OF_ANOTHER_TYPE = [
    ("seed", 1.0, SEEDS),
    ("dataset.clean_per_class", 5.0, COUNT),
    ("dataset.validation_per_class", True, COUNT_FROM_0),
    ("meta_gradient.num_inner_steps", 1.5, COUNT),
    ("meta_gradient.num_inner_steps", True, COUNT),
    ("meta_gradient.num_inner_steps", "3", COUNT),
    ("meta_gradient.unroll", False, COUNT_FROM_0),
    ("log_every_steps", 50.0, COUNT),
    ("num_epochs", 2.5, COUNT),
    ("eval_batch_size", "1000", COUNT),
    ("noisy_batch_size", 64.0, "a positive multiple of 8 (8 devices)"),
    ("clean_batch_size", "32", "a positive multiple of 16 (two halves, 8 devices)"),
    ("model.resnet.depth", 32.0, DEPTHS),
    ("model.mlp.hidden_sizes", 128, WIDTHS),
    ("model.mlp.hidden_sizes", (True,), WIDTHS),
    ("main_optimizer.milestones", "80", MILESTONES),
    ("main_optimizer.milestones", (True,), MILESTONES),
    ("noise.level", "0.4", SHARE),
    ("noise.level", True, SHARE),
    ("main_optimizer.learning_rate", "0.1", POSITIVE),
    ("main_optimizer.weight_decay", "0", NOT_NEGATIVE),
    ("meta_gradient.mix_clean", "no", FLAG),
    ("method", ("mlc",), f"one of {', '.join(METHODS)}"),
]


@pytest.fixture(scope="module")
def compilations():
    """A list that grows with every program that XLA compiles."""
    events: list[str] = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events


@pytest.fixture
def refused(tiny_config, tmp_path, compilations):
    """(overrides) -> the error's lines, sure that nothing was compiled or written before."""

    def start(**overrides):
        config, workdir = tiny_config(**overrides), tmp_path / "run"
        before = len(compilations)
        with pytest.raises(InputError) as error:
            train.train_and_evaluate(config, str(workdir), show_progress=False)
        assert len(compilations) == before
        assert not workdir.exists()
        assert isinstance(error.value, ValueError)
        return str(error.value).splitlines()

    return start


def test_compilations_would_be_seen(compilations):
    before = len(compilations)
    jax.jit(lambda x: x * 3.25 + 1.5)(np.float32(2))
    assert len(compilations) > before


@pytest.mark.parametrize(("field", "value", "expected"), BAD_VALUES)
def test_bad_value(refused, field, value, expected):
    assert refused(**{field: value}) == [f"config.{field}: got {value!r}, expected {expected}"]


@pytest.mark.parametrize(("field", "value", "expected"), OF_ANOTHER_TYPE)
def test_value_of_another_type(tiny_config, field, value, expected):
    config = tiny_config(**{field: None})
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError) as error:
        validate(config, num_devices=8)
    assert str(error.value) == f"config.{field}: got {value!r}, expected {expected}"


def test_no_field_can_be_none_but_where_data_and_labels_are(tiny_config):
    nullable = {"dataset.data_dir", "noise.file", "noise.key"}
    for field in flatten_config(tiny_config().to_dict()).keys() - nullable:
        with pytest.raises(InputError, match=re.escape(f"config.{field}: got None, expected")):
            validate(tiny_config(**{field: None}), num_devices=8)


def test_tied_embeddings_need_equal_sizes(refused, tiny_config):
    assert refused(**{"lcn.tie_embeddings": True, "lcn.hidden_size": 24}) == [
        "config.lcn.tie_embeddings: got True, expected equal lcn.hidden_size (24) and "
        "lcn.embedding_size (16) to tie"
    ]
    validate(tiny_config(**{"lcn.tie_embeddings": True}), num_devices=8)


def test_all_problems_are_told_together(refused):
    lines = refused(**{
        "noise.level": 2.0, "model.name": "cnn", "clean_batch_size": 17, "num_epochs": 0,
        "main_optimizer.learning_rate": -1.0, "meta_optimizer.learning_rate": -2.0,
    })  # fmt: skip
    assert {line.split(":")[0] for line in lines} == {
        "config.noise.level",
        "config.model.name",
        "config.clean_batch_size",
        "config.num_epochs",
        "config.main_optimizer.learning_rate",
        "config.meta_optimizer.learning_rate",
    }
    assert len(lines) == 6


def test_clean_batch_is_halved_only_if_it_is_mixed(tiny_config):
    config = tiny_config(**{"clean_batch_size": 24, "meta_gradient.mix_clean": False})
    validate(config, num_devices=8)
    config.clean_batch_size = 25
    with pytest.raises(InputError, match=re.escape("got 25, expected a positive multiple of 8 (8")):
        validate(config, num_devices=8)
    config.meta_gradient.mix_clean = True
    with pytest.raises(InputError, match="got 25, expected a positive multiple of 2 "):
        validate(config, num_devices=1)


@pytest.mark.parametrize("source", [digits, cifar10, cifar100])
def test_published_configs_are_right_on_one_device(source):
    validate(source.get_config(), num_devices=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise.level", 0.0),
        ("noise.level", 1.0),
        ("model.resnet.depth", 8),
        ("model.resnet.depth", 110),
        ("main_optimizer.milestones", ()),
        ("main_optimizer.milestones", (1, 2)),
        ("main_optimizer.weight_decay", 0.0),
        ("dataset.validation_per_class", 0),
        ("seed", 2**32 - 1),
    ],
)
def test_limits_themselves_are_right(tiny_config, field, value):
    validate(tiny_config(**{field: value}), num_devices=8)


def test_class_with_too_few_examples(refused):
    (line,) = refused(**{"dataset.clean_per_class": 200})
    assert re.fullmatch(
        r"config\.dataset\.clean_per_class \+ validation_per_class: got 200 \+ 2, but class \d has "
        r"only 1\d\d training examples; expected at most 1\d\d together",
        line,
    )


@pytest.mark.parametrize(
    ("field", "size", "available"), [("noisy_batch_size", 1376, 1367), ("clean_batch_size", 64, 50)]
)
def test_batch_larger_than_its_set(refused, field, size, available):
    assert refused(**{field: size}) == [
        f"config.{field}: got {size}, expected at most {available}, the number of such examples"
    ]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_data_says_how_to_get_them(refused, tmp_path, name):
    how = (
        "Let TensorFlow Datasets fetch it with --config.dataset.download=True, or point "
        f"--config.dataset.data_dir at a directory that holds {name}/3.0.2/"
    )
    absent = str(tmp_path / "absent")
    assert refused(**{"dataset.name": name, "dataset.data_dir": absent}) == [
        f"config.dataset.data_dir: no directory {absent!r}. {how}"
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(**{"dataset.name": name, "dataset.data_dir": str(empty)}) == [
        f"config.dataset.data_dir: no prepared {name!r} in {empty}. {how}"
    ]


def _label_file(path, labels):
    np.savez(path, worst=labels)
    return str(path)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (
            np.zeros(1436, np.uint8),
            "has shape (1436,), expected (1797,), one label for each training example",
        ),
        (
            np.zeros((1797, 10), np.uint8),
            "has shape (1797, 10), expected (1797,), one label for each training example",
        ),
        (np.full(1797, 10), "has labels from 10 to 10, expected 0 to 9"),
        (np.full(1797, -1), "has labels from -1 to -1, expected 0 to 9"),
        (np.zeros(1797, np.float32), "holds float32, expected integers"),
    ],
)
def test_label_file(refused, tmp_path, labels, problem):
    file = _label_file(tmp_path / "labels.npz", labels)
    lines = refused(**{"noise.type": "human", "noise.file": file, "noise.key": "worst"})
    assert lines == [f"config.noise.file: {file!r}['worst'] {problem}"]


def test_label_file_that_is_not_there(refused, tmp_path):
    for path in ("", str(tmp_path / "no.npz"), str(tmp_path)):
        (line,) = refused(**{"noise.type": "human", "noise.file": path, "noise.key": "worst"})
        assert line.startswith(
            f"config.noise.file: got {path!r}, expected the path of an .npz file of labels"
        )


def test_label_file_that_is_something_else(refused, tmp_path):
    path = tmp_path / "labels.npz"
    path.write_text("not a zip")
    (line,) = refused(**{"noise.type": "human", "noise.file": str(path), "noise.key": "worst"})
    assert line.startswith(f"config.noise.file: {str(path)!r} is not a readable .npz (")


def test_label_key_that_is_not_in_the_file(refused, tmp_path):
    file = _label_file(tmp_path / "labels.npz", np.zeros(1797, np.int64))
    lines = refused(**{"noise.type": "human", "noise.file": file, "noise.key": "wrst"})
    assert lines == ["config.noise.key: got 'wrst', expected one of ['worst']"]
