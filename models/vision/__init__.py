"""Image classifiers. Each returns its named stages, the last of which is "logits"."""
