"""Incidents: a wrong answer or a failed deployment becomes a record, a case that later releases must pass, and a plan.

`opening` for what people report, `automatic` for what the machine noticed itself, `closing` when a promoted release
has passed the case. Leaves to others: judging cases (mlops/evaluation/incident_cases), rolling back and noticing
failures (mlops/deploy), retraining (mlops/release).
"""
