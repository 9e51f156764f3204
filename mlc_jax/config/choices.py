"""Names that settings may have as values."""

# The registries in `mlc_jax.methods`, `core` and so on have the same names; a test compares them.
METHODS = (
    "cross_entropy", "clean_only", "noisy_only", "forward", "joint", "mlnt", "distillation",
    "l2rw", "meta_weight_net", "glc", "mlc", "self_training", "robust_mlc", "emlc", "cross_fit",
)  # fmt: skip

# Methods whose inner loss has settings. In all others they would change what labels mean.
INNER_LOSS_METHODS = (
    "cross_entropy", "clean_only", "meta_weight_net", "mlc", "self_training", "robust_mlc",
)  # fmt: skip
LCN_FORMS = ("network", "posterior", "both")
DRAWN = ("random", "per_class", "looked_up")
TAKEN = ("corrected", "classifier", "checked", "given")  # Predictions of cross_fit.
# Columns of own tables that are not features. `text` or `path` is the only input, if it is there.
COLUMN_NAMES = ("label", "checked_label", "text", "path", "id", "given_label", "split", "drawn")
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
PICTURE_FEATURES = ("image_features", "pooler", "mean", "cls")
BERT_FEATURES = ("mean", "cls", "pooler")
DTYPES = ("float32", "bfloat16")
CIFAR = ("cifar10", "cifar100")
TEXT_BENCHMARKS = ("ag_news", "yelp5", "amazon5", "yahoo")
OWN_FILES = ("arrays", "table", "text", "image_folder")  # Datasets that a user's files make.
DATASETS = ("digits", *CIFAR, "clothing1m", *TEXT_BENCHMARKS, *OWN_FILES)
# Pixels per side for resnet. A third of its layers see all pixels: 80 pictures of 224 need 25 GB.
LARGEST_OF_RESNET = 64
IMAGE_FILES = ("clothing1m", "image_folder")  # Datasets of pictures in files.
IMAGE_CROPS = ("resized", "plain")
BAD_IMAGES = ("refuse", "leave_out")
NOISE_TYPES = ("uniform", "flip", "flip_any", "instance", "human", "none")

# For these 0 means "by the sizes of the data", see `training.sizing`; only configs may use it.
SIZED = (
    "num_epochs", "noisy_batch_size", "clean_batch_size", "lcn.hidden_size", "lcn.embedding_size",
)  # fmt: skip
BY_SIZE = "Own files: 0 chooses by the sizes of the data."  # Its help text.
