"""Forgetting people: requests, the one open batch of a dataset, retraining, rollout, purge and certificate.

`requests.py` takes requests in and fences, `running.py` carries a batch from step to step, `affected.py`, `purging.py`
and `scanning.py` find and remove what was made from a person, `certificate.py` proves the process.
Leaves to others: rewriting shards (mlops/datasets), the steps of a retrain (mlops/release), serving (mlops/deploy).
"""
