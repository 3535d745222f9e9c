from .answers import disagreement as disagreement
from .beside import check_beside as check_beside
from .probe import BackendProbe as BackendProbe
from .probe import distance as distance
from .probe import slice_limit as slice_limit
