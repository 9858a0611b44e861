"""A user's project: found, opened, validated, scaffolded, examined.

Leaves to others: what its files mean (each room).
"""
