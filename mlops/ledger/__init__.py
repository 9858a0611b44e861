"""The ledger: the SQL record of what the machine did and owes, with an append-only, hash-chained event for each change.

Leaves to others: the tables of each room (its own `sql_<noun>.py`) and what events mean.
"""
