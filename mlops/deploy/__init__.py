"""Where versions serve: rules of environments, approvals, promotion, desired state, reconciling, rolling back.

One choke point, `admission.admit`, stands before everything that starts or gets traffic.
Leaves to others: making and probing images (mlops/serving), signatures and chains (mlops/provenance), opening incidents
for deployments that failed (mlops/incidents reads the events written here).
"""
