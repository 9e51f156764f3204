"""Settings of methods, optimizers and the training loop."""

from mlc_jax.config.checks import (
    GROUPS,
    MILESTONES,
    POWER,
    SEED,
    SIZE,
    STEPS,
    WIDTHS,
    Setting,
    flag,
    number,
    one_of,
    positive,
    preset,
    whole,
)
from mlc_jax.config.choices import (
    BACKWARDS,
    BY_SIZE,
    ESTIMATORS,
    METHODS,
    OPTIMIZERS,
    OVERLAPPING,
    PRIORS,
    SCHEDULES,
)


def _optimizer(
    name: str, learning_rate: float, momentum: float, weight_decay: float, schedule: str
) -> dict[str, Setting]:
    return {
        "name": Setting(name, one_of(*OPTIMIZERS), "sgd, adam, amsgrad, adamw."),
        "learning_rate": Setting(learning_rate, positive(), "At the start."),
        "momentum": Setting(momentum, number(0, 0.9999), "sgd."),
        "nesterov": Setting(False, flag(), "sgd."),
        "weight_decay": Setting(
            weight_decay,
            number(0),
            "On every parameter, as published: added to the gradient; adamw's is decoupled.",
        ),
        "clip_norm": Setting(0.0, number(0), "Largest norm of the gradient; 0 is any."),
        "schedule": Setting(
            schedule, one_of(*SCHEDULES), "constant, step, cosine or linear (both to zero)."
        ),
        "milestones": Setting((80, 100), MILESTONES, "step: epochs."),
        "decay_factor": Setting(0.1, positive(), "step: what the rate is multiplied by."),
        "warmup_epochs": Setting(0.0, number(0), "Epochs of linear rise from zero, first of all."),
        "groups": Setting(
            (),
            GROUPS,
            "Parameter groups: (pattern, learning-rate factor, weight decay); the first regular "
            "expression that is found in a parameter's path counts. Factor 0 freezes; weight "
            "decay None is the optimizer's own.",
        ),
    }


# By section; a section's fields stand together in the config.
SECTIONS: tuple[tuple[str, dict[str, Setting]], ...] = (
    (
        "",
        {
            "best": Setting(
                "last",
                one_of("last", "validation"),
                "Which state corrects, predicts and is compared: that of the last step, or of the "
                "best accuracy on the validation set.",
            ),
            "seed": Setting(
                0,
                SEED,
                "Initialisation, batch order and augmentation. Splits and noise have their own.",
            ),
            "method": Setting("mlc", one_of(*METHODS), f"How to train: {', '.join(METHODS)}."),
        },
    ),
    (
        "inner_loss",
        {
            "mixup": preset(
                float, number(0), "Parameter of MixUp's Beta distribution, noisy and clean; 0: off."
            ),
            "prior_weight": preset(
                float, number(0), "alpha, against all predictions becoming one class."
            ),
            "prior": preset(
                str,
                one_of(*PRIORS),
                "What they should be on average: uniform classes, or the mean of the targets.",
            ),
            "entropy_weight": preset(float, number(0), "beta, against undecided predictions."),
            "power": preset(
                float,
                POWER,
                "How late these three set in: their strength is the share to which the clean "
                "labels are fitted, to this power; 0 is at once.",
            ),
            "hand_over": preset(
                bool, flag(), "Labels as given first, the method's as the clean ones are fitted."
            ),
        },
    ),
    (
        "cross_fit",
        {
            "num_folds": Setting(
                5,
                whole(2, 20),
                "K, of the checked rows: each is predicted by classifiers that its check was "
                "hidden from.",
            ),
            "num_parts": Setting(
                2,
                whole(1, 10),
                "H, of all rows: each is predicted by classifiers that did not learn from it. K "
                "times H of them are trained as one program.",
            ),
            "num_rounds": Setting(
                5, whole(1, 100), "Of training; before each the labels are corrected anew."
            ),
            "steps_per_round": Setting(300, whole(1, 10**6), "Of each classifier."),
            "hidden_sizes": Setting(
                (), WIDTHS, "Of the classifiers' hidden layers; none is a linear one."
            ),
        },
    ),
    (
        "emlc",
        {
            "embedding_size": Setting(128, whole(1), "Of a given label, on its way to the gate."),
            "hidden_size": Setting(128, whole(1), "Of the gate."),
            "bce_weight": Setting(
                1.0,
                number(0),
                "Of the loss that teaches the gate to tell clean labels from wrong ones.",
            ),
        },
    ),
    (
        "forward",
        {
            "percentile": Setting(
                97.0,
                number(0.1, 100),
                "An anchor's probability of its class among all examples'. The authors' 97 for ten "
                "classes; 100, the largest, for a hundred.",
            ),
        },
    ),
    (
        "joint",
        {
            "prior_weight": Setting(1.2, number(0), "alpha; the authors' for UNIF, for FLIP 0.8."),
            "entropy_weight": Setting(0.8, number(0), "beta; the authors' for UNIF, for FLIP 0.4."),
            "update_from": Setting(
                0.35, number(0, 1), "Share of the first phase's epochs with labels as given."
            ),
            "num_averaged": Setting(10, whole(1), "Epochs whose predictions make a label."),
        },
    ),
    (
        "mlnt",
        {
            "num_synthetic": Setting(10, whole(1), "M, sets of synthetic labels per step."),
            "transferred_share": Setting(
                0.5, number(0, 1), "Of a batch's labels, made wrong in each set."
            ),
            "num_neighbours": Setting(10, whole(1), "Whose labels a synthetic one is drawn from."),
            "lookahead_rate": Setting(0.2, positive(), "alpha."),
            "consistency_weight": Setting(1.0, number(0), "Beside the cross-entropy."),
            "ramp_share": Setting(
                0.1, number(0, 1), "Of all steps, until the consistency has its full weight."
            ),
            "early_teacher_decay": Setting(0.99, number(0, 1), "gamma, until then."),
            "teacher_decay": Setting(0.999, number(0, 1), "gamma, from then on."),
        },
    ),
    (
        "distillation",
        {
            "label_weight": Setting(
                0.5, number(0, 1), "lambda, of the given label beside the teacher's."
            ),
        },
    ),
    (
        "meta_gradient",
        {
            "estimator": Setting(
                "exact",
                one_of(*ESTIMATORS),
                "docs/meta_gradients.md says what they are and when to take which; approximate is "
                "the paper's recursion.",
            ),
            "backward": Setting(
                "forward_over_reverse",
                one_of(*BACKWARDS),
                "exact, truncated: what the backward pass keeps of every inner step: store "
                "(everything), remat (the state), forward_over_reverse (the params), two_level "
                "(every sqrt(k)-th state).",
            ),
            "num_inner_steps": Setting(
                1, whole(1), "k, inner steps of a window: those that a meta-gradient goes through."
            ),
            "update_every": Setting(
                0,
                whole(0),
                "s, inner steps between updates of the meta model; must divide k. 0 is k, as "
                "published. With less, windows overlap and are replayed: "
                + ", ".join(OVERLAPPING)
                + " only. approximate then goes on from update to update, and k has no effect. "
                "Methods without a meta model ignore it.",
            ),
            "truncation": Setting(2, whole(1), "truncated: how many of the k steps it goes back."),
            "solver_steps": Setting(
                10, whole(1), "neumann: terms; conjugate_gradient: iterations."
            ),
            "damping": Setting(
                1.0, number(0), "conjugate_gradient: added to the Hessian's diagonal."
            ),
            "diagnose_every": Setting(
                0,
                whole(0),
                "Log the meta-gradient's cosine with exact's and its norm over exact's every N "
                "inner steps; 0 disables.",
            ),
            "mix_clean": Setting(
                True,
                flag(),
                "Half of each clean batch joins the inner loss, the other half is the outer loss. "
                "Without it the whole clean batch is the outer loss.",
            ),
            "unroll": Setting(
                0,
                whole(0),
                "Inner steps that one turn of the compiled loop holds. 0 chooses: k for "
                "convolutions on CPU, where XLA runs their gradients in a loop body on a slow "
                "path; 1 otherwise.",
            ),
        },
    ),
    ("main_optimizer", _optimizer("sgd", 0.1, 0.9, 5e-4, "step")),
    (
        "meta_optimizer",
        {
            **_optimizer("amsgrad", 3e-4, 0.9, 0.0, "constant"),
            "normalize": Setting(
                False,
                flag(),
                "Divide the meta-gradient by its norm: it fades as the classifier fits its clean "
                "labels, and Adam still divides by the size of long ago. Not with clip_norm.",
            ),
        },
    ),
    (
        "",
        {
            "num_epochs": Setting(120, SIZE, f"Passes over the noisy set. {BY_SIZE}"),
            "num_steps": Setting(
                0, whole(0), "Inner steps, in place of num_epochs; 0 goes by num_epochs."
            ),
            "first_phase_epochs": Setting(
                0,
                whole(0),
                "Of the first phase, for methods that train twice (glc, forward, joint, "
                "distillation); 0 is as many as the second's.",
            ),
            "noisy_batch_size": Setting(
                100, SIZE, f"Over all devices; fewer if there are fewer. {BY_SIZE}"
            ),
            "clean_batch_size": Setting(
                100, SIZE, f"Over all devices; fewer if there are fewer. {BY_SIZE}"
            ),
            "length_buckets": Setting(
                1,
                whole(1, 8),
                "Texts, if the encoder is trained: batches are of texts of like length, padded to "
                "one of so many lengths, noisy and clean ones each; for every pair of lengths a "
                "step is compiled. 1 pads all to dataset.max_length, and so do windows that "
                "overlap.",
            ),
            "eval_batch_size": Setting(1000, whole(1), "Over all devices."),
            "eval_every_epochs": Setting(1, whole(1), "Epochs between evaluations."),
            "log_every_steps": Setting(50, whole(1), "Inner steps between rows of metrics."),
            "checkpoint_every_steps": Setting(1000, whole(1), "Inner steps between checkpoints."),
            "max_hours": Setting(
                1.0,
                positive(),
                "Own pictures of which a whole network learns: how long that may take, by an "
                "estimate before the first step.",
            ),
            "checkpoint_every_minutes": Setting(10.0, positive(), "Whichever comes first."),
            "checkpoints_to_keep": Setting(2, whole(1), "The newest ones."),
            "profile": Setting(
                "",
                STEPS,
                "START:STOP: inner steps of which a trace for TensorBoard is written to the "
                "workdir's profile/, by the first process. With one inner step per update the "
                "metrics say FLOP/s from then on, as XLA counts them.",
            ),
            "max_exported_labels": Setting(
                0,
                whole(0),
                "Noisy examples whose corrected labels are written at the end, the first ones; 0 "
                "is all.",
            ),
        },
    ),
)
