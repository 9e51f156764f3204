"""Doubtful labels in, corrected ones out: a data frame, or as scikit-learn has it."""
