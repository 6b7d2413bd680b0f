"""Budgets, prices and the ledger in the database. The rules are in `governance`, and docs/explanation/budgets.md explains them.

Who calls what:

* the scheduler, in the transaction of a round, after it has locked jobs and leases: `ledgers.hold` if it both ends and grants,
  `settling.settle_many` for what ends, `reserving.reserve_many` for what it is about to grant, which it then does not grant if
  it is refused; `estimates.record_estimates` for the jobs of those grants. For its snapshot: `standing.read_states`, and
  `standing.leases_to_stop` for what is to be preempted;
* `control_plane.db.leases.end_lease`, for each lease that ends: `settling.settle_many`;
* services: `store` and `prices` to manage, inside `mutations.once`; `standing.read_states`, `estimates.job_costs` and
  `chargeback.chargeback` to look; `verify.verify` for auditors.
"""
