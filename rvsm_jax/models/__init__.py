"""Neural networks as Flax NNX modules and pure forward functions."""
