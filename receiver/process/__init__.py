"""The parts of a process: the store, the ports, the workers, and the order in which they start and end."""
