"""scikit-learn's digits (1,797 real 8x8 images inside the package): the demo.

    python -m mlc_jax.main --config=configs/digits.py --workdir=DIR

FLIP 0.4 with five clean labels a class. RUNTIME_PLACEHOLDER
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset.name = "digits"
    config.dataset.clean_per_class = 5
    config.dataset.augment = False
    config.noise.type = "flip"
    config.model.name = "mlp"
    config.main_optimizer.weight_decay = 0.0
    config.main_optimizer.schedule = "constant"
    # A wider LCN, the paper's rate of 3e-4 or AMSGrad all learn too slowly for a run of 780 steps:
    # docs/results/digits.md.
    config.lcn.hidden_size = 64
    config.lcn.embedding_size = 64
    config.meta_optimizer.name = "adam"
    config.meta_optimizer.learning_rate = 1e-3
    config.num_epochs = 60
    config.clean_batch_size = 50
    config.eval_every_epochs = 5
    return config
