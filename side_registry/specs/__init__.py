"""What a task is: its spec, the kinds of tasks and their rules."""
