"""Commands that make and measure runs: train, evaluate, init, import-lst, trace."""
