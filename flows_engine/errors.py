"""Why a flow run cannot go on, named by what happens next.

    EngineError
      ├─ RetryableError                 the same again may well work
      │    ├─ EngineUnavailableError      no Docker engine answers, or it went away
      │    ├─ ModelInterruptedError       it was stopped from outside, by an engine that ends or by hand
      │    ├─ ImagePullFailedError        the image is not in the engine, and its registry does not answer
      │    ├─ NoSpaceError                no room is left, for the engine or for us
      │    ├─ GpuUnavailableError         the GPUs that the model needs did not become free in time
      │    ├─ GpuLostError                a GPU fell off its bus, or its driver does not answer any more
      │    └─ DestinationUnavailableError the receiver cannot be reached, or went away
      └─ FinalError                     the same again fails the same way; a person has to change something
           ├─ NoInputError                no instance of the study is one that the flow gets
           ├─ ImageUnavailableError       not in the engine, and its registry says that it has none for us
           ├─ NotAllowedError             the flow asks Docker for more than this host allows
           ├─ ContainerRefusedError       the engine will not create or start it as it is defined
           ├─ GpuMissingError             this host has fewer GPUs than the model needs, or smaller ones
           ├─ ModelFailedError            it ended with an exit code that is not 0
           ├─ DiskFilledError             it left less of a disk than is to stay free
           ├─ ModelTimedOutError          it ran longer than its timeout
           ├─ UnexpectedOutputError       the last model left something that its flow does not expect
           ├─ NothingToSendError          the flow has destinations, its last model left no instance
           ├─ DeliveryRefusedError        the receiver answered, and does not want some instances
           ├─ RunHaltedError              the run ends, and with it what its other threads did
           ├─ EngineMisconfiguredError    the engine's address, its certificates or its block in Prefect are wrong
           ├─ HostPathError               a folder of ours has no known place on the engine's host
           ├─ StaticMountError            a static mount cannot be had from STATIC_DIR
           └─ WorkspaceError              the folders of a run cannot be made, read or removed

Every message is one line, and names no patient.
"""

from __future__ import annotations

import errno
from typing import Final

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class EngineError(Exception):
    """A flow run cannot go on."""


class RetryableError(EngineError):
    """The same again may well work."""


class EngineUnavailableError(RetryableError):
    """No Docker engine answers, or it went away."""


class ModelInterruptedError(RetryableError):
    """A model did not end by itself: something outside stopped it, whatever its exit code."""


class ImagePullFailedError(RetryableError):
    """The image is not in the engine, and its registry cannot be reached or does not answer properly."""


class NoSpaceError(RetryableError):
    """No room is left where the engine keeps containers, or where we keep runs."""


def is_full(error: OSError) -> bool:
    """Tell whether the operating system had no room left: ``NoSpaceError`` says so."""
    return error.errno in _FULL


class GpuUnavailableError(RetryableError):
    """The GPUs that the model needs did not become free in time."""


class GpuLostError(RetryableError):
    """A GPU that the model needs, or had, fell off its bus, or its driver does not answer any more."""


class DestinationUnavailableError(RetryableError):
    """The receiver cannot be reached, rejected the association, or went away."""


class FinalError(EngineError):
    """The same again fails the same way."""


class NoInputError(FinalError):
    """No instance of the study is one that the flow gets, or it cannot be told which are."""


class ImageUnavailableError(FinalError):
    """The image is not in the engine, and is not to be pulled, or its registry says that it has none for us."""


class NotAllowedError(FinalError):
    """The flow asks Docker for more than this host allows."""


class ContainerRefusedError(FinalError):
    """The engine will not create or start the container as it is defined."""


class GpuMissingError(FinalError):
    """This host has fewer GPUs than the model needs, or smaller ones."""


class ModelFailedError(FinalError):
    """A model ended with an exit code that is not 0."""


class ModelTimedOutError(FinalError):
    """A model ran longer than its timeout, and was killed."""


class DiskFilledError(FinalError):
    """A model left less of a disk than is to stay free, and was killed."""


class UnexpectedOutputError(FinalError):
    """The last model left something that its flow does not expect; none of it is sent."""


class NothingToSendError(FinalError):
    """The flow has destinations, and its last model left no instance."""


class DeliveryRefusedError(FinalError):
    """The receiver answered, and does not want some instances."""


class RunHaltedError(FinalError):
    """The run was cancelled, or ended in another way, while this was under way."""

    def __init__(self, message: str = "it was stopped, since its run ended") -> None:
        super().__init__(message)


class EngineMisconfiguredError(FinalError):
    """The address of the Docker engine, the certificates for it, or the block that names it are wrong."""


class HostPathError(FinalError):
    """A folder of ours has no known place on the engine's host."""


class StaticMountError(FinalError):
    """A static mount cannot be had from ``STATIC_DIR``."""


class WorkspaceError(FinalError):
    """The folders of a run cannot be made, read or removed."""
