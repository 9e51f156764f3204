"""Forty percent of the labels are wrong, fifty are checked: python examples/digits.py (15 s)."""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import mlc_jax as mlc

x, truth = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(truth))
x, truth = x[order] / 16, truth[order]
given = np.where(np.arange(len(truth)) % 5 < 2, (truth + 1) % 10, truth)  # Many a 3 is called 4.
checked = np.concatenate([np.flatnonzero(truth[:900] == digit)[:5] for digit in range(10)])
noisy, new = np.setdiff1d(np.arange(1400), checked), np.arange(1400, len(truth))

method = mlc.methods.mlc(
    model=mlc.models.MLP(10), lcn=mlc.models.LabelCorrectionNetwork(10, 64, 64),
    tx=mlc.sgd(0.1, momentum=0.9), meta_tx=mlc.adam(1e-3),
)  # fmt: skip
doubtful, sure = mlc.Examples(x[noisy], given[noisy]), mlc.Examples(x[checked], truth[checked])
result = mlc.fit(method, doubtful, sure, num_epochs=60)
print(f"labels right: {np.mean(given[noisy] == truth[noisy]):.1%} as given")
print(f"              {np.mean(result.labels == truth[noisy]):.1%} corrected")
print(f"new digits right: {np.mean(result.predict(x[new]) == truth[new]):.1%}")
right = given[noisy] == truth[noisy]
for name, rows in (("right labels", right), ("wrong labels", ~right)):
    plt.hist(result.label_quality[rows], bins=40, range=(0, 1), alpha=0.6, label=name)
plt.gca().set(xlabel="label_quality of the given label", ylabel="examples")
plt.legend()
plt.savefig("digits.png")
