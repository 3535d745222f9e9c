from .narrow import NarrowAdapters as NarrowAdapters
from .parallel import CompressedAdapters as CompressedAdapters
from .parallel import ParallelAdapters as ParallelAdapters
from .series import SeriesAdapters as SeriesAdapters
from .series import SeriesSite as SeriesSite
from .series import fold_series as fold_series
