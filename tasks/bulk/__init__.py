"""Many images in batches, by a Distributed Map: the manifest, the map run and the rows that batches wrote."""
