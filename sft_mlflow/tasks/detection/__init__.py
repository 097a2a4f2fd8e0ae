"""Object detection: boxes around objects, each with a class."""
