"""The exception family: every error that a person can cause says what failed, what was given and what to do."""


class TorchsnowError(ValueError):
    """Something given to torchsnow cannot be used. The command line prints it and exits with code 2."""


class SourceError(TorchsnowError):
    """A network cannot be a source: unknown, not downloadable, or of a kind that does not work."""


class DeltaError(TorchsnowError):
    """No delta can be derived from a source with these settings."""


class DataError(TorchsnowError):
    """A data set, a label file or an image cannot be used."""


class TaskFileError(TorchsnowError):
    """A task file is damaged, foreign, or belongs to another source."""


class HubError(TorchsnowError):
    """A hub folder cannot do what was asked."""


class TrainingError(TorchsnowError):
    """A training run cannot start or continue."""


class DivergedError(TrainingError):
    """A training run cannot continue: its numbers are no longer finite."""


class CompileError(TorchsnowError):
    """A hub cannot be compiled or exported: a backend is missing, or does not give what PyTorch gives."""


class ExperimentError(TorchsnowError):
    """A comparison, a benchmark or a report cannot be made of what was given."""


class ClusterError(TorchsnowError):
    """A Ray cluster cannot be reached, or does not do what it was given."""


class ServingError(TorchsnowError):
    """A server cannot start with these settings, or a client cannot reach one."""
