"""A frozen stage runs once an image: the road, the store of what stands along it, the planner."""
