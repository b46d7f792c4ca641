"""Ray Serve, compared with single processes."""
