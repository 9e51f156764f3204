"""Corrects the labels of data frames; also an estimator of scikit-learn."""
