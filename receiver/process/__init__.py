"""What a process is made of: the store, the ports, the workers, and the order in which all of it starts and ends."""
