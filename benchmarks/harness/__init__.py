"""What every benchmark is made of: options, rounds, models, load, peers, the machine, and the table of figures."""
