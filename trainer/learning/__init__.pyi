from .interrupt import StopRequest as StopRequest
from .interrupt import exit_when_stopped as exit_when_stopped
from .interrupt import stop_signals as stop_signals
from .own_budget import check_own as check_own
from .own_budget import own_shares as own_shares
from .own_budget import thins_at_the_cut as thins_at_the_cut
from .thinning import thinned as thinned
from .training import Training as Training
