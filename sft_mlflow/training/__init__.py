"""One trial: the loop, what it optimises with, and what survives a crash of it."""
