"""Headway's control plane: the gRPC services, their domain rules and their persistence."""
