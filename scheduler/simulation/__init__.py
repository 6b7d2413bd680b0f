"""The scheduler under a virtual clock: the production planner, and cluster, load and faults as data.

`running` runs a scenario to its results, `eta` foretells when what waits will start, `whatif` says what a change would change.
"""
