"""Settings of the classifier and of the label correction network."""

from mlc_jax.config.checks import (
    DEPTH,
    SIZE,
    WIDTHS,
    Check,
    Setting,
    flag,
    number,
    one_of,
    optional,
    preset,
    text,
    whole,
)
from mlc_jax.config.choices import (
    BERT_FEATURES,
    BY_SIZE,
    CLASSIFIERS,
    DTYPES,
    LCN_FORMS,
    RESNET50_DEPTHS,
)

# By section; a section's fields stand together in the config.
SECTIONS: tuple[tuple[str, dict[str, Setting]], ...] = (
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
            "depth": Setting(32, DEPTH, "6n + 2."),
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
                "the extra `pictures`), or timm's .safetensors of the same network. None starts at "
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
                WIDTHS,
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
            "hidden_size": Setting(128, SIZE, f"Paper 64 for images; its code 128. {BY_SIZE}"),
            "embedding_size": Setting(128, SIZE, f"Of the given label. {BY_SIZE}"),
            "skip_link": Setting(False, flag(), "Mix the given label back in by a learned weight."),
            "sparsemax": Setting(False, flag(), "In place of softmax."),
            "tie_embeddings": Setting(False, flag(), "Needs hidden_size == embedding_size."),
            "form": preset(
                str,
                one_of(*LCN_FORMS),
                "network (the paper's); posterior (Bayes' rule: the classifier's prediction and a "
                "learned matrix of wrong labels); both (their product). None is network, and for "
                "robust_mlc posterior where given labels of clean rows are known.",
            ),
            "pair_weight": preset(
                float,
                number(0),
                "gamma, of what the LCN learns from clean rows whose given label is known, too "
                "(dataset.paired). None is the method's own: mlc 0, robust_mlc 0.1.",
            ),
        },
    ),
    ("weight_net", {"hidden_size": Setting(100, whole(1), "meta_weight_net: width.")}),
)
