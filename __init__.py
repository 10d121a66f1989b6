"""Flaxonomy: the deep-learning canon in JAX and Flax, from AlexNet to BERT and DQN."""

__version__ = "0.1.0"
