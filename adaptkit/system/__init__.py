"""The machine: files, folders, signals, streams, network, hardware."""
