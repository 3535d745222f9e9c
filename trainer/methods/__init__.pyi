from .account import Sizes as Sizes
from .account import adapter_ratio as adapter_ratio
from .account import params_ratio as params_ratio
from .adapter import WeightAdapter as WeightAdapter
from .adapter import without_norm as without_norm
from .make import make_adapter as make_adapter
from .series import SeriesSite as SeriesSite
from .series import fold_series as fold_series
