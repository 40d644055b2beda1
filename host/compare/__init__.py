"""Running several restoration methods on one image, each by the graph that the pack ships for it."""
