"""Training: sweeps over worker groups, trials, checkpoints, the trainer contract and the export of candidates.

Leaves to others: paying (mlops/budgets), reading shards (mlops/datasets), judging (mlops/evaluation) and MLflow
(mlops/registry).
"""
