"""What does the work: Temporal workflows, the activities of the CPU and GPU queues, and the training runner."""
