from .epochs import STATE as STATE
from .interrupt import exit_when_stopped as exit_when_stopped
from .later_domain import AddedDomain as AddedDomain
from .later_domain import add_domain as add_domain
from .result import RunResult as RunResult
from .result import closing_table as closing_table
from .train import train_run as train_run
from .training import Training as Training
