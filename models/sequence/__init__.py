"""Sequences: recurrent nets, attention, the Transformer and its kin."""
