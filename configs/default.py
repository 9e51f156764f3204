"""Every setting, with its default. The other configs override this one.

    python -m mlc_jax.main --config=configs/default.py --workdir=DIR

The defaults are the paper's for CIFAR-10 where it publishes any; see configs/cifar10.py for the
command, the runtime and the accuracy.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The default config; fields are locked, so a misspelt one is an error."""
    config = ConfigDict()

    # Initialisation, batch order and augmentation. Splits and noise have seeds of their own.
    config.seed = 0
    # How to train: mlc, meta_weight_net, l2rw, glc, forward, joint, mlnt, distillation,
    # cross_entropy (on noisy and clean), clean_only, noisy_only.
    config.method = "mlc"

    config.dataset = ConfigDict()
    config.dataset.name = "cifar10"  # digits, cifar10, cifar100.
    # Directory of TensorFlow Datasets; None is its own default, ~/tensorflow_datasets.
    config.dataset.data_dir = config_dict.placeholder(str)
    config.dataset.download = False  # Let TensorFlow Datasets fetch what is missing.
    config.dataset.clean_per_class = 100  # Trusted labels to train with.
    config.dataset.validation_per_class = 0  # Further trusted labels, to select a model by.
    config.dataset.split_seed = 0
    config.dataset.augment = True  # Reflect-pad 4, random crop, horizontal flip.

    config.noise = ConfigDict()
    # uniform (UNIF), flip (FLIP, one fixed partner a class), flip_any (to any other class),
    # human (labels from a file).
    config.noise.type = "uniform"
    config.noise.level = 0.4  # In [0, 1]; not read by human.
    config.noise.seed = 0
    config.noise.file = ""  # human: an .npz of labels indexed by the TFDS id, such as cifar10n.npz.
    config.noise.key = ""  # human: which array of the file, such as worst.

    config.model = ConfigDict()
    config.model.name = "resnet"  # mlp, resnet.
    config.model.dtype = "float32"  # Of the computation: float32, bfloat16. Params are float32.
    config.model.resnet = ConfigDict()
    config.model.resnet.depth = 32  # 6n + 2.
    # Average batch statistics over devices: then the device count does not change the result.
    config.model.resnet.sync_batch_norm = True
    config.model.mlp = ConfigDict()
    config.model.mlp.hidden_sizes = (128, 64)
    config.model.mlp.dropout_rate = 0.0

    config.lcn = ConfigDict()  # The label correction network.
    config.lcn.hidden_size = 128  # Paper 64 for images; its code 128.
    config.lcn.embedding_size = 128
    config.lcn.skip_link = False  # Mix the given label back in with a learned weight.
    config.lcn.sparsemax = False  # In place of softmax.
    config.lcn.tie_embeddings = False  # Needs hidden_size == embedding_size.

    config.weight_net = ConfigDict()  # meta_weight_net.
    config.weight_net.hidden_size = 100

    config.forward = ConfigDict()
    # An anchor's probability of its class among all examples'. The authors' 97 for ten classes;
    # 100, the largest, for a hundred.
    config.forward.percentile = 97.0

    config.joint = ConfigDict()  # The authors' for UNIF; theirs for FLIP are 0.8 and 0.4.
    config.joint.prior_weight = 1.2  # alpha.
    config.joint.entropy_weight = 0.8  # beta.
    config.joint.update_from = 0.35  # Share of the first phase's epochs with labels as given.
    config.joint.num_averaged = 10  # Epochs whose predictions make a label.

    config.mlnt = ConfigDict()
    config.mlnt.num_synthetic = 10  # M, sets of synthetic labels a step.
    config.mlnt.transferred_share = 0.5  # Of a batch's labels, made wrong in each set.
    config.mlnt.num_neighbours = 10
    config.mlnt.lookahead_rate = 0.2  # alpha.
    config.mlnt.consistency_weight = 1.0
    config.mlnt.ramp_share = 0.1  # Of all steps, until the consistency has its full weight.
    config.mlnt.early_teacher_decay = 0.99  # gamma, until then.
    config.mlnt.teacher_decay = 0.999

    config.distillation = ConfigDict()
    config.distillation.label_weight = 0.5  # lambda, of the given label beside the teacher's.

    config.meta_gradient = ConfigDict()
    # exact, approximate (the paper's recursion), one_step, truncated, finite_difference, neumann,
    # conjugate_gradient: docs/meta_gradients.md says what they are and when to take which.
    config.meta_gradient.estimator = "exact"
    # exact, truncated: what the way back keeps of every inner step. store (everything), remat (the
    # state), forward_over_reverse (the params), two_level (every sqrt(k)-th state).
    config.meta_gradient.backward = "forward_over_reverse"
    config.meta_gradient.num_inner_steps = 1  # k.
    config.meta_gradient.truncation = 2  # truncated: how many of the k steps it goes back.
    config.meta_gradient.solver_steps = 10  # neumann: terms; conjugate_gradient: iterations.
    config.meta_gradient.damping = 1.0  # conjugate_gradient: added to the Hessian's diagonal.
    # Every so many inner steps, log the meta-gradient's cosine with and its norm over that of
    # exact. 0 is never.
    config.meta_gradient.diagnose_every = 0
    # Half of each clean batch joins the inner loss, the other half is the outer loss. Without it
    # the whole clean batch is the outer loss.
    config.meta_gradient.mix_clean = True
    # Inner steps that one turn of the compiled loop holds. 0 chooses: k for convolutions on CPU,
    # where XLA runs their gradients in a loop body on a slow path; 1 otherwise.
    config.meta_gradient.unroll = 0

    config.main_optimizer = ConfigDict()
    config.main_optimizer.name = "sgd"  # sgd, adam, amsgrad.
    config.main_optimizer.learning_rate = 0.1
    config.main_optimizer.momentum = 0.9  # sgd.
    config.main_optimizer.nesterov = False  # sgd.
    config.main_optimizer.weight_decay = 5e-4  # On every parameter, as published.
    config.main_optimizer.clip_norm = 0.0  # Largest norm of the gradient; 0 is any.
    config.main_optimizer.schedule = "step"  # constant, step, cosine (to zero).
    config.main_optimizer.milestones = (80, 100)  # step: epochs.
    config.main_optimizer.decay_factor = 0.1  # step.

    config.meta_optimizer = config.main_optimizer.copy_and_resolve_references()
    config.meta_optimizer.name = "amsgrad"
    config.meta_optimizer.learning_rate = 3e-4
    config.meta_optimizer.weight_decay = 0.0
    config.meta_optimizer.schedule = "constant"

    config.num_epochs = 120  # Passes over the noisy set.
    # Of the first phase, for methods that train twice (glc, forward, joint, distillation); 0 is as
    # many.
    config.first_phase_epochs = 0
    config.noisy_batch_size = 100  # Over all devices.
    config.clean_batch_size = 100  # Over all devices.

    config.eval_batch_size = 1000  # Over all devices.
    config.eval_every_epochs = 1
    config.log_every_steps = 50
    config.checkpoint_every_steps = 1000
    config.checkpoint_every_minutes = 10.0  # Whichever comes first.
    config.checkpoints_to_keep = 2

    config.lock()
    return config
