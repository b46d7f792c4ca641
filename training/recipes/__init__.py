"""How a side network is trained: the settings, the sets of settings that have a name, optimizers, and starts."""
