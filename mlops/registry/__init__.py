"""Runs, artefacts, model versions and aliases, as MLflow shows them to people.

Leaves to others: the record of trials (the ledger, written by mlops/training), whether to register (mlops/release.py).
"""
