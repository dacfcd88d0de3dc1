"""One module for each kind of operation; importing this package registers them all."""

from rvsm_jax.shrinking.rules import elementwise, joins, library, products, reductions, shapes

__all__ = ["elementwise", "joins", "library", "products", "reductions", "shapes"]
