"""The GPU worker: the activities that run under a lease, each supervised by an agent of its own."""
