"""The settings; and what a user can get wrong: told at once, by field, value and what is right."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import arrays, cifar10, cifar100, digits
from mlc_jax import build
from mlc_jax import config as settings
from mlc_jax.benchmarks import noise
from mlc_jax.commands import train
from mlc_jax.config import SETTINGS, validate
from mlc_jax.core import BACKWARDS, ESTIMATORS, OVERLAPPING, optimizers
from mlc_jax.core.inner_loss import PRIORS
from mlc_jax.errors import InputError
from mlc_jax.methods import METHODS
from mlc_jax.methods.cross_fit import TAKEN
from mlc_jax.models.label_correction import FORMS
from mlc_jax.report import verdict

INF, NAN = float("inf"), float("nan")
DEPTHS = "6n + 2 with n from 1 to 200: 8, 14, ..."
MILESTONES = "whole epochs from 1 to #, each later than the one before, such as (80, 100)"
WIDTHS = "widths from 1 to #, such as (128, 64)"
POSITIVE = "a positive number, at most #"  # Every setting has a bound of its own.
SEEDS = "a whole number from 0 to 4294967295"
COUNT = "a whole number from 1 to #"
SIZED = "1 or more: 0 is for own files"
STEPS = "START:STOP, inner steps, such as 100:110, or an empty text"
COUNT_FROM_0 = "a whole number from 0 to #"
NOT_NEGATIVE = "a number from 0 to #"
FLAG = "True or False"
SHARE = "a number from 0 to 1"
TEXT = "a text, or None"
OPTIMIZERS = "one of sgd, adam, amsgrad, adamw"
SCHEDULES = "one of constant, step, cosine, linear"
GROUPS = (
    "(pattern, learning-rate factor, weight decay or None) for each group, such as "
    '(("bias$", 1.0, 0.0), ("hidden1/", 0.0, None))'
)
OWN_FILES = "None with a dataset that has its own files"
ARRAYS = "dataset.data=FILE, or both dataset.noisy=FILE and dataset.clean=FILE"

# Field, value, what the message expects. Batches are of eight devices.
BAD_VALUES = [
    ("method", "mcl", f"one of {', '.join(METHODS)}"),
    (
        "dataset.name",
        "mnist",
        "one of digits, cifar10, cifar100, clothing1m, ag_news, yelp5, amazon5, yahoo, arrays, "
        "table, text, image_folder",
    ),
    ("noise.type", "gauss", "one of uniform, flip, flip_any, instance, human, none"),
    ("lcn.form", "matrix", "one of network, posterior, both, or None"),
    ("lcn.pair_weight", -1.0, f"{NOT_NEGATIVE}, or None"),
    ("inner_loss.mixup", -0.1, f"{NOT_NEGATIVE}, or None"),
    ("inner_loss.prior_weight", INF, f"{NOT_NEGATIVE}, or None"),
    ("inner_loss.entropy_weight", float("nan"), f"{NOT_NEGATIVE}, or None"),
    ("inner_loss.power", 0.5, "0, or a number from 1 to #, or None"),
    ("inner_loss.prior", "flat", "one of uniform, targets, or None"),
    ("dataset.num_noisy", -1, COUNT_FROM_0),
    ("dataset.imbalance", 0.5, "a number from 1 to #"),
    ("model.name", "cnn", "one of mlp, resnet, resnet50, bert"),
    ("model.dtype", "float16", "one of float32, bfloat16"),
    ("meta_gradient.estimator", "exat", f"one of {', '.join(ESTIMATORS)}"),
    ("main_optimizer.name", "SGD", OPTIMIZERS),
    ("meta_optimizer.name", "rmsprop", OPTIMIZERS),
    ("main_optimizer.schedule", "exponential", SCHEDULES),
    ("meta_optimizer.schedule", "", SCHEDULES),
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
    ("dataset.random_crop", "none", "one of resized, plain"),
    ("dataset.bad_images", "skip", "one of refuse, leave_out"),
    ("dataset.resize_size", 200, "at least dataset.image_size, 224"),
    ("model.resnet50.depth", 34, "one of (26, 50, 101)"),
    (
        "model.resnet50.freeze_batch_norm",
        True,
        "False without model.resnet50.checkpoint: there are no statistics to keep",
    ),
    ("model.resnet.depth", 33, DEPTHS),
    ("model.resnet.depth", 2, DEPTHS),
    ("model.resnet.depth", -4, DEPTHS),
    ("model.mlp.hidden_sizes", (32, 0), WIDTHS),
    ("model.mlp.hidden_sizes", (32.5,), WIDTHS),
    ("model.mlp.dropout_rate", 1.0, "a number from 0 to 0.99"),
    ("lcn.hidden_size", 0, SIZED),
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
    ("meta_gradient.update_every", -1, COUNT_FROM_0),
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
    ("num_epochs", 0, SIZED),
    ("num_epochs", -3, COUNT),
    ("num_epochs", None, COUNT),
    ("checkpoint_every_minutes", 0.0, POSITIVE),
    ("checkpoint_every_minutes", NAN, POSITIVE),
    ("eval_every_epochs", 0, COUNT),
    ("log_every_steps", 0, COUNT),
    ("checkpoint_every_steps", 0, COUNT),
    ("checkpoints_to_keep", 0, COUNT),
    ("eval_batch_size", 0, COUNT),
    ("num_steps", -1, COUNT_FROM_0),
    ("max_exported_labels", -1, COUNT_FROM_0),
    ("profile", "5", STEPS),
    ("profile", "5:5", STEPS),
    ("profile", "a:9", STEPS),
    ("profile", None, STEPS),
    ("dataset.data", "all.npz", OWN_FILES),
    ("dataset.noisy", "noisy.npz", OWN_FILES),
    ("dataset.clean", "clean.npz", OWN_FILES),
    ("dataset.test", "test.npz", OWN_FILES),
    ("main_optimizer.warmup_epochs", -0.5, NOT_NEGATIVE),
    ("meta_optimizer.warmup_epochs", INF, NOT_NEGATIVE),
    ("main_optimizer.groups", (("bias", 0.1),), GROUPS),
    ("main_optimizer.groups", (("bias", -0.1, None),), GROUPS),
    ("meta_optimizer.groups", (("bias", 0.1, NAN),), GROUPS),
    ("meta_optimizer.groups", ((1, 0.1, None),), GROUPS),
    ("noisy_batch_size", 0, SIZED),
    ("noisy_batch_size", 100, "a positive multiple of 8 (8 devices)"),
    ("noisy_batch_size", -64, COUNT),
    ("clean_batch_size", 0, SIZED),
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
    ("noisy_batch_size", None, COUNT),
    ("clean_batch_size", None, COUNT),
    ("eval_batch_size", None, COUNT),
    ("meta_gradient.mix_clean", None, FLAG),
    ("lcn.tie_embeddings", None, FLAG),
    ("main_optimizer.nesterov", None, FLAG),
    ("main_optimizer.groups", None, GROUPS),
    ("dataset.paired", None, FLAG),
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
    ("noisy_batch_size", 64.0, COUNT),
    ("clean_batch_size", "32", COUNT),
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
    ("noise.file", 1.5, TEXT),
    ("dataset.paired", 1, FLAG),
    ("main_optimizer.groups", "bias", GROUPS),
    ("num_steps", 10.0, COUNT_FROM_0),
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
    (line,) = refused(**{field: value})
    assert _without_bound(line, expected) == f"config.{field}: got {value!r}, expected {expected}"


def _without_bound(line, expected):
    """The message with # in place of the upper bound."""
    if "#" not in expected:
        return line
    before, after = expected.split("#")
    return re.sub(rf"({re.escape(before)})\d+({re.escape(after)})$", r"\1#\2", line)


@pytest.mark.parametrize(("field", "value", "expected"), OF_ANOTHER_TYPE)
def test_value_of_another_type(tiny_config, field, value, expected):
    config = tiny_config(**{field: None})
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError) as error:
        validate(config, num_devices=8)
    line = _without_bound(str(error.value), expected)
    assert line == f"config.{field}: got {value!r}, expected {expected}"


@pytest.mark.parametrize(
    "field", [x for x in SETTINGS if isinstance(SETTINGS[x].default, int | float)]
)
def test_every_number_has_an_upper_bound(field):
    if isinstance(SETTINGS[field].default, bool):
        return
    for value in (10**40, 1e39, INF):
        assert not SETTINGS[field].check.ok(value)


def test_no_field_can_be_none_but_where_data_and_labels_are(tiny_config):
    nullable = {
        *(f"dataset.{name}" for name in ("data_dir", "data", "noisy", "clean", "test")),
        *(f"dataset.{name}" for name in ("tfds_name", "tokenizer", "cache_dir", "checked")),
        "dataset.features", "dataset.standardize", "dataset.drawn",
        "dataset.columns", "dataset.label_columns", "dataset.votes",
            "dataset.class_names",
        "noise.file", "noise.key", "model.initial_params",
        # Where each method has its own default.
        "lcn.form", "lcn.pair_weight",
        # Where the checkpoint does.
        "model.bert.checkpoint", "model.bert.dropout_rate", "model.resnet50.checkpoint",
        "dataset.resize_size", "dataset.encoder", "dataset.encoder_feature",
        "cross_fit.hidden_sizes",  # Both kinds of classifiers.
        *(field for field in SETTINGS if field.startswith("inner_loss.")),
    }  # fmt: skip
    validate(tiny_config(**dict.fromkeys(nullable)), num_devices=8)
    for field in SETTINGS.keys() - nullable:
        with pytest.raises(InputError, match=re.escape(f"config.{field}: got None, expected")):
            validate(tiny_config(**{field: None}), num_devices=8)


def test_inner_losses_are_for_methods_whose_labels_keep_their_meaning(refused):
    for method in sorted(set(METHODS) - set(settings.INNER_LOSS_METHODS)):
        assert refused(method=method, **{"inner_loss.mixup": 1.0}) == [
            f"config.inner_loss.mixup: got 1.0, expected None with {method}, whose labels would "
            f"lose their meaning; it is for {', '.join(settings.INNER_LOSS_METHODS)}"
        ]
    assert {name for name in METHODS if hasattr(METHODS[name], "inner_loss")} == {
        *settings.INNER_LOSS_METHODS
    }


def test_tied_embeddings_need_equal_sizes(refused, tiny_config):
    assert refused(**{"lcn.tie_embeddings": True, "lcn.hidden_size": 24}) == [
        "config.lcn.tie_embeddings: got True, expected equal lcn.hidden_size (24) and "
        "lcn.embedding_size (16) to tie"
    ]
    validate(tiny_config(**{"lcn.tie_embeddings": True}), num_devices=8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"meta_optimizer.groups": (("(", 0.5, None),)},
            "config.meta_optimizer.groups: got (('(', 0.5, None),), expected regular expressions: "
            "'(' is none (missing ), unterminated subpattern at position 0)",
        ),
        (
            {"main_optimizer.schedule": "step", "main_optimizer.milestones": (1, 3),
             "main_optimizer.warmup_epochs": 2.0},
            "config.main_optimizer.milestones: got (1, 3), expected epochs after the warm-up, "
            "which takes 2",
        ),
        (
            {"main_optimizer.warmup_epochs": 4.0},
            "warmup_epochs: got 4.0, expected less than the run, which takes 4 epochs",
        ),
        (
            {"method": "forward", "forward.percentile": 50.0},
            "forward.percentile: got 50.0, expected more than 90, or an anchor of one of 10 "
            "classes may be of another",
        ),
        (
            {"method": "emlc", "model.name": "resnet50", "model.resnet50.freeze_batch_norm": True,
             "model.resnet50.checkpoint": "/nowhere"},
            "freeze_batch_norm: got True, expected False with method=emlc, whose teacher has "
            "statistics of its own",
        ),
        (
            {"model.initial_params": "/nowhere/start.safetensors"},
            "'/nowhere/start.safetensors' cannot be read (No such file or directory); expected a "
            "safetensors file",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_suit_each_other(refused, fields, message):
    (line,) = refused(**fields)
    assert line.endswith(message)


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


def test_devices_are_counted_only_where_jax_is_there(tiny_config):
    """Before JAX is imported, everything but the batches' shares is checked."""
    validate(tiny_config(noisy_batch_size=1, clean_batch_size=1))
    with pytest.raises(InputError, match=r"^config\.noisy_batch_size: got 0, expected 1 or"):
        validate(tiny_config(noisy_batch_size=0))


@pytest.mark.parametrize("source", [digits, cifar10, cifar100, arrays])
def test_published_configs_are_right_on_one_device(source):
    config = source.get_config()
    if source is arrays:
        config.dataset.data = "all.npz"
    validate(config, num_devices=1)


@pytest.mark.parametrize(
    ("files", "problems"),
    [
        ({}, {"data": ("None", ARRAYS)}),
        ({"noisy": "n"}, {"clean": ("None", f"a file beside dataset.noisy: {ARRAYS}")}),
        ({"clean": "c"}, {"noisy": ("None", f"a file beside dataset.clean: {ARRAYS}")}),
        (
            {"data": "d", "noisy": "n", "clean": "c"},
            {
                "noisy": ("'n'", f"None beside dataset.data: either {ARRAYS}"),
                "clean": ("'c'", f"None beside dataset.data: either {ARRAYS}"),
            },
        ),
        ({"test": "t"}, {"data": ("None", ARRAYS)}),
    ],
)
def test_files_of_arrays_that_do_not_go_together(files, problems):
    config = arrays.get_config()
    config.dataset.update(files)
    with pytest.raises(InputError) as error:
        validate(config)
    assert str(error.value).splitlines() == [
        f"config.dataset.{name}: got {given}, expected {expected}"
        for name, (given, expected) in problems.items()
    ]


def test_noise_of_arrays_is_their_own():
    config = arrays.get_config()
    config.dataset.update(noisy="n", clean="c")
    validate(config)
    config.noise.type = "flip"
    with pytest.raises(InputError) as error:
        validate(config)
    assert str(error.value) == (
        "config.noise.type: got 'flip', expected none with dataset.noisy: its labels are taken as "
        "they are"
    )
    config = arrays.get_config()
    config.dataset.data, config.noise.type = "d", "human"
    with pytest.raises(InputError) as error:
        validate(config)
    assert str(error.value) == (
        "config.noise.type: got 'human', expected another: the given labels are in their own file"
    )


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


def test_not_one_example_for_every_device(refused):
    """A batch that is larger than its set shrinks to it, but every device and half needs some."""
    assert refused(**{"dataset.clean_per_class": 1}) == [
        "config.clean_batch_size: got 32 with 10 clean examples, expected at least 16 of them: "
        "every device and every half of a clean batch needs one"
    ]


@pytest.mark.parametrize(
    ("fields", "given", "steps"),
    [({"num_epochs": 2}, 43, 42), ({"num_steps": 10}, 11, 10), ({"num_epochs": 1}, 10**6, 21)],
)
def test_window_longer_than_the_training(refused, fields, given, steps):
    assert refused(**fields | {"meta_gradient.num_inner_steps": given}) == [
        f"config.meta_gradient.num_inner_steps: got {given}, expected at most {steps}, the inner "
        "steps of the whole training (21 per epoch)"
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


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        *(
            (
                {"meta_gradient.num_inner_steps": 4, "meta_gradient.update_every": s},
                f"config.meta_gradient.update_every: got {s}, expected 0, or a divisor of "
                "meta_gradient.num_inner_steps, which is 4",
            )
            for s in (3, 8)
        ),
        *(
            (
                {
                    "meta_gradient.num_inner_steps": 4,
                    "meta_gradient.update_every": 2,
                    "meta_gradient.estimator": name,
                },
                f"config.meta_gradient.update_every: got 2, expected 0 with {name}, which uses "
                "only the window's end; exact, truncated, first_order, approximate allow less "
                "than num_inner_steps",
            )
            for name in ("one_step", "finite_difference", "neumann", "conjugate_gradient")
        ),
        (
            {
                "meta_gradient.num_inner_steps": 4,
                "meta_gradient.update_every": 2,
                "meta_gradient.estimator": "approximate",
                "meta_gradient.diagnose_every": 10,
            },
            "config.meta_gradient.diagnose_every: got 10, expected 0 with approximate and "
            "update_every below num_inner_steps: it has no window",
        ),
        (
            {"meta_optimizer.normalize": True, "meta_optimizer.clip_norm": 0.5},
            "config.meta_optimizer.normalize: got True, expected False with "
            "meta_optimizer.clip_norm=0.5: a norm of one needs no clipping",
        ),
        (
            {"dataset.name": "cifar10", "dataset.standardize": True},
            "config.dataset.standardize: got True, expected False for images: they are normalised "
            "by their published mean and deviation",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(refused, fields, line):
    assert refused(**fields) == [line]


# --- The settings themselves.


def test_names_are_those_of_the_registries():
    """The names stand twice, since the settings import no JAX."""
    assert tuple(METHODS) == settings.METHODS
    assert tuple(ESTIMATORS) == settings.ESTIMATORS
    assert settings.OVERLAPPING == OVERLAPPING
    assert settings.PRIORS == PRIORS
    assert settings.TAKEN == TAKEN == tuple(x for x in verdict.NAMES if x != verdict.AS_GIVEN)
    assert settings.LCN_FORMS == FORMS
    assert settings.BACKWARDS == BACKWARDS
    assert settings.OPTIMIZERS == optimizers.OPTIMIZERS
    assert settings.SCHEDULES == optimizers.SCHEDULES
    assert (*noise.NOISE_TYPES, "none") == settings.NOISE_TYPES


@pytest.mark.parametrize("name", [x for x in settings.CLASSIFIERS if x != "bert"])  # texts_test.
@pytest.mark.parametrize("dtype", settings.DTYPES)
def test_every_classifier_can_be_built(tiny_config, name, dtype):
    config = tiny_config(**{"model.name": name, "model.dtype": dtype, "model.resnet.depth": 8})
    model = build.create_classifier(config.model, 7)
    assert type(model).__name__.lower() == name
    assert (model.num_classes, model.dtype) == (7, jnp.dtype(dtype))


def test_every_setting_is_explained_and_right_by_default():
    text = settings.describe()
    for field, setting in SETTINGS.items():
        assert setting.meaning[0].isalnum() and setting.meaning.endswith("."), field
        assert setting.meaning in text
        assert f"\n{field} = {setting.default!r}\n" in f"\n{text}\n"
        assert setting.check.ok(setting.default), field
        assert setting.formerly is None or setting.check.ok(setting.formerly), field
    validate(settings.get_config(), num_devices=1)


def test_config_has_every_setting_once():
    flat = settings.flatten(settings.get_config().to_dict())
    assert flat == {field: setting.default for field, setting in SETTINGS.items()}


def test_a_config_of_an_older_workdir_is_completed(tiny_config):
    saved = json.loads(tiny_config(num_epochs=3).to_json())
    for section, name in (("dataset", "paired"), ("meta_optimizer", "groups")):
        del saved[section][name]
    del saved["num_steps"]
    config = settings.complete(ConfigDict(saved))
    assert config.is_locked
    validate(config, num_devices=8)
    flat = settings.flatten(json.loads(config.to_json()))
    assert flat == settings.flatten(json.loads(tiny_config(num_epochs=3).to_json()))
    with pytest.raises(InputError, match=r"^config\.dataset\.colour: there is no such setting$"):
        settings.complete(ConfigDict(saved | {"dataset": saved["dataset"] | {"colour": 1}}))


# --- No JAX, which alone takes seconds, before the settings are known to be right.

HEAVY = "[name for name in ('jax', 'tensorflow') if name in sys.modules]"


def _python(program):
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}"], capture_output=True, text=True
    )


def _main(*args):
    """`python -m mlc_jax.main`, and which heavy modules it had imported when it ended."""
    return _python(
        f"import runpy\nsys.argv = ['main', *{args!r}]\n"
        "try: runpy.run_module('mlc_jax.main', run_name='__main__', alter_sys=True)\n"
        f"finally: print({HEAVY})"
    )


def test_settings_import_neither_jax_nor_tensorflow():
    result = _python(f"import mlc_jax.config\nprint({HEAVY})")
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr


def test_help_imports_neither_jax_nor_tensorflow():
    result = _main("--help")
    assert result.returncode == 1, result.stderr  # absl's exit code for it.
    assert result.stdout.splitlines()[-1] == "[]"
    assert "Trains a classifier on noisy labels" in result.stdout


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.noise.level=2", "config.noise.level: got 2.0, expected a number from 0 to 1"),
        ("--process_id=1", "--coordinator, --num_processes: missing; expected --coordinator="),
    ],
)
def test_a_bad_setting_is_told_without_jax(tmp_path, flag, message):
    workdir = tmp_path / "run"
    result = _main("--config=configs/digits.py", f"--workdir={workdir}", flag)
    assert (result.returncode, result.stdout) == (2, "[]\n")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert not workdir.exists()
