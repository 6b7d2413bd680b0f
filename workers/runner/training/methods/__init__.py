"""The training methods: an objective each, over the port in `training/objective.py`."""
