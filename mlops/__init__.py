"""The machine that bakes releases of machine-learning products.

Start with `mlops/release.py`: it reads like the job. Each folder is a room of the machine; imports go down only
(pyproject.toml, `tool.importlinter`).
"""

__version__ = "0.1.0"
