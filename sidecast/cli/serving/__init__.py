"""Commands that serve side networks and ask them: serve, deploy, status, predict, batch, bench."""
