r"""Your own arrays in .npz files: labels to correct, and some that somebody checked.

    mlc-jax correct all.npz
    mlc-jax train --config=arrays --config.dataset.data=all.npz --workdir=DIR
    mlc-jax train --config=arrays --config.dataset.noisy=noisy.npz \
        --config.dataset.clean=clean.npz --workdir=DIR

Files have `inputs` [N, ...] and `labels` [N], numbers or names, optionally `ids` and `splits`
(`test` or `validation` for rows that only judge). In one file, `checked_labels` [N] is -1 (or an
empty name) where nobody looked. With two files, the clean file's labels are the true ones, and its
`given_labels`, if there, the old ones. A large array stays on disk: x.npy with inputs, and x.csv
next to it with the columns `label`, `checked_label`, `id`, `split`. With
--config.dataset.benchmark=True all labels of a file count as true, and dataset.clean_per_class and
noise.* apply. docs/your_own_labels.md says more.
"""

from ml_collections import ConfigDict, config_dict

from mlc_jax.config import get_config as defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.dataset.name = "arrays"
    config.dataset.clean_per_class = 5
    config.dataset.augment = False
    config.noise.type = "none"
    config.model.name = "mlp"
    config.main_optimizer.weight_decay = 0.0
    config.main_optimizer.schedule = "constant"
    config.meta_optimizer.name = "adam"
    config.meta_optimizer.learning_rate = 1e-3
    config.eval_every_epochs = 5
    config.cross_fit.hidden_sizes = config_dict.placeholder(tuple)  # Linear ones and others.
    return own(config)


def own(config: ConfigDict) -> ConfigDict:
    """Settings that all own files share."""
    config.method = "cross_fit"
    # By the sizes of the data; the log says what they are.
    config.lcn.hidden_size = 0
    config.lcn.embedding_size = 0
    config.num_epochs = 0
    config.noisy_batch_size = 0
    config.clean_batch_size = 0
    return config
