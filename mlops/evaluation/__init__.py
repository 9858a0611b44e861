"""The gate: decides on bounds whether an exported candidate may become a version, and explains why.

Policy in (`evaluation/<product>.yaml`), verdicts with evidence out. Leaves to others: training and exporting the
candidate (mlops/training), registering it (mlops/registry), and recording the step (mlops/release.py).
"""
