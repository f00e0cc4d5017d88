"""Task files: one task is one .safetensors file."""

from torchsnow.task_file.source_info import SourceInfo
from torchsnow.task_file.storage import (
    content_hash,
    decode_task,
    encode_task,
    load_task,
    read_task_info,
    refuse_too_large,
    save_task,
    stored_bytes,
)
from torchsnow.task_file.task import Task, TaskInfo, check_task_name, make_task

__all__ = [
    "SourceInfo",
    "Task",
    "TaskInfo",
    "check_task_name",
    "content_hash",
    "decode_task",
    "encode_task",
    "load_task",
    "make_task",
    "read_task_info",
    "refuse_too_large",
    "save_task",
    "stored_bytes",
]
