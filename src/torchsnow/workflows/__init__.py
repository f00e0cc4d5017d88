"""What the verbs do, without the command line: train, evaluate, predict."""
