from .model import Candidate as Candidate
from .model import Model as Model
from .model import Prediction as Prediction
from .open import load as load
from .open import open_pool as open_pool
