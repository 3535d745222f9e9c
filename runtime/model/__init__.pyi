from .domains import LiveDomain as LiveDomain
from .model import Candidate as Candidate
from .model import Model as Model
from .model import Prediction as Prediction
from .model import to_prediction as to_prediction
from .open import load as load
from .open import open_pool as open_pool
from .plan import Plan as Plan
