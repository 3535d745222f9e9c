from .probe import BackendProbe as BackendProbe
from .probe import disagreement as disagreement
from .probe import distance as distance
from .probe import slice_limit as slice_limit
