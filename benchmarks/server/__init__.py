"""What a real server does: over gRPC and HTTP, secured, under pressure, beside neighbours, at its start."""
