"""Where a network comes from: source URI -> SourceModel, its stages, and freezing."""
