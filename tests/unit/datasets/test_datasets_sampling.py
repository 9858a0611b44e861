import numpy as np

from mlops.datasets.sampling import order_stratified, order_weighted

KEY = b"key"


def test_stratified_takes_each_row_once_and_spreads_labels():
    labels = np.array([0] * 900 + [1] * 100)
    order = order_stratified(KEY, "w", labels=labels, weights=np.ones(1000))
    assert sorted(order.tolist()) == list(range(1000))
    shares = [labels[order[start : start + 100]].sum() for start in range(0, 1000, 100)]
    assert set(shares) <= {9, 10, 11}
    assert order.tolist() != order_stratified(b"other", "w", labels=labels, weights=np.ones(1000)).tolist()


def test_weighted_draws_each_row_in_proportion():
    weights = np.array([0.0, 1.0, 2.0, 5.0] * 50)
    order = order_weighted(KEY, "w", labels=np.zeros(200), weights=weights)
    assert len(order) == 200
    counts = np.bincount(order, minlength=200)
    expected = weights * 200 / weights.sum()
    assert (np.abs(counts - expected) < 1).all()
    assert counts[weights == 0].sum() == 0
