from .domains import LiveDomain as LiveDomain
from .model import Model as Model
from .open import load as load
from .open import open_pool as open_pool
from .plan import Plan as Plan
from .prediction import Candidate as Candidate
from .prediction import Prediction as Prediction
from .prediction import to_prediction as to_prediction
