"""Simulates a fleet of replicas: arrivals, routing, batches, scaling and the registry, with measured service times."""
