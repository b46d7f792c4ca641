"""What training costs and what comes of it."""
