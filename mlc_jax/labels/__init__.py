"""Doubtful labels in, corrected ones out: for data frames, and as an estimator of scikit-learn."""
