"""A hub's tasks and their source as one graph in a file, for other runtimes."""
