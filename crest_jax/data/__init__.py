"""Everything that handles data before it is on a device: sources, the long tail, records, streams.

The modules that need TensorFlow import it from `tensorflow`; the others work without it.
"""
