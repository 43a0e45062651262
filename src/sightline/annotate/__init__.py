<<<<<<< HEAD
"""What is computed once, offline, and read in training: features of a tower, labels of patches."""
=======
"""Labels that are made before training: words for every patch of an image."""
>>>>>>> sea-near
