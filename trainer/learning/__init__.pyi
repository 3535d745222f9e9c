from .interrupt import StopRequest as StopRequest
from .interrupt import exit_when_stopped as exit_when_stopped
from .interrupt import stop_signals as stop_signals
from .thinning import own_shares as own_shares
from .thinning import thinned as thinned
from .training import Training as Training
