"""One module for each kind of operation; importing this package registers them all."""

from rvsm_jax.shrinking.rules import elementwise, joins, products, reductions, shapes

__all__ = ["elementwise", "joins", "products", "reductions", "shapes"]
