"""Senile reinforced random walks on Z^d: the law, its exact statistics, and vectorised simulation."""
