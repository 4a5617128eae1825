"""Kernels of our own on a CPU: convolutions, of which XLA's are several times slower, and norms.

`crest_jax.models` asks for a convolution and a norm, and takes XLA's wherever these cannot be had:
on other platforms, without a C++ compiler, for arrays that are neither float32 nor bfloat16. The
C++ compiler compiles them when the first model is built, into the user's cache, for the processor
at hand. `CXX=false` in the environment leaves them off.

  library      compiles the sources beside it, and says what the processor has
  convolution  convolutions of images and their gradients
  norm         batch norms with their activations, and their gradients
"""

from crest_jax.cpu import convolution as convolution
from crest_jax.cpu import library as library
from crest_jax.cpu import norm as norm
