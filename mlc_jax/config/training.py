"""Settings of methods, optimizers and the training loop."""

from mlc_jax.config.checks import (
    GROUPS,
    LARGEST,
    MILESTONES,
    MOST_EPOCHS,
    MOST_ROWS,
    MOST_STEPS,
    MOST_UNITS,
    POWER,
    SEED,
    STEPS,
    WIDTHS,
    Setting,
    flag,
    number,
    one_of,
    optional,
    positive,
    preset,
    size,
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
    TAKEN,
)


def _optimizer(
    name: str, learning_rate: float, momentum: float, weight_decay: float, schedule: str
) -> dict[str, Setting]:
    return {
        "name": Setting(name, one_of(*OPTIMIZERS), "sgd, adam, amsgrad, adamw."),
        "learning_rate": Setting(learning_rate, positive(10**6), "Learning rate at the start."),
        "momentum": Setting(momentum, number(0, 0.9999), "sgd: momentum."),
        "nesterov": Setting(False, flag(), "sgd: Nesterov's momentum."),
        "weight_decay": Setting(
            weight_decay,
            number(0, LARGEST),
            "On every parameter, as published: added to the gradient; adamw's is decoupled.",
        ),
        "clip_norm": Setting(
            0.0, number(0, 10**30), "Largest norm of the gradient; 0 is no limit."
        ),
        "schedule": Setting(
            schedule, one_of(*SCHEDULES), "constant, step, cosine or linear (both to zero)."
        ),
        "milestones": Setting((80, 100), MILESTONES, "step: epochs."),
        "decay_factor": Setting(
            0.1, positive(10**6), "step: factor of the rate at each milestone."
        ),
        "warmup_epochs": Setting(
            0.0, number(0, MOST_EPOCHS), "Epochs of linear warm-up from zero at the start."
        ),
        "groups": Setting(
            (),
            GROUPS,
            "Parameter groups: (pattern, learning-rate factor, weight decay). A parameter belongs "
            "to the first group whose regular expression is found in its path. Factor 0 freezes; "
            "weight decay None is the optimizer's own.",
        ),
    }


# By section.
SECTIONS: tuple[tuple[str, dict[str, Setting]], ...] = (
    (
        "",
        {
            "best": Setting(
                "last",
                one_of("last", "validation"),
                "Which state corrects and predicts: that of the last step, or that with the best "
                "accuracy on the validation set.",
            ),
            "seed": Setting(
                0,
                SEED,
                "Seed of initialisation, batches and augmentation, not of splits and noise.",
            ),
            "method": Setting("mlc", one_of(*METHODS), f"Training method: {', '.join(METHODS)}."),
        },
    ),
    (
        "inner_loss",
        {
            "mixup": preset(
                float,
                number(0, 10**6),
                "Parameter of MixUp's Beta distribution; noisy and clean; 0: off.",
            ),
            "prior_weight": preset(
                float, number(0, LARGEST), "alpha, against all predictions becoming one class."
            ),
            "prior": preset(
                str,
                one_of(*PRIORS),
                "Their target on average: uniform classes, or the mean of the targets.",
            ),
            "entropy_weight": preset(
                float, number(0, LARGEST), "beta, against undecided predictions."
            ),
            "power": preset(
                float,
                POWER,
                "How late these three set in: their strength is f to this power, where f says how "
                "well the clean labels are fitted; 0 is from the start.",
            ),
            "hand_over": preset(
                bool, flag(), "First the given labels; the method's as the clean ones are fitted."
            ),
        },
    ),
    (
        "cross_fit",
        {
            "num_folds": Setting(
                5,
                whole(2, 20),
                "K, folds of the checked rows: each row is predicted by classifiers that do not "
                "see its check.",
            ),
            "num_parts": Setting(
                2,
                whole(1, 10),
                "H, parts of all rows: each row is predicted by classifiers that did not train on "
                "it. K times H classifiers are trained as one program.",
            ),
            "num_rounds": Setting(
                5, whole(1, 100), "Training rounds; labels are corrected before each."
            ),
            "steps_per_round": Setting(300, whole(1, 10**6), "Steps of each classifier."),
            "hidden_sizes": Setting(
                (),
                optional(WIDTHS),
                "Widths of the classifiers' hidden layers; () is linear. None, as for own tables, "
                "trains both () and (64,), and combines them by the likelihood of checks.",
            ),
            "take": Setting(
                "corrected",
                one_of(*TAKEN),
                "What corrected_label is: corrected (given labels and classifiers together), "
                "classifier (without the given label), checked or given (a classifier of the "
                "checked rows alone, or of the labels as given). The verdict compares them.",
            ),
        },
    ),
    (
        "emlc",
        {
            "embedding_size": Setting(
                128, whole(1, MOST_UNITS), "Size of the given label's embedding in the gate."
            ),
            "hidden_size": Setting(128, whole(1, MOST_UNITS), "Width of the gate."),
            "bce_weight": Setting(
                1.0,
                number(0, LARGEST),
                "Weight of the loss that teaches the gate to tell right labels from wrong ones.",
            ),
        },
    ),
    (
        "forward",
        {
            "percentile": Setting(
                97.0,
                number(0.1, 100),
                "Percentile of a class's probability that defines its anchor. The authors' 97 for "
                "ten classes; 100, the largest, for a hundred.",
            ),
        },
    ),
    (
        "joint",
        {
            "prior_weight": Setting(
                1.2, number(0, LARGEST), "alpha; the authors' value for UNIF; for FLIP 0.8."
            ),
            "entropy_weight": Setting(
                0.8, number(0, LARGEST), "beta; the authors' value for UNIF; for FLIP 0.4."
            ),
            "update_from": Setting(
                0.35, number(0, 1), "Share of the first phase's epochs that use the given labels."
            ),
            "num_averaged": Setting(
                10, whole(1, 1000), "Epochs whose predictions are averaged to a label."
            ),
        },
    ),
    (
        "mlnt",
        {
            "num_synthetic": Setting(10, whole(1, 1000), "M, sets of synthetic labels per step."),
            "transferred_share": Setting(
                0.5, number(0, 1), "Share of a batch's labels that each set makes wrong."
            ),
            "num_neighbours": Setting(
                10, whole(1, MOST_ROWS), "Neighbours whose labels a synthetic label is drawn from."
            ),
            "lookahead_rate": Setting(0.2, positive(10**6), "alpha, rate of the look-ahead step."),
            "consistency_weight": Setting(
                1.0, number(0, LARGEST), "Weight of the consistency loss."
            ),
            "ramp_share": Setting(
                0.1,
                number(0, 1),
                "Share of all steps until the consistency loss has its full weight.",
            ),
            "early_teacher_decay": Setting(
                0.99, number(0, 1), "gamma, decay of the teacher until then."
            ),
            "teacher_decay": Setting(
                0.999, number(0, 1), "gamma, decay of the teacher from then on."
            ),
        },
    ),
    (
        "distillation",
        {
            "label_weight": Setting(
                0.5, number(0, 1), "lambda, weight of the given label; the rest is the teacher's."
            ),
        },
    ),
    (
        "meta_gradient",
        {
            "estimator": Setting(
                "exact",
                one_of(*ESTIMATORS),
                "How the meta-gradient is computed; docs/meta_gradients.md compares them. "
                "approximate is the paper's recursion.",
            ),
            "backward": Setting(
                "forward_over_reverse",
                one_of(*BACKWARDS),
                "exact, truncated: what the backward pass keeps of every inner step: store "
                "(everything), remat (the state), forward_over_reverse (the params), two_level "
                "(every sqrt(k)-th state).",
            ),
            "num_inner_steps": Setting(
                1,
                whole(1, 10**6),
                "k, inner steps of a window: those that a meta-gradient goes through.",
            ),
            "update_every": Setting(
                0,
                whole(0, 10**6),
                "s, inner steps between updates of the meta model; must divide k. 0 is k, as "
                "published. With less, windows overlap and are replayed: "
                + ", ".join(OVERLAPPING)
                + " only. approximate then accumulates over all updates, and k has no effect. "
                "Methods without a meta model ignore it.",
            ),
            "truncation": Setting(
                2, whole(1, 10**6), "truncated: how many of the k steps it goes back."
            ),
            "solver_steps": Setting(
                10, whole(1, 10**6), "neumann: terms; conjugate_gradient: iterations."
            ),
            "damping": Setting(
                1.0, number(0, LARGEST), "conjugate_gradient: added to the Hessian's diagonal."
            ),
            "diagnose_every": Setting(
                0,
                whole(0, MOST_STEPS),
                "Log the meta-gradient's cosine with the exact one and the ratio of norms every N "
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
                whole(0, 1000),
                "Inner steps per turn of the compiled loop. 0 chooses: k for convolutions on CPU, "
                "whose gradients are slow inside a loop; 1 otherwise.",
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
                "Divide the meta-gradient by its norm. It fades as the classifier fits its clean "
                "labels, while Adam still divides by earlier, larger norms. Not with clip_norm.",
            ),
        },
    ),
    (
        "",
        {
            "num_epochs": Setting(120, size(MOST_EPOCHS), f"Passes over the noisy set. {BY_SIZE}"),
            "num_steps": Setting(
                0, whole(0, MOST_STEPS), "Inner steps, instead of num_epochs; 0 uses num_epochs."
            ),
            "first_phase_epochs": Setting(
                0,
                whole(0, MOST_EPOCHS),
                "Epochs of the first phase, for methods that train twice (glc, forward, joint, "
                "distillation); 0 is as many as in the second.",
            ),
            "noisy_batch_size": Setting(
                100, size(MOST_ROWS), f"Noisy examples per step, over all devices. {BY_SIZE}"
            ),
            "clean_batch_size": Setting(
                100, size(MOST_ROWS), f"Clean examples per step, over all devices. {BY_SIZE}"
            ),
            "length_buckets": Setting(
                1,
                whole(1, 8),
                "Texts, if the encoder is trained: batches have texts of similar length, padded to "
                "one of this many lengths. For every pair of noisy and clean lengths a step is "
                "compiled. 1 pads all to dataset.max_length; so do overlapping windows.",
            ),
            "eval_batch_size": Setting(
                1000, whole(1, 10**6), "Examples at once, over all devices."
            ),
            "eval_every_epochs": Setting(1, whole(1, MOST_EPOCHS), "Epochs between evaluations."),
            "log_every_steps": Setting(
                50, whole(1, MOST_STEPS), "Inner steps between rows of metrics."
            ),
            "checkpoint_every_steps": Setting(
                1000, whole(1, MOST_STEPS), "Inner steps between checkpoints."
            ),
            "checkpoint_every_minutes": Setting(
                10.0, positive(LARGEST), "Or minutes, whichever comes first."
            ),
            "checkpoints_to_keep": Setting(
                2, whole(1, MOST_STEPS), "Number of newest checkpoints to keep."
            ),
            "max_hours": Setting(
                1.0,
                positive(LARGEST),
                "Training a whole network on own pictures: longest time allowed, by an estimate "
                "before the first step.",
            ),
            "profile": Setting(
                "",
                STEPS,
                "START:STOP: inner steps to trace for TensorBoard, into the workdir's profile/, by "
                "the first process. With one inner step per update the metrics then include "
                "FLOP/s, as XLA counts them.",
            ),
            "max_exported_labels": Setting(
                0,
                whole(0, MOST_ROWS),
                "Number of noisy examples whose corrected labels are written at the end; 0 is all.",
            ),
        },
    ),
)
