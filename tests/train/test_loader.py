from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from torchsnow.errors import DataError, TorchsnowError, TrainingError
from torchsnow.train.loader import Batches


def of_worker(error: Exception) -> Callable[[], None]:
    """What torch raises in the main process for an error of a worker: with the worker's trace as its text."""

    def reraise() -> None:
        try:
            raise error
        except Exception:
            caught = ExceptionWrapper(where="in DataLoader worker process 0")
        caught.reraise()

    return reraise


def killed(how: str) -> Callable[[], None]:
    def end() -> None:
        raise RuntimeError(f"DataLoader worker (pid 7) {how}")

    return end


FULL = RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")


@pytest.mark.parametrize(
    ("ends", "kind", "sentence"),
    [
        (of_worker(DataError("cannot read the image a.png: it is gone")), DataError, "cannot read the image a.png: it"),
        (of_worker(FULL), TrainingError, "have used up the shared memory; give fewer workers"),
        (killed("is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory."),
         TrainingError, "have used up the shared memory"),
        (killed("is killed by signal: Killed."), TrainingError, "was ended by the system"),
        (killed("exited unexpectedly"), TrainingError, "was ended by the system"),
    ],
    ids=["bad image", "no shared memory", "bus error", "killed", "gone"],
)  # fmt: skip
def test_what_befalls_a_worker_is_one_sentence(
    ends: Callable[[], None], kind: type[TorchsnowError], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(loader: Any) -> Iterator[Any]:
        yield from range(2)
        ends()

    monkeypatch.setattr(DataLoader, "__iter__", batches)
    with pytest.raises(kind) as caught:
        list(Batches([1, 2]))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_of_our_own_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(loader: Any) -> Iterator[Any]:
        of_worker(RuntimeError("a mistake"))()
        yield

    monkeypatch.setattr(DataLoader, "__iter__", batches)
    with pytest.raises(RuntimeError, match="a mistake"):
        list(Batches([1, 2]))


def test_without_workers_an_error_is_as_it_was() -> None:
    class Broken(list[int]):
        def __getitem__(self, index: Any) -> Any:
            raise DataError("cannot read the image a.png: it is gone")

    with pytest.raises(DataError, match=r"^cannot read the image a\.png: it is gone$"):
        list(Batches(Broken([1])))


def test_more_workers_than_cores_are_no_warning_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    assert Batches(range(4), num_workers=3).num_workers == 3  # type: ignore[arg-type]
