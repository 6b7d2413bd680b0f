"""What can be wrong with a training dataset, and finding all of it in one pass. Neither torch nor a server is needed."""
