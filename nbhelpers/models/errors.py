"""What can go wrong with weights, one class each."""


class UnsupportedArchitecture(TypeError):
    """The module has no N x N softmax attention over one patch grid that could be captured."""


class WeightsError(OSError):
    """Weights could not be fetched or read."""


class DownloadError(WeightsError):
    """A source did not answer, or not with the file."""


class TruncatedWeights(WeightsError):
    """A file ends before it is complete."""


class ChecksumError(WeightsError):
    """A file's content is not what was recorded."""


class NotWeights(WeightsError):
    """A file holds something else, such as the HTML page of an error or of a download quota."""


class UnsafeWeights(WeightsError):
    """A pickle holds code; it is not executed."""


class DiskFull(WeightsError):
    """The disk has no room for a file."""


class MismatchedWeights(WeightsError):
    """Keys or shapes of a file are not those of the model."""
