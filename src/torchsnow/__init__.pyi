from .classifier import Classifier as Classifier
from .data import eval_transform as eval_transform
from .data import load_data as load_data
from .data import make_splits as make_splits
from .data import read_image as read_image
from .delta import Delta as Delta
from .delta import DeltaSpec as DeltaSpec
from .errors import TorchsnowError as TorchsnowError
from .hub import Hub as Hub
from .methods import make_method as make_method
from .model import SnowModel as SnowModel
from .pooling import ChannelPooling as ChannelPooling
from .source import Framing as Framing
from .source import Source as Source
from .source import load_source as load_source
from .task_file import Task as Task
from .task_file import load_task as load_task
from .task_file import make_task as make_task
from .task_file import save_task as save_task
from .train import RunFolder as RunFolder
from .train import TrainSettings as TrainSettings
from .train import fit as fit

__version__: str
