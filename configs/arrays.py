"""Your own arrays in .npz files: labels to correct, and some that somebody checked.

    python -m mlc_jax.main --config=configs/arrays.py --config.dataset.data=all.npz --workdir=DIR
    python -m mlc_jax.main --config=configs/arrays.py --config.dataset.noisy=noisy.npz \
        --config.dataset.clean=clean.npz --workdir=DIR

Files have `inputs` [N, ...] and `labels` [N], numbers or names, and maybe `ids`. In one file,
`checked_labels` [N] is -1 (or an empty name) where nobody looked. In two, the clean file's labels
are the true ones, and its `given_labels`, if there, the old ones. A file without `checked_labels`
is a benchmark: all of its labels count as true, and dataset.clean_per_class and noise.* apply.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset.name = "arrays"
    config.dataset.clean_per_class = 5
    config.dataset.augment = False
    config.noise.type = "none"
    config.model.name = "mlp"
    config.main_optimizer.weight_decay = 0.0
    config.main_optimizer.schedule = "constant"
    config.lcn.hidden_size = 64
    config.lcn.embedding_size = 64
    config.meta_optimizer.name = "adam"
    config.meta_optimizer.learning_rate = 1e-3
    config.num_epochs = 60
    config.clean_batch_size = 50
    config.eval_every_epochs = 5
    return config
