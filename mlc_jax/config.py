"""Every setting: its default, its check, its meaning, in one place.

    python -m mlc_jax.config

prints them all. A config file (configs/digits.py) overrides what differs for its dataset; the
command line overrides both. This module imports neither JAX nor TensorFlow, so that a bad setting
is reported at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from mlc_jax.errors import InputError

# Names that the registries of the packages must have, too; a test holds them together.
METHODS = (
    "cross_entropy", "clean_only", "noisy_only", "forward", "joint", "mlnt", "distillation",
    "l2rw", "meta_weight_net", "glc", "mlc", "self_training", "robust_mlc", "emlc",
)  # fmt: skip
# Those whose inner loss has settings; in all others the labels' meaning would be lost.
INNER_LOSS_METHODS = (
    "cross_entropy", "clean_only", "meta_weight_net", "mlc", "self_training", "robust_mlc",
)  # fmt: skip
LCN_FORMS = ("network", "posterior", "both")
PRIORS = ("uniform", "targets")
ESTIMATORS = (
    "exact", "approximate", "one_step", "truncated", "first_order", "finite_difference", "neumann",
    "conjugate_gradient",
)  # fmt: skip
OVERLAPPING = ("exact", "truncated", "first_order", "approximate")
BACKWARDS = ("store", "remat", "forward_over_reverse", "two_level")
OPTIMIZERS = ("sgd", "adam", "amsgrad", "adamw")
SCHEDULES = ("constant", "step", "cosine", "linear")
CLASSIFIERS = ("mlp", "resnet", "resnet50", "bert")
RESNET50_DEPTHS = (26, 50, 101)
BERT_FEATURES = ("mean", "cls", "pooler")
DTYPES = ("float32", "bfloat16")
CIFAR = ("cifar10", "cifar100")
TEXT_BENCHMARKS = ("ag_news", "yelp5", "amazon5", "yahoo")
OWN_FILES = ("arrays", "table", "text", "image_folder")  # Datasets that a user's files make.
DATASETS = ("digits", *CIFAR, "clothing1m", *TEXT_BENCHMARKS, *OWN_FILES)
IMAGE_FILES = ("clothing1m", "image_folder")  # Datasets of pictures in files.
IMAGE_CROPS = ("resized", "plain")
BAD_IMAGES = ("refuse", "leave_out")
NOISE_TYPES = ("uniform", "flip", "flip_any", "instance", "human", "none")

# Of these 0 is "by the sizes of the data", see `training.sizing`; only a config may say it.
SIZED = (
    "num_epochs", "noisy_batch_size", "clean_batch_size", "lcn.hidden_size", "lcn.embedding_size",
)  # fmt: skip

_INFINITY = float("inf")
_BY_SIZE = "Own files: 0 chooses by the sizes of the data."


class Check(NamedTuple):
    """Whether a value is right, and what would be.

    Any field can be set to None, and through None to any type, so checks take anything.
    """

    ok: Callable[[Any], bool]
    expected: str


class Setting(NamedTuple):
    """One field of the config.

    Attributes:
      default: None stands for a value that is not given.
      check: of its value alone; what several settings say together is checked in `validate`.
      meaning: for a reader.
      formerly: the value that a workdir from before this setting was made with; `default` if None.
      kind: the type of a value whose default is None.
    """

    default: Any
    check: Check
    meaning: str
    formerly: Any = None
    kind: type = str


def one_of(*choices: str) -> Check:
    return Check(lambda value: value in choices, "one of " + ", ".join(choices))


def flag() -> Check:
    return Check(lambda value: isinstance(value, bool), "True or False")


def text() -> Check:
    return Check(lambda value: value is None or isinstance(value, str), "a text, or None")


def optional(check: Check) -> Check:
    return Check(lambda value: value is None or check.ok(value), f"{check.expected}, or None")


def whole(low: int, high: float = _INFINITY) -> Check:
    """A whole number; bool, which is a kind of int, is none."""
    span = f" from {low} to {high}" if high < _INFINITY else f", at least {low}"
    return Check(lambda value: _is_whole(value) and low <= value <= high, f"a whole number{span}")


def number(low: float, high: float = _INFINITY) -> Check:
    expected = (
        f"a number from {low} to {high}" if high < _INFINITY else f"a finite number, at least {low}"
    )
    return Check(lambda value: _is_number(value) and low <= value <= high, expected)


def positive() -> Check:
    return Check(lambda value: _is_number(value) and value > 0, "a positive, finite number")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and -_INFINITY < value < _INFINITY


def _are_whole(values: Any) -> bool:
    """Whether `values` is a sequence, maybe an empty one, of whole numbers from 1 on."""
    return isinstance(values, tuple | list) and all(_is_whole(x) and x > 0 for x in values)


def _is_group(group: Any) -> bool:
    return (
        isinstance(group, tuple | list)
        and len(group) == 3
        and isinstance(group[0], str)
        and _is_number(group[1])
        and group[1] >= 0
        and (group[2] is None or (_is_number(group[2]) and group[2] >= 0))
    )


_DEPTH = Check(
    lambda value: _is_whole(value) and value >= 8 and (value - 2) % 6 == 0,
    "6n + 2 with n >= 1: 8, 14, ...",
)
_WIDTHS = Check(_are_whole, "positive widths, such as (128, 64)")
_MILESTONES = Check(
    lambda value: _are_whole(value) and list(value) == sorted(set(value)),
    "whole epochs from 1 on, each later than the one before, such as (80, 100)",
)
_GROUPS = Check(
    lambda value: isinstance(value, tuple | list) and all(map(_is_group, value)),
    "(pattern, learning-rate factor, weight decay or None) for each group, such as "
    '(("bias$", 1.0, 0.0), ("hidden1/", 0.0, None))',
)
_SEED = whole(0, 2**32 - 1)
_SIZE = Check(whole(0).ok, whole(1).expected)  # 0 is for own files: `_own_data`.
_POWER = Check(
    lambda value: _is_number(value) and (value == 0 or value >= 1), "0, or a number from 1 on"
)


def _preset(kind: type, check: Check, meaning: str) -> Setting:
    """A setting that each method has its own default for."""
    return Setting(None, optional(check), meaning, kind=kind)


def _optimizer(
    name: str, learning_rate: float, momentum: float, weight_decay: float, schedule: str
) -> dict[str, Setting]:
    return {
        "name": Setting(name, one_of(*OPTIMIZERS), "sgd, adam, amsgrad, adamw."),
        "learning_rate": Setting(learning_rate, positive(), "At the start."),
        "momentum": Setting(momentum, number(0, 0.9999), "sgd."),
        "nesterov": Setting(False, flag(), "sgd."),
        "weight_decay": Setting(
            weight_decay,
            number(0),
            "On every parameter, as published: added to the gradient; adamw's is decoupled.",
        ),
        "clip_norm": Setting(0.0, number(0), "Largest norm of the gradient; 0 is any."),
        "b1": Setting(0.9, number(0, 0.9999), "All but sgd: decay of the first moment."),
        "b2": Setting(0.999, number(0, 0.9999), "All but sgd: decay of the second moment."),
        "schedule": Setting(
            schedule, one_of(*SCHEDULES), "constant, step, cosine or linear (both to zero)."
        ),
        "milestones": Setting((80, 100), _MILESTONES, "step: epochs."),
        "decay_factor": Setting(0.1, positive(), "step: what the rate is multiplied by."),
        "warmup_epochs": Setting(0.0, number(0), "Epochs of linear rise from zero, first of all."),
        "groups": Setting(
            (),
            _GROUPS,
            "Parameter groups: (pattern, learning-rate factor, weight decay); the first regular "
            "expression that is found in a parameter's path counts. Factor 0 freezes; weight "
            "decay None is the optimizer's own.",
        ),
    }


# By section; a section's fields stand together in the config.
_SECTIONS: tuple[tuple[str, dict[str, Setting]], ...] = (
    (
        "",
        {
            "seed": Setting(
                0,
                _SEED,
                "Initialisation, batch order and augmentation. Splits and noise have their own.",
            ),
            "method": Setting("mlc", one_of(*METHODS), f"How to train: {', '.join(METHODS)}."),
            "compare": Setting(
                False,
                flag(),
                "Train cross_entropy and clean_only as well, in compare/ of the workdir, and say "
                "in the final table and the report what they reach.",
            ),
        },
    ),
    (
        "dataset",
        {
            "name": Setting("cifar10", one_of(*DATASETS), ", ".join(DATASETS) + "."),
            "data_dir": Setting(
                None,
                text(),
                "Directory of TensorFlow Datasets; None is its own default, ~/tensorflow_datasets. "
                "Text benchmarks: of the published train.csv and test.csv. clothing1m: of images/, "
                "key lists and labels, or packed by mlc_jax.data.pack.",
            ),
            "download": Setting(False, flag(), "Let TensorFlow Datasets fetch what is missing."),
            "tfds_name": Setting(
                None,
                text(),
                "ag_news: read a builder of TensorFlow Datasets, such as ag_news_subset, in place "
                "of the published files.",
            ),
            "data": Setting(
                None,
                text(),
                "One file. arrays: an .npz with inputs, labels and checked_labels, and maybe ids "
                "and splits; or inputs in an .npy and the rest in a .csv of the same name. text: a "
                ".csv, .jsonl or .parquet with columns text, label and checked_label, and maybe id "
                "and split (test for rows that only judge). image_folder: a directory with a "
                "sub-directory for each class, or such a table with path in place of text. Without "
                "checked labels it is a benchmark whose labels are all true.",
            ),
            "noisy": Setting(
                None,
                text(),
                "In place of data, with clean. arrays: .npz file of inputs and labels as given. "
                "text: columns text and label.",
            ),
            "clean": Setting(
                None,
                text(),
                "arrays: .npz file of inputs and true labels; given_labels if known. text: columns "
                "text and label; given_label if known.",
            ),
            "test": Setting(
                None,
                text(),
                "arrays: .npz file of inputs and true labels to judge by. text: columns text and "
                "label.",
            ),
            "checked": Setting(
                None,
                text(),
                "Beside data: FILE[,FILE...] with columns id and checked_label, such as the "
                "to_check.csv of the run before, once it is filled in.",
            ),
            "holdout_per_class": Setting(
                0,
                whole(0),
                "Own files without test rows: checked rows per class to judge by instead of "
                "training with them; a class that would not keep twice as many keeps all.",
            ),
            "features": Setting(
                None,
                text(),
                "table: NAME[,NAME...] of columns that become features: numbers as they are, texts "
                "one-hot. None is every column of numbers.",
            ),
            "tokenizer": Setting(
                None,
                text(),
                "Texts: a directory with a tokenizer.json, or a name on the Hugging Face hub. None "
                "is model.bert.checkpoint.",
            ),
            "max_length": Setting(
                128, whole(8), "Texts: tokens of an input; longer texts are cut off."
            ),
            "cache_dir": Setting(
                None,
                text(),
                "Texts: where tokens and a frozen encoder's features are kept. Pictures: which "
                "files are known to be good. None is ~/.cache/mlc_jax.",
            ),
            "standardize": Setting(
                None,
                optional(flag()),
                "arrays, table, digits: each feature to mean 0 and deviation 1 over the noisy set; "
                "a constant one stays as it is. None, of own files: pixels (unsigned whole "
                "numbers) are divided by the largest, what lies in [0, 1] stays, the rest is "
                "standardised; of others: False.",
                formerly=False,
                kind=bool,
            ),
            "clean_per_class": Setting(100, whole(1), "Trusted labels per class, to train with."),
            "validation_per_class": Setting(
                0, whole(0), "Further trusted labels per class, to select a model by."
            ),
            "paired": Setting(
                False,
                flag(),
                "Benchmarks: the clean rows' labels are made wrong like the others', and both are "
                "kept. The paper knows the true ones alone.",
            ),
            "num_noisy": Setting(
                0, whole(0), "Benchmarks: noisy examples, drawn at random; 0 is all that are left."
            ),
            "imbalance": Setting(
                1.0,
                number(1),
                "Benchmarks: how many times as many noisy examples the first class has as the "
                "last; those between fall evenly by a factor. Clean and test set stay as they are.",
            ),
            "split_seed": Setting(0, _SEED, "Who is clean, and who noisy."),
            "image_size": Setting(
                224, whole(8), "Pictures in files: pixels of the square that a model sees."
            ),
            "resize_size": Setting(
                None,
                optional(whole(8)),
                "Pictures in files: pixels of the shorter side, before the middle square (or a "
                "plain random crop) is taken. None is 8/7 of image_size.",
                kind=int,
            ),
            "random_crop": Setting(
                "resized",
                one_of(*IMAGE_CROPS),
                "Pictures in files, with augment: resized (8 to 100 % of the picture, stretched to "
                "a square) or plain (a square of image_size, of the picture at resize_size).",
            ),
            "bad_images": Setting(
                "refuse",
                one_of(*BAD_IMAGES),
                "Pictures in files that cannot be decoded to their end: refuse, or leave_out, and "
                "list them in left_out.csv. All are looked at before training, once.",
            ),
            "augment": Setting(
                True,
                flag(),
                "CIFAR: reflect-pad 4, random crop, horizontal flip. Pictures in files: "
                "random_crop, horizontal flip.",
            ),
        },
    ),
    (
        "noise",
        {
            "type": Setting(
                "uniform",
                one_of(*NOISE_TYPES),
                "uniform (UNIF), flip (FLIP, one fixed partner per class), flip_any (to any other "
                "class), instance (by what the example looks like, Xia et al. 2020), human (labels "
                "from a file), none.",
            ),
            "level": Setting(0.4, number(0, 1), "In [0, 1]; not read by human and none."),
            "seed": Setting(0, _SEED, "Of the partners of flip, and of which labels are wrong."),
            "file": Setting(
                "", text(), "human: an .npz of labels indexed by the TFDS id, such as cifar10n.npz."
            ),
            "key": Setting("", text(), "human: which array of the file, such as worst."),
        },
    ),
    (
        "model",
        {
            "name": Setting(
                "resnet",
                one_of(*CLASSIFIERS),
                "mlp, resnet (CIFAR's), resnet50 (bottleneck, for pictures), bert (texts).",
            ),
            "dtype": Setting("float32", one_of(*DTYPES), "Of the computation. Params are float32."),
            "initial_params": Setting(
                None,
                text(),
                "A .safetensors file of parameters to start from, by path; what it lacks starts at "
                "random.",
            ),
        },
    ),
    (
        "model.resnet",
        {
            "depth": Setting(32, _DEPTH, "6n + 2."),
            "sync_batch_norm": Setting(
                True,
                flag(),
                "Average batch statistics over devices: then the device count does not change the "
                "result.",
            ),
        },
    ),
    (
        "model.resnet50",
        {
            "depth": Setting(
                50,
                Check(lambda value: value in RESNET50_DEPTHS, f"one of {RESNET50_DEPTHS}"),
                "26, 50 or 101.",
                kind=int,
            ),
            "width": Setting(
                64,
                whole(1),
                "Channels of the first stage; 64 as published, less for small pictures.",
            ),
            "checkpoint": Setting(
                None,
                text(),
                "Pretrained weights, all but the last layer's: torchvision's .pth (needs PyTorch: "
                "the extra `torch`), or timm's .safetensors of the same network. None starts at "
                "random.",
            ),
            "freeze_batch_norm": Setting(
                False, flag(), "Normalise by the checkpoint's statistics, in training, too."
            ),
            "remat": Setting(
                False, flag(), "Compute each block's activations again in the backward pass."
            ),
        },
    ),
    (
        "model.mlp",
        {
            "hidden_sizes": Setting(
                (128, 64),
                _WIDTHS,
                "Widths; the last one is the features'. Of bert's head, too: () is none.",
            ),
            "dropout_rate": Setting(0.0, number(0, 0.99), "Of the hidden activations."),
        },
    ),
    (
        "model.bert",
        {
            "checkpoint": Setting(
                None,
                text(),
                "Pretrained BERT, RoBERTa or DistilBERT: a directory with config.json, "
                "model.safetensors and tokenizer.json, or a name on the Hugging Face hub.",
            ),
            "feature": Setting(
                "mean",
                one_of(*BERT_FEATURES),
                "What it says of a text: mean of the last layer's tokens, cls (the first of them), "
                "pooler.",
            ),
            "num_frozen_layers": Setting(
                0,
                whole(-1),
                "N: the embeddings and the first N layers stay as they are. -1: the whole encoder, "
                "whose features are then computed once, and model.mlp is trained on them.",
            ),
            "dropout_rate": Setting(
                None,
                optional(number(0, 0.99)),
                "Of the encoder in training, attention included; None is the checkpoint's own.",
                kind=float,
            ),
            "remat": Setting(
                False, flag(), "Compute each layer's activations again in the backward pass."
            ),
        },
    ),
    (
        "lcn",
        {
            "hidden_size": Setting(128, _SIZE, f"Paper 64 for images; its code 128. {_BY_SIZE}"),
            "embedding_size": Setting(128, _SIZE, f"Of the given label. {_BY_SIZE}"),
            "skip_link": Setting(False, flag(), "Mix the given label back in by a learned weight."),
            "sparsemax": Setting(False, flag(), "In place of softmax."),
            "tie_embeddings": Setting(False, flag(), "Needs hidden_size == embedding_size."),
            "form": _preset(
                str,
                one_of(*LCN_FORMS),
                "network (the paper's); posterior (Bayes' rule: the classifier's prediction and a "
                "learned matrix of wrong labels); both (their product). None is network, and for "
                "robust_mlc posterior where given labels of clean rows are known.",
            ),
            "pair_weight": _preset(
                float,
                number(0),
                "gamma, of what the LCN learns from clean rows whose given label is known, too "
                "(dataset.paired). None is the method's own: mlc 0, robust_mlc 0.1.",
            ),
        },
    ),
    (
        "inner_loss",
        {
            "mixup": _preset(
                float, number(0), "Parameter of MixUp's Beta distribution, noisy and clean; 0: off."
            ),
            "prior_weight": _preset(
                float, number(0), "alpha, against all predictions becoming one class."
            ),
            "prior": _preset(
                str,
                one_of(*PRIORS),
                "What they should be on average: uniform classes, or the mean of the targets.",
            ),
            "entropy_weight": _preset(float, number(0), "beta, against undecided predictions."),
            "power": _preset(
                float,
                _POWER,
                "How late these three set in: their strength is the share to which the clean "
                "labels are fitted, to this power; 0 is at once.",
            ),
            "hand_over": _preset(
                bool, flag(), "Labels as given first, the method's as the clean ones are fitted."
            ),
        },
    ),
    ("weight_net", {"hidden_size": Setting(100, whole(1), "meta_weight_net: width.")}),
    (
        "emlc",
        {
            "embedding_size": Setting(128, whole(1), "Of a given label, on its way to the gate."),
            "hidden_size": Setting(128, whole(1), "Of the gate."),
            "bce_weight": Setting(
                1.0,
                number(0),
                "Of the loss that teaches the gate to tell clean labels from wrong ones.",
            ),
        },
    ),
    (
        "forward",
        {
            "percentile": Setting(
                97.0,
                number(0.1, 100),
                "An anchor's probability of its class among all examples'. The authors' 97 for ten "
                "classes; 100, the largest, for a hundred.",
            ),
        },
    ),
    (
        "joint",
        {
            "prior_weight": Setting(1.2, number(0), "alpha; the authors' for UNIF, for FLIP 0.8."),
            "entropy_weight": Setting(0.8, number(0), "beta; the authors' for UNIF, for FLIP 0.4."),
            "update_from": Setting(
                0.35, number(0, 1), "Share of the first phase's epochs with labels as given."
            ),
            "num_averaged": Setting(10, whole(1), "Epochs whose predictions make a label."),
        },
    ),
    (
        "mlnt",
        {
            "num_synthetic": Setting(10, whole(1), "M, sets of synthetic labels per step."),
            "transferred_share": Setting(
                0.5, number(0, 1), "Of a batch's labels, made wrong in each set."
            ),
            "num_neighbours": Setting(10, whole(1), "Whose labels a synthetic one is drawn from."),
            "lookahead_rate": Setting(0.2, positive(), "alpha."),
            "consistency_weight": Setting(1.0, number(0), "Beside the cross-entropy."),
            "ramp_share": Setting(
                0.1, number(0, 1), "Of all steps, until the consistency has its full weight."
            ),
            "early_teacher_decay": Setting(0.99, number(0, 1), "gamma, until then."),
            "teacher_decay": Setting(0.999, number(0, 1), "gamma, from then on."),
        },
    ),
    (
        "distillation",
        {
            "label_weight": Setting(
                0.5, number(0, 1), "lambda, of the given label beside the teacher's."
            ),
        },
    ),
    (
        "meta_gradient",
        {
            "estimator": Setting(
                "exact",
                one_of(*ESTIMATORS),
                "docs/meta_gradients.md says what they are and when to take which; approximate is "
                "the paper's recursion.",
            ),
            "backward": Setting(
                "forward_over_reverse",
                one_of(*BACKWARDS),
                "exact, truncated: what the backward pass keeps of every inner step: store "
                "(everything), remat (the state), forward_over_reverse (the params), two_level "
                "(every sqrt(k)-th state).",
            ),
            "num_inner_steps": Setting(
                1, whole(1), "k, inner steps of a window: those that a meta-gradient goes through."
            ),
            "update_every": Setting(
                0,
                whole(0),
                "s, inner steps between updates of the meta model; must divide k. 0 is k, as "
                "published. With less, windows overlap and are replayed: "
                + ", ".join(OVERLAPPING)
                + " only. approximate then goes on from update to update, and k has no effect. "
                "Methods without a meta model ignore it.",
            ),
            "truncation": Setting(2, whole(1), "truncated: how many of the k steps it goes back."),
            "solver_steps": Setting(
                10, whole(1), "neumann: terms; conjugate_gradient: iterations."
            ),
            "damping": Setting(
                1.0, number(0), "conjugate_gradient: added to the Hessian's diagonal."
            ),
            "diagnose_every": Setting(
                0,
                whole(0),
                "Log the meta-gradient's cosine with exact's and its norm over exact's every N "
                "inner steps; 0 disables.",
            ),
            "mix_clean": Setting(
                True,
                flag(),
                "Half of each clean batch joins the inner loss, the other half is the outer loss. "
                "Without it the whole clean batch is the outer loss.",
            ),
            "unroll": Setting(
                0,
                whole(0),
                "Inner steps that one turn of the compiled loop holds. 0 chooses: k for "
                "convolutions on CPU, where XLA runs their gradients in a loop body on a slow "
                "path; 1 otherwise.",
            ),
        },
    ),
    ("main_optimizer", _optimizer("sgd", 0.1, 0.9, 5e-4, "step")),
    (
        "meta_optimizer",
        {
            **_optimizer("amsgrad", 3e-4, 0.9, 0.0, "constant"),
            "normalize": Setting(
                False,
                flag(),
                "Divide the meta-gradient by its norm: it fades as the classifier fits its clean "
                "labels, and Adam still divides by the size of long ago. Not with clip_norm.",
            ),
        },
    ),
    (
        "",
        {
            "num_epochs": Setting(120, _SIZE, f"Passes over the noisy set. {_BY_SIZE}"),
            "num_steps": Setting(
                0, whole(0), "Inner steps, in place of num_epochs; 0 goes by num_epochs."
            ),
            "first_phase_epochs": Setting(
                0,
                whole(0),
                "Of the first phase, for methods that train twice (glc, forward, joint, "
                "distillation); 0 is as many as the second's.",
            ),
            "noisy_batch_size": Setting(
                100, _SIZE, f"Over all devices; fewer if there are fewer. {_BY_SIZE}"
            ),
            "clean_batch_size": Setting(
                100, _SIZE, f"Over all devices; fewer if there are fewer. {_BY_SIZE}"
            ),
            "eval_batch_size": Setting(1000, whole(1), "Over all devices."),
            "eval_every_epochs": Setting(1, whole(1), "Epochs between evaluations."),
            "log_every_steps": Setting(50, whole(1), "Inner steps between rows of metrics."),
            "checkpoint_every_steps": Setting(1000, whole(1), "Inner steps between checkpoints."),
            "checkpoint_every_minutes": Setting(10.0, positive(), "Whichever comes first."),
            "checkpoints_to_keep": Setting(2, whole(1), "The newest ones."),
            "max_exported_labels": Setting(
                0,
                whole(0),
                "Noisy examples whose corrected labels are written at the end, the first ones; 0 "
                "is all.",
            ),
        },
    ),
)
SETTINGS: dict[str, Setting] = {
    f"{section}.{name}".removeprefix("."): setting
    for section, settings in _SECTIONS
    for name, setting in settings.items()
}


def get_config() -> ConfigDict:
    """The default config; fields are locked, so a misspelt one is an error."""
    config = ConfigDict()
    for field, setting in SETTINGS.items():
        *sections, name = field.split(".")
        place = config
        for section in sections:
            if section not in place:
                place[section] = ConfigDict()
            place = place[section]
        default = setting.default
        place[name] = config_dict.placeholder(setting.kind) if default is None else default
    config.lock()
    return config


def formerly() -> dict[str, Any]:
    """What a workdir that lacks a setting was made with, by the setting's field."""
    return {
        field: setting.default if setting.formerly is None else setting.formerly
        for field, setting in SETTINGS.items()
    }


def complete(saved: ConfigDict) -> ConfigDict:
    """A config of today from one of an older workdir: what it lacks is what it was made with."""
    config = get_config()
    flat = formerly() | flatten(saved.to_dict())
    unknown = sorted(flat.keys() - SETTINGS.keys())
    if unknown:
        raise InputError(f"config.{unknown[0]}: there is no such setting")
    with config.ignore_type():
        for field, value in flat.items():
            *sections, name = field.split(".")
            place = config
            for section in sections:
                place = place[section]
            place[name] = value
    return config


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict to `{'a.b': value}`."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def validate(config: ConfigDict, *, num_devices: int | None = None) -> None:
    """Raises one InputError for all that is wrong.

    Each line names the field, what was given and what would be right. What only the data can tell
    (class sizes, label files) is checked when they are read.

    Args:
      config: see `get_config`.
      num_devices: that batches are spread over; None leaves that check out, and needs no JAX.
    """
    values = {field: _get(config, field) for field in SETTINGS}
    problems: dict[str, str] = {}
    for field, setting in SETTINGS.items():
        if not setting.check.ok(values[field]):
            problems[field] = setting.check.expected
    for field, ok, expected in _relations(values, num_devices):
        if not ok and field not in problems:
            problems[field] = expected
    if problems:
        raise InputError(
            "\n".join(
                f"config.{field}: got {values[field]!r}, expected {expected}"
                for field, expected in problems.items()
            )
        )


def _get(config: ConfigDict, field: str) -> Any:
    value = config
    for name in field.split("."):
        value = value[name]
    return value


def _relations(values: dict[str, Any], num_devices: int | None) -> Sequence[tuple[str, bool, str]]:
    """What several settings say together: (field, whether it is right, what would be)."""
    relations = [
        (
            "lcn.tie_embeddings",
            not values["lcn.tie_embeddings"]
            or values["lcn.hidden_size"] == values["lcn.embedding_size"],
            f"equal lcn.hidden_size ({values['lcn.hidden_size']}) and lcn.embedding_size "
            f"({values['lcn.embedding_size']}) to tie",
        ),
        (
            "meta_gradient.diagnose_every",
            values["meta_gradient.estimator"] != "exact"
            or values["meta_gradient.diagnose_every"] == 0,
            "0 with the estimator exact: the others are compared with it",
        ),
        (
            "dataset.standardize",
            not values["dataset.standardize"] or values["dataset.name"] not in CIFAR,
            "False for images: they are normalised by their published mean and deviation",
        ),
        (
            "meta_optimizer.normalize",
            not (values["meta_optimizer.normalize"] and values["meta_optimizer.clip_norm"]),
            f"False with meta_optimizer.clip_norm={values['meta_optimizer.clip_norm']}: a norm of "
            "one needs no clipping",
        ),
        (
            "model.resnet50.freeze_batch_norm",
            not values["model.resnet50.freeze_batch_norm"]
            or bool(values["model.resnet50.checkpoint"] or values["model.initial_params"]),
            "False without model.resnet50.checkpoint: there are no statistics to keep",
        ),
        *_overlap(values),
        *_inner_loss(values),
        *_own_data(values),
        *_texts(values),
        *_images(values),
    ]
    if num_devices is not None:
        relations += _batches(values, num_devices)
    return relations


def _overlap(values: dict[str, Any]) -> Sequence[tuple[str, bool, str]]:
    """Windows that begin before the one before has ended."""
    field = "meta_gradient.update_every"
    k, s = values["meta_gradient.num_inner_steps"], values[field]
    estimator = values["meta_gradient.estimator"]
    if not _is_whole(k) or not _is_whole(s) or k < 1 or s < 1 or s == k:
        return []
    return [
        (field, k % s == 0, f"0, or a divisor of meta_gradient.num_inner_steps, which is {k}"),
        (
            field,
            estimator in OVERLAPPING,
            f"0 with {estimator}, which sees the window's end alone; "
            f"{', '.join(OVERLAPPING)} go with less than num_inner_steps",
        ),
        (
            "meta_gradient.diagnose_every",
            estimator != "approximate" or values["meta_gradient.diagnose_every"] == 0,
            "0 with approximate and update_every below num_inner_steps: it has no window",
        ),
    ]


def _inner_loss(values: dict[str, Any]) -> Sequence[tuple[str, bool, str]]:
    method = values["method"]
    fields = [field for field in SETTINGS if field.startswith("inner_loss.")]
    methods = ", ".join(INNER_LOSS_METHODS)
    return [
        (
            field,
            method in INNER_LOSS_METHODS or values[field] is None,
            f"None with {method}, whose labels would lose their meaning; it is for {methods}",
        )
        for field in fields
    ]


def _own_data(values: dict[str, Any]) -> Sequence[tuple[str, bool, str]]:
    """Which files go together, and what cannot be asked of labels whose truth is not known."""
    names = ("data", "noisy", "clean", "test", "checked")
    data, noisy, clean, *_ = (values[f"dataset.{name}"] for name in names)
    if values["dataset.name"] not in OWN_FILES:
        expected = "None with a dataset that has its own files"
        return [
            *((f"dataset.{x}", not values[f"dataset.{x}"], expected) for x in names),
            *((field, values[field] != 0, whole(1).expected) for field in SIZED),
        ]
    files = "dataset.data=FILE, or both dataset.noisy=FILE and dataset.clean=FILE"
    return [
        ("dataset.data", bool(data or noisy or clean), files),
        ("dataset.noisy", not (data and noisy), f"None beside dataset.data: either {files}"),
        ("dataset.clean", not (data and clean), f"None beside dataset.data: either {files}"),
        ("dataset.noisy", bool(noisy) or not clean, f"a file beside dataset.clean: {files}"),
        (
            "dataset.checked",
            bool(data) or not values["dataset.checked"],
            "None without dataset.data: rows of the noisy file that were checked go into the clean "
            "file",
        ),
        ("dataset.clean", bool(clean) or not noisy, f"a file beside dataset.noisy: {files}"),
        (
            "noise.type",
            not noisy or values["noise.type"] == "none",
            "none with dataset.noisy: its labels are taken as they are",
        ),
        (
            "noise.type",
            values["noise.type"] != "human",
            "another: the given labels are in their own file",
        ),
    ]


def _texts(values: dict[str, Any]) -> Sequence[tuple[str, bool, str]]:
    """What texts need, and what is for them alone."""
    name, directory = values["dataset.name"], values["dataset.data_dir"]
    builder, is_benchmark = values["dataset.tfds_name"], name in TEXT_BENCHMARKS
    is_text, is_bert = is_benchmark or name == "text", values["model.name"] == "bert"
    frozen = values["model.bert.num_frozen_layers"] == -1
    mixes = values["method"] in ("robust_mlc", "self_training")
    mixup = values["inner_loss.mixup"]
    return [
        (
            "dataset.tfds_name",
            not builder or name == "ag_news",
            "None: TensorFlow Datasets has ag_news alone of these",
        ),
        (
            "dataset.data_dir",
            bool(directory or builder) or not is_benchmark,
            "a directory with the published train.csv and test.csv",
        ),
        ("model.name", is_bert == is_text, "bert for texts, and another for anything else"),
        (
            "model.bert.checkpoint",
            bool(values["model.bert.checkpoint"]) or not is_bert,
            "a directory with config.json, model.safetensors and tokenizer.json, or a name on the "
            "Hugging Face hub",
        ),
        (
            "inner_loss.mixup",
            not is_text or frozen or mixup == 0 or (mixup is None and not mixes),
            "0 with tokens, which cannot be mixed; with model.bert.num_frozen_layers=-1 features "
            "are",
        ),
        (
            "dataset.features",
            name == "table" or not values["dataset.features"],
            "None: only a table has columns to choose from",
        ),
        (
            "dataset.standardize",
            not is_text or not values["dataset.standardize"],
            "False for texts: their inputs are the numbers of tokens",
        ),
        (
            "noise.type",
            not is_text or frozen or values["noise.type"] != "instance",
            "another: tokens are no vector of features; those of a frozen encoder are "
            "(model.bert.num_frozen_layers=-1)",
        ),
    ]


def _images(values: dict[str, Any]) -> Sequence[tuple[str, bool, str]]:
    """What pictures in files need, and what is not for them."""
    size, resized = values["dataset.image_size"], values["dataset.resize_size"]
    return [
        (
            "dataset.resize_size",
            not _is_whole(size) or not _is_whole(resized) or resized >= size,
            f"at least dataset.image_size, {size}",
        ),
        (
            "dataset.data_dir",
            values["dataset.name"] != "clothing1m" or bool(values["dataset.data_dir"]),
            "a directory with images/, key lists and labels, or a packed one",
        ),
        (
            "noise.type",
            values["dataset.name"] != "clothing1m" or values["noise.type"] == "none",
            "none with clothing1m: its labels are taken as they are",
        ),
        (
            "dataset.standardize",
            values["dataset.name"] not in IMAGE_FILES or not values["dataset.standardize"],
            "False for images: they are normalised by ImageNet's mean and deviation",
        ),
    ]


def _batches(values: dict[str, Any], num_devices: int) -> Sequence[tuple[str, bool, str]]:
    """Every device must get equally many rows of each part of a batch."""
    relations = []
    for field, parts in (
        ("noisy_batch_size", 1),
        ("clean_batch_size", 2 if values["meta_gradient.mix_clean"] else 1),
    ):
        per, size = parts * num_devices, values[field]
        halves = "two halves, " if parts == 2 else ""
        relations.append((
            field,
            _is_whole(size) and size % per == 0,
            f"a positive multiple of {per} ({halves}{num_devices} devices)",
        ))  # fmt: skip
    return relations


def describe() -> str:
    """All settings with default and meaning, as text."""
    lines = []
    for field, setting in SETTINGS.items():
        lines += [f"{field} = {setting.default!r}", f"    {setting.meaning}"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe())
