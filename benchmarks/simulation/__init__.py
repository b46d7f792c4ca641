"""A fleet of replicas on paper: arrivals, routing, batches, scaling and the registry, with measured service times."""
