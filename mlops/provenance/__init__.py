"""Where everything came from: digests, steps with their inputs and outputs, attestations, and the graph they make.

Leaves to others: doing the steps (each room) and deciding whether a chain is good enough to serve (mlops/deploy).
"""
