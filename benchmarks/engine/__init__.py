"""What the engine does in one process, without a server: batches of many tasks, texts, peers, eight-bit backbones."""
