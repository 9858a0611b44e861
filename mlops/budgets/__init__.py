"""Budgets: a spend cap that is never exceeded, quotas of accelerators, and the rule that decides who runs next.

`tree` and `spec` are what people write, `leases` is prepaid time on the ledger, `decide` is the pure rule, and
`simulate` replays traces through it.
Leaves to others: placing worker groups (mlops/training) and running replicas (mlops/deploy).
"""
