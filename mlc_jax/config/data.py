"""Settings of the data and of its noise."""

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
)

# By section; a section's fields stand together in the config.
SECTIONS: tuple[tuple[str, dict[str, Setting]], ...] = (
    (
        "dataset",
        {
            "name": Setting("cifar10", one_of(*DATASETS), ", ".join(DATASETS) + "."),
            "data_dir": Setting(
                None,
                text(),
                "Directory of TensorFlow Datasets; None is its own default, ~/tensorflow_datasets. "
                "Text benchmarks: of the published train.csv and test.csv. clothing1m: of images/, "
                "key lists and labels, or packed by mlc_jax.files.pack.",
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
                ".csv, .tsv, .jsonl or .parquet with columns text, label and checked_label, and "
                "maybe id and split (test or validation for rows that only judge). image_folder: a "
                "directory with a sub-directory for each class, or such a table with path in place "
                "of text.",
            ),
            "benchmark": Setting(False, flag(), "Beside data: all of its labels are true."),
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
            "drawn": Setting(
                None,
                optional(one_of(*DRAWN)),
                "Own files: how checked rows were chosen that have no column `drawn`: random (a "
                "random sample of all rows), per_class (so many of each class) or looked_up "
                "(because of something about them). None guesses, and says what.",
            ),
            "columns": Setting(
                None,
                COLUMNS,
                "Own tables: NAME=COLUMN[,NAME=COLUMN...], what the file calls "
                f"{', '.join(COLUMN_NAMES)}, where it has other names for them.",
            ),
            "label_columns": Setting(
                None,
                text(),
                "Own files: NAME[,NAME...] of columns of labels, one for each annotator, rule or "
                "model, where there are several; an empty field says nothing. None is the column "
                "label or, where there is none, all columns label_*.",
            ),
            "votes": Setting(
                None,
                text(),
                "Beside data: FILE with columns id, source and label, a row for each label that "
                "somebody gave.",
            ),
            "features": Setting(
                None,
                text(),
                "table: NAME[,NAME...] of columns that become features: numbers as they are, texts "
                "one-hot. None is every column of numbers, dates or few different texts; +NAME "
                "adds one to these, -NAME leaves one out.",
            ),
            "tokenizer": Setting(
                None,
                text(),
                "Texts: a directory with a tokenizer.json, or a name on the Hugging Face hub. None "
                "is model.bert.checkpoint.",
            ),
            "max_length": Setting(
                128, whole(8, 2**15), "Texts: tokens of an input; longer texts are cut off."
            ),
            "cache_dir": Setting(
                None,
                text(),
                "Texts: where tokens and what frozen layers make of them are kept. Pictures: which "
                "files are known to be good. None is ~/.cache/mlc_jax.",
            ),
            "max_cached_gb": Setting(
                4.0,
                number(0, 10**6),
                "Of an encoder that is frozen in part: what its frozen layers make of all texts is "
                "computed once and kept, if it takes no more, 10^9 bytes; else in each step.",
            ),
            "standardize": Setting(
                None,
                optional(flag()),
                "arrays, table, digits: each feature to mean 0 and deviation 1 over the noisy set; "
                "a constant one stays as it is. None, of own files: pixels (unsigned whole "
                "numbers) are divided by the largest, what lies in [0, 1] stays, the rest is "
                "standardised; of others: False. Pictures in files: None is by ImageNet's mean and "
                "deviation, False leaves pixels in [0, 1].",
                formerly=False,
                kind=bool,
            ),
            "clean_per_class": Setting(
                100, whole(1, MOST_ROWS), "Trusted labels per class, to train with."
            ),
            "validation_per_class": Setting(
                0, whole(0, MOST_ROWS), "Further trusted labels per class, to select a model by."
            ),
            "paired": Setting(
                False,
                flag(),
                "Benchmarks: the clean rows' labels are made wrong like the others', and both are "
                "kept. The paper knows the true ones alone.",
            ),
            "num_noisy": Setting(
                0,
                whole(0, MOST_ROWS),
                "Benchmarks: noisy examples, drawn at random; 0 is all that are left.",
            ),
            "imbalance": Setting(
                1.0,
                number(1, 10**6),
                "Benchmarks: how many times as many noisy examples the first class has as the "
                "last; those between fall evenly by a factor. Clean and test set stay as they are.",
            ),
            "split_seed": Setting(0, SEED, "Who is clean, and who noisy."),
            "image_size": Setting(
                224, whole(8, 2**13), "Pictures in files: pixels of the square that a model sees."
            ),
            "resize_size": Setting(
                None,
                optional(whole(8, 2**14)),
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
            "seed": Setting(0, SEED, "Of the partners of flip, and of which labels are wrong."),
            "file": Setting(
                "", text(), "human: an .npz of labels indexed by the TFDS id, such as cifar10n.npz."
            ),
            "key": Setting("", text(), "human: which array of the file, such as worst."),
        },
    ),
)
