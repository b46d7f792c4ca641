"""A guard: several classifiers about every request, in one call, and a policy that blocks, routes or allows it."""
