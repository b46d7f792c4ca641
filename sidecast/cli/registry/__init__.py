"""Commands that read and change a registry: publish, promote, rollback, retire, tasks, history, shadow, registry."""
