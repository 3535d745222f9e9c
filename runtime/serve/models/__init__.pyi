from .repository import Repository as Repository
from .service import Service as Service
from .serving import Serving as Serving
from .serving import load_model as load_model
