"""The errors a user can cause: which thing, what was found, what was expected, what to do."""


class OnnxptqError(Exception):
    """Any problem that the user can mend; the command line prints it and exits with 2."""


class ModelError(OnnxptqError):
    """A model or output file that cannot be read, is invalid, or cannot be written."""


class UnsupportedOpError(OnnxptqError):
    """An operator that the runtime does not know, named with its node."""


class CalibrationError(OnnxptqError):
    """Data that does not fit the model, or statistics no range can be fitted to."""


class SpecError(OnnxptqError):
    """An option, method text or recipe entry that does not exist or has a bad value."""


class ProgramError(OnnxptqError):
    """A quantized model whose integer arithmetic would go wrong, for example overflow."""
