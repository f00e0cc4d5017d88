"""Batches of images that worker processes load, and what befalls these, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from torchsnow.errors import TorchsnowError, TrainingError
from torchsnow.train.settings import MORE_ROOM


class Batches(DataLoader[Any]):
    """torch's loader, whose workers' errors are a sentence, as those of the main process are.

    Raises what the data raises, and TrainingError when a worker has no shared memory or was ended from outside.
    """

    def check_worker_number_rationality(self) -> None:
        """No warning of more workers than cores, which torch gives with a line of its own code: that is a choice."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # nobody asks for more than the next batch
        try:
            yield from super().__iter__()
        except TorchsnowError as error:
            # from a worker it is its trace, which ends with the name of the error and what it says
            raise type(error)(str(error).rpartition(f".{type(error).__name__}: ")[2].strip()) from error
        except RuntimeError as error:
            if "shared memory" in str(error):
                raise TrainingError(f"the worker processes have used up the shared memory; {MORE_ROOM}") from error
            if "DataLoader worker" in str(error) and "Traceback" not in str(error):
                raise TrainingError(
                    "a worker process that loads images was ended by the system, as for want of memory; give fewer "
                    "(--num-workers 0 loads without)"
                ) from error
            raise
