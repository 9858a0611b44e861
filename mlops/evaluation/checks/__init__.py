"""One module per family of checks; each check is a function `(rule, hearing) -> Findings`, chosen in checks/table.py.

Leaves to others: verdicts (decisions.py), time limits and crashes (gate.py).
"""
