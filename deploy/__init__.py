"""How Headway gets to run: on one machine, and on Kubernetes."""
