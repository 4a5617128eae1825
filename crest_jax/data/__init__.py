"""Everything that handles data before it is on a device: sources, the long tail, records, streams.

The modules that need TensorFlow take it from `tensorflow`; the others work without it.
"""
