"""Methods of transfer learning behind one contract: images to logits, and which parameters train."""

from torchsnow.methods.presets import PRESETS, PoolTraining, Preset
from torchsnow.methods.snow import Snow
from torchsnow.methods.table import METHODS, Kind, kind_of, make_method, split_name

__all__ = ["METHODS", "PRESETS", "Kind", "PoolTraining", "Preset", "Snow", "kind_of", "make_method", "split_name"]
