"""Settings of the data and the noise."""

from mlc_jax.config.checks import (
    COLUMNS,
    MOST_ROWS,
    SEED,
    Setting,
    flag,
    number,
    one_of,
    optional,
    text,
    whole,
)
from mlc_jax.config.choices import (
    BAD_IMAGES,
    COLUMN_NAMES,
    DATASETS,
    DRAWN,
    IMAGE_CROPS,
    NOISE_TYPES,
    PICTURE_FEATURES,
)

# By section.
SECTIONS: tuple[tuple[str, dict[str, Setting]], ...] = (
    (
        "dataset",
        {
            "name": Setting("cifar10", one_of(*DATASETS), ", ".join(DATASETS) + "."),
            "data_dir": Setting(
                None,
                text(),
                "Directory of TensorFlow Datasets; None is its default, ~/tensorflow_datasets. "
                "Text benchmarks: directory with the published train.csv and test.csv. clothing1m: "
                "with images/, key lists and labels, or packed by mlc_jax.files.pack.",
            ),
            "download": Setting(False, flag(), "Let TensorFlow Datasets download missing data."),
            "tfds_name": Setting(
                None,
                text(),
                "ag_news: read a builder of TensorFlow Datasets, such as ag_news_subset, instead "
                "of the published files.",
            ),
            "data": Setting(
                None,
                text(),
                "One file. arrays: an .npz with inputs, labels and checked_labels, optionally ids "
                "and splits; or inputs in an .npy and the rest in a .csv of the same name. text: a "
                ".csv, .tsv, .jsonl or .parquet with columns text, label and checked_label, "
                "optionally id and split (test or validation for rows that only judge). "
                "image_folder: a directory with a sub-directory for each class, or such a table "
                "with path instead of text.",
            ),
            "benchmark": Setting(False, flag(), "With data: all of its labels are true."),
            "noisy": Setting(
                None,
                text(),
                "Instead of data, together with clean. arrays: .npz file of inputs and given "
                "labels. text: columns text and label.",
            ),
            "clean": Setting(
                None,
                text(),
                "arrays: .npz file of inputs and true labels; given_labels if known. text: columns "
                "text and label; given_label if known. image_folder: beside noisy or data.",
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
                "With data: FILE[,FILE...] with columns id and checked_label, such as the "
                "to_check.csv of the previous run, filled in.",
            ),
            "drawn": Setting(
                None,
                optional(one_of(*DRAWN)),
                "Own files: how checked rows without a column `drawn` were chosen: random (a "
                "random sample of all rows), per_class (a fixed number per class) or looked_up "
                "(for a reason). None guesses, and logs the guess.",
            ),
            "class_names": Setting(
                None,
                text(),
                "Own files: NAME[,NAME...] of all classes, in order. Any other label is then an "
                "error, and a class may be without a row. None: all labels in the files.",
            ),
            "columns": Setting(
                None,
                COLUMNS,
                "Own tables: NAME=COLUMN[,NAME=COLUMN...], the file's names of "
                f"{', '.join(COLUMN_NAMES)}, where they differ.",
            ),
            "label_columns": Setting(
                None,
                text(),
                "Own files: NAME[,NAME...] of several columns of labels, one for each annotator, "
                "rule or model; an empty field is no label. None is the column label or, without "
                "it, all columns label_*.",
            ),
            "votes": Setting(
                None,
                text(),
                "With data: FILE with columns id, source and label, one row for each label.",
            ),
            "features": Setting(
                None,
                text(),
                "table: NAME[,NAME...] of columns to use as features: numbers as they are, texts "
                "one-hot. None is every column of numbers, dates or few different texts; +NAME "
                "adds a column to these, -NAME drops one.",
            ),
            "tokenizer": Setting(
                None,
                text(),
                "Texts: a directory with a tokenizer.json, or a name on the Hugging Face hub. None "
                "is model.bert.checkpoint.",
            ),
            "max_length": Setting(
                128, whole(8, 2**15), "Texts: tokens per text; longer texts are cut off."
            ),
            "cache_dir": Setting(
                None,
                text(),
                "Directory of caches: the output of frozen encoders and layers, tokens of texts, "
                "and a list of pictures known to be good. None is ~/.cache/mlc_jax.",
            ),
            "max_cached_gb": Setting(
                4.0,
                number(0, 10**6),
                "Partly frozen encoder: the output of its frozen layers is computed once and "
                "cached, up to this size in 10^9 bytes; larger ones are computed in every step.",
            ),
            "standardize": Setting(
                None,
                optional(flag()),
                "arrays, table, digits: scale each feature to mean 0 and deviation 1 over the "
                "noisy set; constant features stay. None for own files: pixels (unsigned whole "
                "numbers) are divided by the largest, values in [0, 1] stay, the rest is "
                "standardised; for others: False. Pictures in files: None uses ImageNet's mean "
                "and deviation, False leaves pixels in [0, 1].",
                formerly=False,
                kind=bool,
            ),
            "clean_per_class": Setting(
                100, whole(1, MOST_ROWS), "Checked labels per class for training."
            ),
            "validation_per_class": Setting(
                0, whole(0, MOST_ROWS), "More checked labels per class, which select a checkpoint."
            ),
            "paired": Setting(
                False,
                flag(),
                "Benchmarks: clean rows get wrong labels, too, and keep both labels. In the paper "
                "they have the true ones only.",
            ),
            "num_noisy": Setting(
                0,
                whole(0, MOST_ROWS),
                "Benchmarks: number of noisy examples, drawn at random; 0 is all.",
            ),
            "imbalance": Setting(
                1.0,
                number(1, 10**6),
                "Benchmarks: noisy examples of the first class divided by those of the last; sizes "
                "in between fall by a constant factor. Clean and test set are not changed.",
            ),
            "split_seed": Setting(0, SEED, "Seed of the split into clean and noisy examples."),
            "encoder": Setting(
                None,
                text(),
                "Pictures in files: a frozen image model, whose features are computed once: a "
                "directory or a name on the Hugging Face hub of any that transformers loads (needs "
                "PyTorch: the extra `pictures`), or weights of a ResNet-50 (.safetensors, .pth).",
            ),
            "encoder_feature": Setting(
                None,
                optional(one_of(*PICTURE_FEATURES)),
                "Feature of a picture: image_features (CLIP, SigLIP), pooler, mean of the last "
                "layer, cls (its first token). None is the first of these that the encoder has.",
            ),
            "image_size": Setting(
                224, whole(8, 2**13), "Pictures in files: side of the model's input, in pixels."
            ),
            "resize_size": Setting(
                None,
                optional(whole(8, 2**14)),
                "Pictures in files: pixels of the shorter side, before the central square (or a "
                "plain random crop) is cut out. None is 8/7 of image_size.",
                kind=int,
            ),
            "random_crop": Setting(
                "resized",
                one_of(*IMAGE_CROPS),
                "Pictures in files, with augment: resized (8 to 100 % of the picture, stretched to "
                "a square) or plain (a square of image_size, from the picture at resize_size).",
            ),
            "bad_images": Setting(
                "refuse",
                one_of(*BAD_IMAGES),
                "Pictures in files that cannot be decoded: refuse, or leave_out and list them in "
                "left_out.csv. All are checked once before training.",
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
                "class), instance (depends on the example, Xia et al. 2020), human (labels from a "
                "file), none.",
            ),
            "level": Setting(
                0.4, number(0, 1), "Probability, in [0, 1]; ignored by human and none."
            ),
            "seed": Setting(
                0, SEED, "Seed of the partners of flip, and of which labels are wrong."
            ),
            "file": Setting(
                "", text(), "human: an .npz of labels indexed by the TFDS id, such as cifar10n.npz."
            ),
            "key": Setting("", text(), "human: which array of the file, such as worst."),
        },
    ),
)
