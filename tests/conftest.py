"""Settings of the whole test suite."""

import os

# Compiling is most of the time here and the arrays are small. Set before jax is imported.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
