"""Serving images: built without a daemon, verified, probed as they will run, pushed; and the server inside them.

Leaves to others: which image runs where (mlops/deploy), and what counts as good enough to release (mlops/evaluation).
"""
