from .constants import fold_constants as fold_constants
from .tracing import trace as trace
from .training_mode import NORM_MOMENTUM as NORM_MOMENTUM
