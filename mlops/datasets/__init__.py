"""Versioned data: what a dataset is made of, how it is imported, named by digest, planned, read and forgotten.

Leaves to others: which trial reads it (mlops/training) and when people are erased (mlops/erasure).
"""
