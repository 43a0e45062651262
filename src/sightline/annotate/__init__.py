"""Labels that are made before training: words for every patch of an image."""
