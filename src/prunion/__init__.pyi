from .exporter.api import export as export
from .exporter.api import verify as verify
from .exporter.training import prune as prune
from .exporter.training import sweep as sweep
from .exporter.training import train as train
from .runtime.errors import BackendError as BackendError
from .runtime.errors import BudgetError as BudgetError
from .runtime.errors import BundleError as BundleError
from .runtime.errors import CheckpointError as CheckpointError
from .runtime.errors import ConfigError as ConfigError
from .runtime.errors import DataError as DataError
from .runtime.errors import DomainError as DomainError
from .runtime.errors import EngineError as EngineError
from .runtime.errors import InputError as InputError
from .runtime.errors import MissingDependencyError as MissingDependencyError
from .runtime.errors import OutputError as OutputError
from .runtime.errors import OverloadError as OverloadError
from .runtime.errors import PrunionError as PrunionError
from .runtime.errors import StoppedError as StoppedError
from .runtime.errors import UnsupportedGraphError as UnsupportedGraphError
from .runtime.errors import VerificationError as VerificationError
from .runtime.measure.benchmark.measure import bench as bench
from .runtime.measure.evaluation import evaluate as evaluate
from .runtime.model.open import load as load

__version__: str
