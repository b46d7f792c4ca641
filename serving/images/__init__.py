"""Images of requests: decoded and encoded once, in batches of their own, and cached by their bytes' digest."""
