"""Checks of several settings together."""

import re
from collections.abc import Sequence
from typing import Any

from mlc_jax.config.checks import is_whole
from mlc_jax.config.choices import (
    CIFAR,
    IMAGE_FILES,
    INNER_LOSS_METHODS,
    LARGEST_OF_RESNET,
    OVERLAPPING,
    OWN_FILES,
    SIZED,
    TEXT_BENCHMARKS,
)


def relations(values: dict[str, Any], num_devices: int | None) -> Sequence[tuple[str, bool, str]]:
    """Checks of several settings together: (field, whether it is right, what would be right).

    Args:
      values: of all settings, by field.
      num_devices: see `validate`.
    """
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
        (
            "model.resnet50.freeze_batch_norm",
            not values["model.resnet50.freeze_batch_norm"]
            or (values["method"], values["model.name"]) != ("emlc", "resnet50"),
            "False with method=emlc, whose teacher has statistics of its own",
        ),
        (
            "method",
            values["method"] != "cross_fit" or _is_of_features(values),
            "another with a network that is trained whole: cross_fit trains many classifiers of "
            "features, of model.name=mlp, or of bert with model.bert.num_frozen_layers=-1",
        ),
        (
            "num_steps",
            values["method"] != "cross_fit" or values["num_steps"] == 0,
            "0 with cross_fit: cross_fit.num_rounds and cross_fit.steps_per_round say how long it "
            "trains",
        ),
        (
            "best",
            values["method"] != "cross_fit" or values["best"] == "last",
            "last with cross_fit",
        ),
        *_groups(values),
        *_overlap(values),
        *_inner_loss(values),
        *_own_data(values),
        *_texts(values),
        *_images(values),
    ]
    if num_devices is not None:
        relations += _batches(values, num_devices)
    return relations


def _is_of_features(values: dict[str, Any]) -> bool:
    frozen = values["model.bert.num_frozen_layers"] == -1
    return values["model.name"] == "mlp" or (values["model.name"] == "bert" and frozen)


def _groups(values: dict[str, Any]) -> Sequence[tuple[str, bool, str]]:
    """Problems of patterns of parameter groups that are no regular expressions."""
    problems = []
    for field in ("main_optimizer.groups", "meta_optimizer.groups"):
        groups = values[field] if isinstance(values[field], tuple | list) else ()
        for group in groups:
            pattern = group[0] if isinstance(group, tuple | list) and group else None
            try:
                re.compile(pattern if isinstance(pattern, str) else "")
            except re.error as error:
                problems.append(
                    (field, False, f"regular expressions: {pattern!r} is none ({error})")
                )
    return problems


def _overlap(values: dict[str, Any]) -> Sequence[tuple[str, bool, str]]:
    """Checks for overlapping windows, which are updated more often than every k steps."""
    field = "meta_gradient.update_every"
    k, s = values["meta_gradient.num_inner_steps"], values[field]
    estimator = values["meta_gradient.estimator"]
    if not is_whole(k) or not is_whole(s) or k < 1 or s < 1 or s == k:
        return []
    return [
        (field, k % s == 0, f"0, or a divisor of meta_gradient.num_inner_steps, which is {k}"),
        (
            field,
            estimator in OVERLAPPING,
            f"0 with {estimator}, which uses only the window's end; "
            f"{', '.join(OVERLAPPING)} allow less than num_inner_steps",
        ),
        (
            "meta_gradient.diagnose_every",
            estimator != "approximate" or values["meta_gradient.diagnose_every"] == 0,
            "0 with approximate and update_every below num_inner_steps: it has no window",
        ),
    ]


def _inner_loss(values: dict[str, Any]) -> Sequence[tuple[str, bool, str]]:
    method = values["method"]
    fields = [field for field in values if field.startswith("inner_loss.")]
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
    """Checks which files fit together, and settings that need known true labels."""
    names = ("data", "noisy", "clean", "test", "checked")
    data, noisy, clean, *_ = (values[f"dataset.{name}"] for name in names)
    if values["dataset.name"] not in OWN_FILES:
        expected = "None with a dataset that has its own files"
        return [
            *((f"dataset.{x}", not values[f"dataset.{x}"], expected) for x in names),
            *((field, values[field] != 0, "1 or more: 0 is for own files") for field in SIZED),
        ]
    beside = values["dataset.name"] == "image_folder"  # Checked pictures beside doubtful ones.
    files = "dataset.data=FILE, or both dataset.noisy=FILE and dataset.clean=FILE"
    return [
        ("dataset.data", bool(data or noisy or clean), files),
        ("dataset.noisy", not (data and noisy), f"None beside dataset.data: either {files}"),
        (
            "dataset.clean",
            not (data and clean) or (beside and not values["dataset.benchmark"]),
            f"None beside dataset.data: either {files}",
        ),
        (
            "dataset.noisy",
            bool(noisy or (data and beside)) or not clean,
            f"a file beside dataset.clean: {files}",
        ),
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
    """Checks the settings that texts need, and those that only texts may have."""
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
            "model.name",
            name != "table" or values["model.name"] == "mlp",
            "mlp with a table, whose rows are no pictures",
        ),
        (
            "model.bert.checkpoint",
            bool(values["model.bert.checkpoint"]) or not is_bert,
            "a pretrained encoder of texts: a name on the Hugging Face hub, such as "
            "sentence-transformers/all-MiniLM-L6-v2 (90 MB, downloaded once), or a directory with "
            "config.json, model.safetensors and tokenizer.json",
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
    """Checks the settings that picture files need, and those that they must not have."""
    size, resized = values["dataset.image_size"], values["dataset.resize_size"]
    encoder, is_own = values["dataset.encoder"], values["dataset.name"] == "image_folder"
    of_features = is_own and values["model.name"] == "mlp"
    return [
        (
            "dataset.encoder",
            not encoder or of_features,
            "None but for image_folder with model.name=mlp, which is trained on its features",
        ),
        (
            "dataset.encoder",
            bool(encoder) or not is_own or values["method"] != "cross_fit",
            "a directory or a name on the Hugging Face hub, such as facebook/dinov2-small, or "
            "weights of a ResNet-50; or --config=image_folder:finetuned, which trains a whole "
            "network",
        ),
        (
            "dataset.encoder_feature",
            not values["dataset.encoder_feature"] or bool(encoder),
            "None without dataset.encoder",
        ),
        (
            "dataset.image_size",
            values["dataset.name"] not in IMAGE_FILES
            or values["model.name"] != "resnet"
            or not is_whole(size)
            or size <= LARGEST_OF_RESNET,
            f"at most {LARGEST_OF_RESNET} with model.name=resnet, a network for pictures of 32 "
            "pixels; one for larger ones is resnet50",
        ),
        (
            "dataset.resize_size",
            not is_whole(size) or not is_whole(resized) or resized >= size,
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
            "None for pictures, ImageNet's mean and deviation, or False, pixels in [0, 1]",
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
            is_whole(size) and size % per == 0,
            f"a positive multiple of {per} ({halves}{num_devices} devices)",
        ))  # fmt: skip
    return relations
