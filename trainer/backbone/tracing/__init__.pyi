from .constants import fold_constants as fold_constants
from .tracing import trace as trace
