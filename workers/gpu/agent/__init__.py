"""The agent: one process beside one runner. It owns the runner's pipe, forwards logs, keeps the lease, carries signals.

`python -m workers.gpu.agent SPEC.json` is started by the GPU worker's activity. It knows nothing of Temporal.
"""
