"""Compiled CPU kernels for convolutions, for which XLA is several times slower, and batch norms.

`crest_jax.models` uses these kernels for convolutions and norms where they are available, and XLA
elsewhere: on other platforms, without a C++ compiler, and for arrays that are neither float32 nor
bfloat16. The C++ compiler compiles them for the processor at hand when the first model is built,
and the result is kept in the user's cache. `CXX=false` in the environment disables them.

  library      compiles the sources beside it, and reports what the processor supports
  convolution  convolutions of images and their gradients
  norm         batch norms with their activations, and their gradients
"""

from crest_jax.cpu import convolution as convolution
from crest_jax.cpu import library as library
from crest_jax.cpu import norm as norm
