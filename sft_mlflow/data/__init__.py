"""From a URI to a manifest and to pixels: readers, scan, split, checks, images, pixel tables."""
