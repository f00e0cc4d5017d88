"""One network trained by several processes, which torchrun starts: each computes its share of every batch.

The first does all that a process alone would do. The others wait until it has saved a state, take that up as a resumed
run would, and compute their shares of every epoch from there on; they write nothing, and say nothing but what went
wrong in them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from torchsnow.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_NEEDED = (*_NUMBERS, "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
_PREPARED = timedelta(days=7)  # until when the first must have begun: it may check millions of images
_ANSWERED = timedelta(minutes=30)  # until when every process must have come to the same place


@dataclass(frozen=True)
class Ranks:
    """`count` processes, `on_machine` of them on this machine, and which one this is: `rank` of all, `local` of those
    here, both from 0 on. One alone by default, and then all of this does nothing."""

    rank: int = 0
    count: int = 1
    local: int = 0
    on_machine: int = 1

    @property
    def launcher(self) -> list[str]:
        """The words of a command line before the verb."""
        if self.count == 1:
            return ["torchsnow"]
        return ["torchrun", "--nproc-per-node", str(self.on_machine), "-m", "torchsnow"]

    @property
    def least_batch(self) -> int:
        """The fewest images of a batch: two for each process, for batch norm cannot train on one."""
        return 2 * self.count

    def validate_device(self, name: str) -> None:
        """Raise TrainingError for a device (see `TrainSettings`) that several processes cannot share out."""
        import torch

        from torchsnow.train.settings import torch_device

        is_cuda, there = torch_device(name).type == "cuda", torch.cuda.device_count()
        if self.count > 1 and is_cuda and (":" in name or there < self.on_machine):
            raise TrainingError(
                f"device is {name!r}, and each of the {self.on_machine} processes here takes a CUDA device of its own, "
                f"of {there}: give torchrun no more --nproc-per-node, and --device as 'cuda' or 'cpu', or not at all"
            )

    def validate_sizes(self, batch_size: int, num_images: int) -> None:
        """Raise TrainingError where a batch, or all training images, are too few for so many processes."""
        if self.count > 1 and min(batch_size, num_images) < self.least_batch:
            raise TrainingError(
                f"batch_size is {batch_size}, with {num_images} images to train on, and each of the {self.count} "
                f"processes needs 2 images of a batch: use {self.least_batch} or more, or fewer processes"
            )

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of all items."""
        return items[self.rank :: self.count]

    @cached_property
    def _store(self) -> Any:
        """What torchrun offers its processes to find each other by."""
        from torch.distributed.rendezvous import rendezvous

        return next(rendezvous("env://", timeout=_PREPARED))[0]

    @property
    def _has_begun(self) -> bool:
        return "_store" in vars(self)

    def must_speak(self) -> bool:
        """Whether to say what ended this process. Of several the first to end does: that is what ends the others."""
        return not self._has_begun or bool(self._store.add("spoken", 1) == 1)

    def wait(self) -> bool:
        """Wait for the first process; whether it trains, or has ended without."""
        return bool(self._store.get("first") == b"trains")

    def release(self) -> None:
        """Let those go who still wait for this first process."""
        if not self._has_begun:
            self._store.set("first", "ended")

    def join(self, device: torch.device) -> None:
        """Begin to work together; every process calls it."""
        if self.count == 1:
            return
        import torch
        from torch import distributed as dist

        if self.rank == 0:
            self._store.set("first", "trains")
        is_cuda = device.type == "cuda"
        if is_cuda:
            torch.cuda.set_device(self.local)  # what "cuda" means from here on
        how = {"store": self._store, "rank": self.rank, "world_size": self.count, "timeout": _ANSWERED}
        dist.init_process_group("nccl" if is_cuda else "gloo", **how)

    def leave(self) -> None:
        """Have done with working together."""
        if self.count > 1:
            from torch import distributed as dist

            dist.destroy_process_group()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise TrainingError for what is the end of another process."""
        try:
            yield
        except RuntimeError as error:
            if self.count > 1 and (type(error).__name__.startswith("Dist") or "gloo" in str(error)):
                raise TrainingError(
                    f"another of the {self.count} processes was ended, as by the system for want of memory, or did "
                    f"not answer for {_ANSWERED}; resume the run (--resume) to continue after its last epoch"
                ) from error
            raise

    def said(self, words: Any, device: torch.device) -> Any:
        """What the first process says, in JSON values; the words of the others do not count."""
        if self.count == 1:
            return words
        import torch
        from torch import distributed as dist

        content = torch.frombuffer(bytearray(json.dumps(words, allow_nan=False).encode()), dtype=torch.uint8).to(device)
        size = torch.tensor([len(content)], device=device)
        dist.broadcast(size, 0)
        if self.rank > 0:
            content = content.new_zeros(int(size))
        dist.broadcast(content, 0)
        return json.loads(content.cpu().numpy().tobytes())

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the values of all processes, of the same shape everywhere."""
        if self.count == 1:
            return values
        from torch import distributed as dist

        total = values.clone()
        dist.all_reduce(total)
        return total

    def weight(self, own: Tensor) -> Tensor | float:
        """What this process's mean counts in the mean over all processes, if its share of a batch weighs `own`."""
        return 1.0 if self.count == 1 else self.count * own / self.sum(own)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are the means over all processes. On CUDA, batch norms that train see the
        images of all."""
        if self.count == 1:
            return model
        from timm.layers import convert_sync_batchnorm
        from torch.nn.modules.batchnorm import _BatchNorm
        from torch.nn.parallel import DistributedDataParallel

        model.train()
        is_cuda = next(model.parameters()).is_cuda
        for name, part in list(model.named_modules()) if is_cuda else ():
            if isinstance(part, _BatchNorm) and part.training:
                model.set_submodule(name, convert_sync_batchnorm(part))
        return DistributedDataParallel(model, static_graph=True)  # whatever gets no gradient never does

    def share_buffers(self, model: nn.Module) -> None:
        """Take those of the first process."""
        from torch import distributed as dist

        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


ALONE = Ranks()
_here = ALONE


def here() -> Ranks:
    """The processes of this command."""
    return _here


@contextmanager
def together() -> Iterator[None]:
    """Around a command, so that under torchrun the other processes wait for the first; without it this does nothing.

    Raises SystemExit in those that have nothing to do.
    """
    global _here
    ranks = _of_torchrun()
    if ranks.count == 1:
        yield
        return
    _here = ranks
    try:
        if ranks.rank > 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first ends the training, and so the others
            if not ranks.wait():
                sys.exit(0)
        yield
    finally:
        if ranks.rank == 0:
            ranks.release()
        _here = ALONE


def _of_torchrun() -> Ranks:
    """By the variables that torchrun sets; alone when one is missing."""
    if any(name not in os.environ for name in _NEEDED):
        return ALONE
    return Ranks(*(int(os.environ[name]) for name in _NUMBERS))
