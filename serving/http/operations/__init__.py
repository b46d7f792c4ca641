"""The operations of the HTTP port: each module has the paths of one kind, and what they answer."""
