"""What can go wrong with weights and models, one class for each remedy."""


class UnsupportedArchitecture(TypeError):
    """The module has no N x N softmax attention over one patch grid that could be captured."""


class WeightsError(OSError):
    """Weights could not be fetched, read or used."""


class DownloadError(WeightsError):
    """A source did not answer, or not with the whole file."""


class ChecksumError(WeightsError):
    """A file's content is not what was recorded."""


class DamagedWeights(WeightsError):
    """A file holds no usable weights: cut off, damaged, not finite, or something else such as a web page."""


class UnsafeWeights(WeightsError):
    """A pickle holds code; it is not executed."""


class MismatchedWeights(WeightsError):
    """Keys or shapes of a file are not those of the model."""
