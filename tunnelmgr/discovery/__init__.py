"""Where agents come from: sources that answer with a snapshot, and the layer that polls them."""
