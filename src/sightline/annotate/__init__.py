"""What is computed once, offline, and read in training: features of a tower, labels of patches."""
