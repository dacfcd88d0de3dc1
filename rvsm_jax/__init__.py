"""Relaxed variable splitting for sparse networks: penalties x groups -> proximal operators -> links of a chain."""
