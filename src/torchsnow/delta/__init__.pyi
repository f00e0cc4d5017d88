from .delta import Delta as Delta
from .spec import DeltaSpec as DeltaSpec
