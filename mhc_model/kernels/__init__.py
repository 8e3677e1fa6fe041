"""What moves the streams: the operations around a sublayer, as fast as the device allows."""

from mhc_model.kernels.eager import Entry, collapse, cross, enter, leave, precise, start

__all__ = ["Entry", "collapse", "cross", "enter", "leave", "precise", "start"]
