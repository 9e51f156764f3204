"""Settings of the classifier and of the label correction network."""

from mlc_jax.config.checks import (
    DEPTH,
    LARGEST,
    MOST_UNITS,
    WIDTHS,
    Check,
    Setting,
    flag,
    number,
    one_of,
    optional,
    preset,
    size,
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

# By section.
SECTIONS: tuple[tuple[str, dict[str, Setting]], ...] = (
    (
        "model",
        {
            "name": Setting(
                "resnet",
                one_of(*CLASSIFIERS),
                "mlp, resnet (CIFAR's), resnet50 (bottleneck, for pictures), bert (texts).",
            ),
            "dtype": Setting(
                "float32", one_of(*DTYPES), "Type of computation; params are float32."
            ),
            "initial_params": Setting(
                None,
                text(),
                "A .safetensors file of initial parameters, by path; missing ones are random.",
            ),
        },
    ),
    (
        "model.resnet",
        {
            "depth": Setting(32, DEPTH, "Number of layers, 6n + 2."),
            "sync_batch_norm": Setting(
                True,
                flag(),
                "Average batch statistics over devices, so that their number does not change the "
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
                "Number of layers: 26, 50 or 101.",
                kind=int,
            ),
            "width": Setting(
                64,
                whole(1, 2**12),
                "Channels of the first stage; 64 as published, less for small pictures.",
            ),
            "checkpoint": Setting(
                None,
                text(),
                "Pretrained weights of all but the last layer: torchvision's .pth (needs PyTorch: "
                "the extra `pictures`), or timm's .safetensors of the same network. None starts at "
                "random.",
            ),
            "freeze_batch_norm": Setting(
                False, flag(), "Normalise by the checkpoint's statistics in training, too."
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
                "Widths of hidden layers, also of bert's head; the last one gives the features.",
            ),
            "dropout_rate": Setting(0.0, number(0, 0.99), "Dropout of hidden activations."),
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
                "Features of a text: mean of the last layer's tokens, cls (the first token), or "
                "pooler.",
            ),
            "num_frozen_layers": Setting(
                0,
                whole(-1, 1000),
                "N: the embeddings and the first N layers are not trained. -1: nor is any other "
                "layer; features are computed once, and model.mlp is trained on them.",
            ),
            "dropout_rate": Setting(
                None,
                optional(number(0, 0.99)),
                "Dropout of the encoder in training, attention included; None is the checkpoint's.",
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
            "hidden_size": Setting(
                128, size(MOST_UNITS), f"Width. The paper: 64 for images; its code: 128. {BY_SIZE}"
            ),
            "embedding_size": Setting(
                128, size(MOST_UNITS), f"Size of the given label's embedding. {BY_SIZE}"
            ),
            "skip_link": Setting(False, flag(), "Mix in the given label, by a learned weight."),
            "sparsemax": Setting(False, flag(), "Use sparsemax instead of softmax."),
            "tie_embeddings": Setting(
                False, flag(), "Share label embeddings; hidden_size must equal embedding_size."
            ),
            "form": preset(
                str,
                one_of(*LCN_FORMS),
                "network (the paper's); posterior (Bayes' rule: the classifier's prediction and a "
                "learned matrix of wrong labels); both (their product). None is network, and for "
                "robust_mlc posterior if given labels of clean rows are known.",
            ),
            "pair_weight": preset(
                float,
                number(0, LARGEST),
                "gamma, weight of the loss on clean rows whose given label is known "
                "(dataset.paired). None is the method's own: mlc 0, robust_mlc 0.1.",
            ),
        },
    ),
    ("weight_net", {"hidden_size": Setting(100, whole(1, MOST_UNITS), "meta_weight_net: width.")}),
)
