from .branches import Shared as Shared
from .runs import train_sweep as train_sweep
from .runs import train_with_baseline as train_with_baseline
from .table import SweepResult as SweepResult
from .table import sweep_table as sweep_table
